package people

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// Registration says who may have an account.
type Registration string

// The kinds of registration (--registration).
const (
	// RegisterOpen lets everyone register, with an id of their choice that
	// nobody has used. Where another system signs tokens for ids of its own,
	// it lets people take the ids of those who have not come yet: use
	// RegisterAssigned or RegisterClosed there.
	RegisterOpen Registration = "open"
	// RegisterAssigned lets everyone register; the server chooses the ids, so
	// that not even registering tells which exist.
	RegisterAssigned Registration = "assigned"
	// RegisterClosed lets nobody register. Those who have an account sign in.
	RegisterClosed Registration = "closed"
)

// Config says how people may sign in. The zero value has registration by id and
// password only.
type Config struct {
	// Registration says who may register (--registration). Default RegisterOpen.
	Registration Registration
	// Mail sends codes by mail (--smtp-url), SMS by text message
	// (--sms-webhook). Without one its way of signing in is refused.
	Mail, SMS Sender
	// WeChat lets people sign in from a mini-program; without an AppID it is
	// refused.
	WeChat WeChat
	// OIDC are the OpenID Connect providers (--oidc).
	OIDC []OIDC
	// Redirects are the addresses to which people may be sent after they have
	// signed in with OpenID Connect (--oidc-redirect): each a URL whose scheme
	// and host must be equal and whose path must be a prefix that ends at a
	// slash or the end. PublicURL is always one.
	Redirects []string
	// PublicURL is api.Config.PublicURL.
	PublicURL string
	// HTTP is used to ask other services. Default a client of its own that
	// follows no redirects.
	HTTP *http.Client
}

// WeChat is a mini-program's entry at WeChat.
type WeChat struct {
	AppID  string // --wechat-app-id
	Secret string // --wechat-secret
	// BaseURL is where code2session is. Default DefaultWeChatURL.
	BaseURL string
}

// DefaultWeChatURL is WeChat's own address.
const DefaultWeChatURL = "https://api.weixin.qq.com"

// OIDC is an OpenID Connect provider, found by discovery.
type OIDC struct {
	Name     string   // in addresses and identities: a-z 0-9 -, at most 32
	Issuer   string   // URL; its /.well-known/openid-configuration is read
	ClientID string   //
	Secret   string   // "" for a public client, which PKCE protects
	Scopes   []string // besides openid; default profile
}

var oidcName = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// Validate sets the defaults and returns an error that names each flag that is
// wrong and what to do about it.
func (c *Config) Validate() error {
	var wrong []error
	switch c.Registration {
	case "":
		c.Registration = RegisterOpen
	case RegisterOpen, RegisterAssigned, RegisterClosed:
	default:
		wrong = append(wrong, fmt.Errorf("--registration %q: give open, assigned or closed", c.Registration))
	}
	if c.WeChat.BaseURL == "" {
		c.WeChat.BaseURL = DefaultWeChatURL
	}
	if !isHTTP(c.WeChat.BaseURL) {
		wrong = append(wrong, fmt.Errorf("--wechat-base-url %q: give an http or https address", c.WeChat.BaseURL))
	}
	if (c.WeChat.AppID == "") != (c.WeChat.Secret == "") {
		wrong = append(wrong, errors.New("--wechat-app-id and --wechat-secret: give both or neither; both stand in the mini-program's console"))
	}
	names := map[string]bool{}
	for _, p := range c.OIDC {
		switch {
		case !oidcName.MatchString(p.Name) || names[p.Name]:
			wrong = append(wrong, fmt.Errorf("--oidc %s: the name must be another for each provider, of at most 32 of a-z 0-9 -", p.Name))
		case !isHTTP(p.Issuer):
			wrong = append(wrong, fmt.Errorf("--oidc %s: the issuer must be an http or https address", p.Name))
		case p.ClientID == "":
			wrong = append(wrong, fmt.Errorf("--oidc %s: the client id is missing", p.Name))
		}
		names[p.Name] = true
	}
	for _, r := range c.Redirects {
		if u, err := url.Parse(r); err != nil || u.Scheme == "" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			wrong = append(wrong, fmt.Errorf("--oidc-redirect %q: give an address without a query, for example https://app.example.com/signed-in", r))
		}
	}
	return errors.Join(wrong...)
}

func isHTTP(address string) bool {
	u, err := url.Parse(address)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && !strings.HasSuffix(address, "?")
}
