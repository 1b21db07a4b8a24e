package api

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/groups"
	"mynah/internal/forwarded"
	"mynah/internal/origin"
	"mynah/people"
	"mynah/people/contacts"
)

// Config is what an API needs. The flags that fill it are named with the fields.
type Config struct {
	// DB is the pool of connections to a migrated database. It stays the
	// caller's to close, after Stop. Required.
	DB *pgxpool.Pool
	// Verifier tells who a token's holder is. It must accept what Keys signs
	// and what the devices' own keys sign (people.Keys is a source of both).
	// Required.
	Verifier Verifier
	// Keys signs access tokens. Required.
	Keys *people.Keys
	// People says who may register and how people sign in.
	People people.Config
	// Contacts are the limits of contacts, Groups those of groups.
	Contacts contacts.Config
	Groups   groups.Config
	// Origins are the origins of web pages, besides the API's own, whose
	// scripts may call it (--allow-origin): https://app.example.com,
	// https://*.example.com for all below that, file:// or null for pages that
	// come from no host, "*" for all. Default none.
	Origins []string
	// TrustedProxies are the addresses whose ForwardedHeader is believed
	// (--trusted-proxy). Default none: a limit by address then counts the peer.
	TrustedProxies []netip.Prefix
	// ForwardedHeader is where they tell the client's address
	// (--forwarded-header): X-Forwarded-For, the default, or Forwarded.
	ForwardedHeader string
	// AddressLimits scales how often one address may sign in, register and ask
	// for codes (--address-limits): 300 sign-ins in a quarter of an hour, 60
	// registrations and 60 codes in an hour. Take more where many people share
	// an address: a school, a carrier's NAT. Default DefaultAddressLimits.
	AddressLimits float64
	// PublicURL is the address under which clients reach the API
	// (--public-url), for example https://chat.example.com. It is where OpenID
	// Connect providers send people back to, and the issuer of its tokens.
	// Required if a provider is configured.
	PublicURL string
	// Timeout is the longest that a request may take once its head was read. Default
	// 8 s: the answer is to be there before the server closes the connection.
	Timeout time.Duration
	// Protocol is PROTOCOL.md, which /docs/protocol shows. Required.
	Protocol []byte
	// Log is where requests and failures are logged. Required.
	Log *slog.Logger
	// Now tells the time. Default time.Now.
	Now func() time.Time
}

// DefaultAddressLimits leaves the limits by address as they are.
const DefaultAddressLimits = 1

// Validate sets the defaults and returns an error that names each flag that is
// wrong and what to do about it.
func (c *Config) Validate() error {
	if c.Timeout == 0 {
		c.Timeout = 8 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.AddressLimits == 0 {
		c.AddressLimits = DefaultAddressLimits
	}
	wrong := []error{c.ValidateSettings()}
	if c.DB == nil || c.Verifier == nil || c.Keys == nil || c.Log == nil || len(c.Protocol) == 0 {
		wrong = append(wrong, errors.New("api: DB, Verifier, Keys, Protocol and Log are required"))
	}
	return errors.Join(wrong...)
}

// ValidateSettings is the part of Validate that needs nothing to be there yet: it looks
// at what the flags say.
func (c *Config) ValidateSettings() error {
	var wrong []error
	if c.AddressLimits < 0 || c.AddressLimits > 1000 || math.IsNaN(c.AddressLimits) {
		wrong = append(wrong, fmt.Errorf("--address-limits %g: give a factor above 0, at most 1000", c.AddressLimits))
	}
	if _, err := forwarded.ParseHeader(c.ForwardedHeader); err != nil {
		wrong = append(wrong, fmt.Errorf("--forwarded-header: %w", err))
	}
	if _, err := origin.Parse(c.Origins); err != nil {
		wrong = append(wrong, fmt.Errorf("--allow-origin %w", err))
	}
	if c.PublicURL != "" {
		u, err := url.Parse(c.PublicURL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.HasSuffix(c.PublicURL, "/") || u.RawQuery != "" {
			wrong = append(wrong, fmt.Errorf("--public-url %q: give the address under which clients reach this server, without a slash at the end, for example https://chat.example.com", c.PublicURL))
		}
	}
	if len(c.People.OIDC) > 0 && c.PublicURL == "" {
		wrong = append(wrong, errors.New("--public-url is missing: --oidc needs it, to have people sent back here"))
	}
	if err := c.People.Validate(); err != nil {
		wrong = append(wrong, err)
	}
	return errors.Join(wrong...)
}
