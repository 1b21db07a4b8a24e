package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"mynah/authhook"
	"mynah/chat"
	"mynah/internal/forwarded"
	"mynah/internal/origin"
	"mynah/internal/pgdial"
)

// Bounds of --publish-rate. One message in ten seconds is little for anybody; what is
// below is most likely a mistake, which would let one message through and then none.
const (
	leastRate = 0.1
	mostRate  = 1e9
)

// leastPayload is the least --max-payload, in bytes: the longest notice, about an
// announcement of 2,000 characters, takes 12 KiB.
const leastPayload = 16 * kib

// maxMessage is the most that --max-payload and --max-message can be. Each is kept in
// memory several times over on its way.
const maxMessage = 64 * mib

// maxSessionExpiry is the longest --session-expiry; MQTT has 136 years.
const maxSessionExpiry = 10 * 365 * 24 * time.Hour

// off is the value that switches off a listener that has an address by
// default.
const off = "off"

// groupTitles are the groups of flags, as --help and the READMEs list them. The commands
// name them where they take their settings.
var groupTitles = []kong.Group{
	{Key: "logging", Title: "Logging"},
	{Key: "storage", Title: "Storage"},
	{Key: "listeners", Title: "Listeners and proxies"},
	{Key: "clients", Title: "What clients may"},
	{Key: "tokens", Title: "Tokens"},
	{Key: "database", Title: "Database"},
	{Key: "upstream", Title: "The broker, where archiver and API run alone"},
	{Key: "people", Title: "Accounts and sign-in"},
	{Key: "rights", Title: "Contacts and groups"},
	{Key: "metrics", Title: "Metrics and health"},
	{Key: limitsGroup, Title: "Limits, rarely changed"},
}

// Config is everything that can be set. Each command takes the groups that
// concern it, and validate checks them all at once.
type Config struct {
	Logging
	Storage
	Retention
	Web
	Listeners
	Clients
	Identity
	Database
	Archive
	Upstream
	People
	Rights
	Metrics
	BrokerLimits
	TokenLimits
	ArchiverLimits
}

// Logging says what is logged and how.
type Logging struct {
	LogLevel  string `enum:"debug,info,warn,error" default:"info" help:"What is logged: debug, info, warn or error."`
	LogFormat string `enum:"text,json" default:"text" help:"How: text or json."`
}

// Storage says where things are kept.
type Storage struct {
	DataDir string `default:"./data" placeholder:"DIR" help:"Where the message log, the private PostgreSQL, rights and public keys for an outage, and the secret of --dev are kept."`
}

// Retention says how long the broker's log keeps messages.
type Retention struct {
	RetainAge  time.Duration `default:"720h" placeholder:"DURATION" help:"Archived messages older than this leave the broker's log; 0 for never."`
	RetainSize Bytes         `default:"0" placeholder:"BYTES" help:"The oldest archived messages leave the log above this size; 0 for no limit."`
	NoArchive  bool          `help:"There is no archiver: messages leave the log by age and size alone."`
}

// Web is the ways in by HTTP, and who is believed there.
type Web struct {
	HTTPAddr     string   `name:"http-addr" default:":8080" placeholder:"HOST:PORT" help:"Where HTTP is served: the API, and MQTT over WebSocket."`
	HTTPSAddr    string   `name:"https-addr" default:"off" placeholder:"HOST:PORT" help:"Where the same is served over TLS, WebSocket as wss; needs --tls-cert. off for not at all."`
	TLSCert      string   `name:"tls-cert" placeholder:"FILE" help:"Certificate chain for TLS, PEM. It is read again when it changes."`
	TLSKey       string   `name:"tls-key" placeholder:"FILE" help:"Its private key, PEM."`
	AllowOrigin  []string `placeholder:"ORIGIN" help:"Origins of web pages that may connect and call the API: https://chat.example.com, https://*.example.com, file:// or null for pages that come from no host, or * for all. Pages that come from the host they connect to always may."`
	TrustedProxy []string `placeholder:"CIDR" help:"Reverse proxies whose --forwarded-header is believed, as addresses or networks."`
	Forwarded    string   `name:"forwarded-header" default:"${forwarded_header}" placeholder:"NAME" help:"Where they tell the client's address: X-Forwarded-For, or Forwarded (RFC 7239). The other one is not read."`
}

// Listeners are the ways in by MQTT.
type Listeners struct {
	MQTTAddr      string `name:"mqtt-addr" default:":1883" placeholder:"HOST:PORT" help:"Where MQTT over TCP is served; off for not at all."`
	MQTTSAddr     string `name:"mqtts-addr" default:":8883" placeholder:"HOST:PORT" help:"Where MQTT over TLS is served if --tls-cert is given."`
	ProxyProtocol bool   `help:"MQTT connections from --trusted-proxy begin with a PROXY header, as HAProxy and load balancers send it."`
}

// Clients says what may come through the doors.
type Clients struct {
	MaxConnections int           `default:"0" placeholder:"N" help:"Most connections at once; 0 for no limit but the system's."`
	AddressMax     int           `name:"max-connections-per-address" default:"0" placeholder:"N" help:"Most MQTT connections at once from one address; 0 for no limit. An office or a carrier may be behind one."`
	PublishRate    float64       `default:"0" placeholder:"N" help:"Most messages a second from one person, on average, twice that at once; who sends faster is read from more slowly. 0 for no limit."`
	MaxPayload     Bytes         `default:"${max_payload}" placeholder:"BYTES" help:"Largest payload that a client may publish."`
	MaxDepth       int           `default:"${max_depth}" placeholder:"N" help:"Deepest nesting of JSON in a payload."`
	MaxMessage     Bytes         `default:"${max_message}" placeholder:"BYTES" help:"Largest message as rendered for subscribers."`
	SessionExpiry  time.Duration `default:"${session_expiry}" placeholder:"DURATION" help:"How long the session of an absent MQTT 3.1.1 client is kept, and the most that an MQTT 5 client may ask for."`
}

// Identity says whose tokens are accepted.
type Identity struct {
	JWTSecret Secret   `name:"jwt-secret" placeholder:"SECRET" help:"Shared secret of HS256 tokens, at least 32 bytes. Better set by environment than on the command line, where others see it."`
	JWKS      []string `name:"jwks" placeholder:"URL|FILE" help:"Public keys of RS256, PS256, ES256 and EdDSA tokens as JSON Web Key Sets. They are read again by themselves."`
	Issuer    string   `name:"jwt-issuer" placeholder:"ISS" help:"Accept only tokens with this iss."`
	Audience  string   `name:"jwt-audience" placeholder:"AUD" help:"Accept only tokens with this aud."`
	JWTClaim  Claims   `name:"jwt-claim" placeholder:"NAME=CLAIM,..." help:"In which claims of tokens that keys of --jwks have signed things stand, by sub, groups, role and acl: sub=email,groups=groups,role=realm_access.roles. A claim inside another has dots; the name of a claim that is an address is taken as it is. Without it sub is sub, and groups, role and acl of such tokens are not believed."`
}

// Database is PostgreSQL.
type Database struct {
	DatabaseURL SecretURL `name:"database-url" placeholder:"URL" help:"PostgreSQL: postgres://user:password@host:5432/database. serve has a private one of its own by default. Both sides take a connection for dead after 12 seconds of silence; tcp_keepalives_idle, tcp_keepalives_interval, tcp_keepalives_count and tcp_user_timeout in it win."`
}

// Archive says how long messages stay in PostgreSQL.
type Archive struct {
	ArchiveRetention time.Duration `default:"0" placeholder:"DURATION" help:"Messages older than this leave PostgreSQL, up to a month or 16,777,216 messages at a time; 0 keeps them for ever."`
}

// leastRetention is the least --archive-retention that is not 0.
const leastRetention = 24 * time.Hour

// validate checks the retention.
func (a *Archive) validate() error {
	if a.ArchiveRetention != 0 && a.ArchiveRetention < leastRetention {
		return refuse("archive-retention", "is %v, after which people could not read what they missed; give %v or more, or 0 to keep messages for ever", a.ArchiveRetention, leastRetention)
	}
	return nil
}

// Upstream is the broker as seen by the archiver and the API when they are
// processes of their own.
type Upstream struct {
	BrokerURL string `name:"broker-url" default:"mqtt://127.0.0.1:1883" placeholder:"URL" help:"The broker: mqtt://host:port, mqtts://host:port for TLS, ws:// or wss://host/mqtt."`
	BrokerCA  string `name:"broker-ca" placeholder:"FILE" help:"Certificates of the authorities from one of which the broker's is, PEM, for mqtts and wss. Default: the system's."`
	TokenFile string `placeholder:"FILE" help:"File with a token for the broker, read again whenever it is needed; without it a token is signed with --jwt-secret."`
}

// Metrics is the operators' listener.
type Metrics struct {
	MetricsAddr string `name:"metrics-addr" default:"127.0.0.1:9090" placeholder:"HOST:PORT" help:"Where /metrics, /healthz, /readyz and /debug/pprof are served; off for not at all."`
}

// Settings refused at start are told by the flag's name and with the remedy.
func refuse(flag, format string, args ...any) error {
	return fmt.Errorf("--"+flag+": "+format, args...)
}

// validate checks all groups, so that one look at what it says is enough to put
// everything right. Groups that a command does not take are at their zero value,
// which passes.
func (c *Config) validate() error {
	return errors.Join(c.Storage.validate(), c.Retention.validate(), c.Web.validate(), c.validateListeners(), c.Clients.validate(), c.Identity.validate(),
		c.Database.validate(), c.Archive.validate(), c.Upstream.validate(), c.People.validate(), c.Rights.validate(), c.Metrics.validate(),
		c.BrokerLimits.validate(), c.TokenLimits.validate(), c.ArchiverLimits.validate())
}

// validate checks the data directory's name; that it can be used is seen when
// it is opened.
func (s *Storage) validate() error {
	if info, err := os.Stat(s.DataDir); s.DataDir != "" && err == nil && !info.IsDir() {
		return refuse("data-dir", "%s is not a directory; name one that is or that can be made", s.DataDir)
	}
	return nil
}

// validate checks how long messages are kept.
func (r *Retention) validate() error {
	return errors.Join(notNegative("retain-age", r.RetainAge), notNegative("retain-size", r.RetainSize))
}

// notNegative refuses a value below 0.
func notNegative[T cmp.Ordered](flag string, value T) error {
	var zero T
	if value < zero {
		return refuse(flag, "is below zero; give a positive value")
	}
	return nil
}

// validate checks addresses, certificate, origins and proxies.
func (w *Web) validate() error {
	errs := []error{
		validAddr("http-addr", w.HTTPAddr, false),
		validAddr("https-addr", w.HTTPSAddr, true),
	}
	if w.HTTPSAddr != "" && w.HTTPSAddr != off && w.TLSCert == "" {
		errs = append(errs, refuse("https-addr", "needs a certificate; give --tls-cert and --tls-key, or leave it out"))
	}
	switch {
	case w.TLSCert == "" && w.TLSKey != "":
		errs = append(errs, refuse("tls-key", "is of no use without --tls-cert; give both"))
	case w.TLSCert != "" && w.TLSKey == "":
		errs = append(errs, refuse("tls-cert", "needs --tls-key beside it; give both"))
	case w.TLSCert != "":
		if _, err := tls.LoadX509KeyPair(w.TLSCert, w.TLSKey); err != nil {
			errs = append(errs, refuse("tls-cert", "cannot be used with --tls-key: %w", err))
		}
	}
	if _, err := origin.Parse(w.AllowOrigin); err != nil {
		errs = append(errs, refuse("allow-origin", "%w", err))
	}
	if _, err := forwarded.ParseHeader(w.Forwarded); err != nil {
		errs = append(errs, refuse("forwarded-header", "%w", err))
	}
	if _, err := w.proxies(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// validateListeners checks the addresses for MQTT, and what needs a flag of Web.
func (c *Config) validateListeners() error {
	errs := []error{
		validAddr("mqtt-addr", c.MQTTAddr, true),
		validAddr("mqtts-addr", c.MQTTSAddr, true),
	}
	if c.ProxyProtocol && len(c.TrustedProxy) == 0 {
		errs = append(errs, refuse("proxy-protocol", "needs --trusted-proxy, which says whose headers are believed; give both"))
	}
	return errors.Join(errs...)
}

// validate checks the limits, if the command has them.
func (c *Clients) validate() error {
	if *c == (Clients{}) {
		return nil
	}
	errs := []error{
		notNegative("max-connections", c.MaxConnections),
		notNegative("max-connections-per-address", c.AddressMax),
		within("max-depth", c.MaxDepth, 1, chat.MaxDepth),
		within("max-message", c.MaxMessage, leastPayload, maxMessage),
	}
	if c.PublishRate != 0 && !(c.PublishRate >= leastRate && c.PublishRate <= mostRate) { // NaN is neither
		errs = append(errs, refuse("publish-rate", "is %g; give messages a second, at least %g, or 0 for no limit", c.PublishRate, leastRate))
	}
	switch {
	case c.MaxPayload < leastPayload:
		errs = append(errs, refuse("max-payload", "is %d, which a notice of the API may be longer than; give at least %d", c.MaxPayload, leastPayload))
	case c.MaxPayload > maxMessage:
		errs = append(errs, refuse("max-payload", "is %v; give at most %v, for longer contents go by HTTP to a store of files, and their address into the message", c.MaxPayload, maxMessage))
	}
	switch {
	case c.SessionExpiry < time.Second:
		errs = append(errs, refuse("session-expiry", "is less than a second, which MQTT cannot tell a client; give a second or more"))
	case c.SessionExpiry > maxSessionExpiry:
		errs = append(errs, refuse("session-expiry", "is %v; give at most %v, ten years", c.SessionExpiry, maxSessionExpiry))
	}
	return errors.Join(errs...)
}

// proxies returns the trusted proxies as networks.
func (w *Web) proxies() ([]netip.Prefix, error) {
	var networks []netip.Prefix
	for _, text := range w.TrustedProxy {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			addr, addrErr := netip.ParseAddr(text)
			if addrErr != nil {
				return nil, refuse("trusted-proxy", "%q is neither an address nor a network; write 10.0.0.1 or 10.0.0.0/8", text)
			}
			network = netip.PrefixFrom(addr, addr.BitLen())
		}
		networks = append(networks, network)
	}
	return networks, nil
}

// validate checks the secret's length and that a file of keys is there. Whether
// a URL of keys answers is not checked: the keys are fetched again and again, and
// a broker must start while their server does not.
func (i *Identity) validate() error {
	var errs []error
	if n := len(i.JWTSecret); n > 0 && n < authhook.MinSecretLen {
		errs = append(errs, refuse("jwt-secret", "is %d bytes long, at least %d are needed; make one with: openssl rand -base64 32", n, authhook.MinSecretLen))
	}
	for _, location := range i.JWKS {
		if isURL(location) {
			continue
		}
		if _, err := os.Stat(location); err != nil {
			errs = append(errs, refuse("jwks", "is neither an http(s) address nor a file that can be read: %w", err))
		}
	}
	if i.JWTClaim != (Claims{}) && len(i.JWKS) == 0 {
		errs = append(errs, refuse("jwt-claim", "is of no use without --jwks: tokens of --jwt-secret have the claims of PROTOCOL.md; leave it out"))
	}
	if err := authhook.ClaimNames(i.JWTClaim).Validate(); err != nil {
		errs = append(errs, refuse("jwt-claim", "%w", err))
	}
	return errors.Join(errs...)
}

func isURL(s string) bool {
	return strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://")
}

// validate checks that the address can be understood.
func (d *Database) validate() error {
	if d.DatabaseURL == "" {
		return nil
	}
	// The parser's error quotes the address, at times with its password.
	if _, err := pgdial.ParsePool(d.DatabaseURL.Reveal(), application); err != nil {
		return refuse("database-url", "cannot be understood; write postgres://user:password@host:5432/database")
	}
	return nil
}

// brokerSchemes are those of a broker's address; true means TLS.
var brokerSchemes = map[string]bool{"mqtt": false, "tcp": false, "ws": false, "mqtts": true, "ssl": true, "tls": true, "wss": true}

// brokerTLS returns whom to believe that it is the broker, or nil for whom the system
// believes.
func (u *Upstream) brokerTLS() (*tls.Config, error) {
	if u.BrokerCA == "" {
		return nil, nil
	}
	certificates, err := os.ReadFile(u.BrokerCA)
	if err != nil {
		return nil, refuse("broker-ca", "cannot be read: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(certificates) {
		return nil, refuse("broker-ca", "%s holds no certificate; it should have some that begin with -----BEGIN CERTIFICATE-----", u.BrokerCA)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// validate checks the broker's address and that its files are there.
func (u *Upstream) validate() error {
	var errs []error
	if u.BrokerURL != "" {
		parsed, err := url.Parse(u.BrokerURL)
		encrypted, known := false, false
		if err == nil {
			encrypted, known = brokerSchemes[parsed.Scheme]
		}
		switch {
		case !known || parsed.Host == "":
			errs = append(errs, refuse("broker-url", "%q is not the address of a broker; write mqtt://host:1883 or mqtts://host:8883", u.BrokerURL))
		case parsed.User != nil:
			errs = append(errs, refuse("broker-url", "must not hold a password; put the token into a file and give its name as --token-file"))
		case u.BrokerCA != "" && !encrypted:
			errs = append(errs, refuse("broker-ca", "is of no use without TLS; write mqtts:// or wss:// in --broker-url, or leave it out"))
		}
	}
	if _, err := u.brokerTLS(); err != nil {
		errs = append(errs, err)
	}
	if u.TokenFile != "" {
		if _, err := os.Stat(u.TokenFile); err != nil {
			errs = append(errs, refuse("token-file", "cannot be read: %w", err))
		}
	}
	return errors.Join(errs...)
}

// validate checks the address.
func (m *Metrics) validate() error { return validAddr("metrics-addr", m.MetricsAddr, true) }

func validAddr(flag, addr string, mayBeOff bool) error {
	if addr == "" || mayBeOff && addr == off {
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return refuse(flag, "%q is not an address to listen on; write host:port or :port", addr)
	}
	return nil
}

// secretFile is where `serve --dev` keeps the secret that it made.
func (s *Storage) secretFile() string { return filepath.Join(s.DataDir, "jwt-secret") }
