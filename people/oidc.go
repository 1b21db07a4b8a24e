package people

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/jackc/pgx/v5"
	"golang.org/x/oauth2"

	"mynah/chat"
	"mynah/schema"
)

// Signing in with OpenID Connect goes like this. The client sends the person's
// browser (or a mini-program's web-view) to Begin's address. The provider
// sends it back with a code, which Finish changes into an ID token and that
// into a ticket, and the browser is sent to the client's own address with the
// ticket in its query. The client then signs in, or links, with the ticket.
//
// state (one use, ten minutes, bound to the browser by a cookie) keeps others
// from sending people here with codes of their own; nonce binds the ID token to
// the state; PKCE (RFC 7636, S256) binds the code to this server. The ticket is
// for one use within a minute, and if the client began with a challenge only its
// verifier opens it: tokens are never in an address.
const (
	flowTTL     = 10 * time.Minute
	ticketTTL   = time.Minute
	oidcTimeout = 8 * time.Second
	// discoveryGap is the least time between two attempts to discover a
	// provider that does not answer.
	discoveryGap = 5 * time.Second
)

// OIDCLogin proves identities of OpenID Connect providers.
type OIDCLogin struct {
	*store
	http      *http.Client
	providers map[string]*oidcProvider
}

func newOIDCLogin(st *store, client *http.Client) *OIDCLogin {
	o := &OIDCLogin{store: st, http: client, providers: map[string]*oidcProvider{}}
	for _, p := range st.cfg.OIDC {
		o.providers[p.Name] = &oidcProvider{cfg: p}
	}
	return o
}

// oidcProvider is a provider that is discovered when it is first needed, so that
// Mynah starts while it is away.
type oidcProvider struct {
	cfg OIDC

	mu       sync.Mutex // guards what follows; held during discovery
	found    *oidc.Provider
	tried    time.Time
	verifier *oidc.IDTokenVerifier
}

var (
	errNoProvider   = chat.Refuse(chat.CodeNotFound, "This server knows no such provider.")
	errProviderAway = chat.Refuse(chat.CodeUnavailable, "The sign-in provider does not answer right now. Try again.")
	errUnknownFlow  = chat.Refuse(chat.CodeUnauthenticated, "This sign-in is over or was not begun here. Begin again.")
)

// discover returns the provider, asking it for its addresses the first time
// (OpenID Connect Discovery 1.0 section 4).
func (o *OIDCLogin) discover(ctx context.Context, name string) (*oidcProvider, error) {
	p, ok := o.providers[name]
	if !ok {
		return nil, errNoProvider
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found != nil {
		return p, nil
	}
	if o.now().Sub(p.tried) < discoveryGap {
		return nil, errProviderAway
	}
	ctx, cancel := context.WithTimeout(ctx, oidcTimeout)
	defer cancel()
	// The provider keeps the context's client for its key set, and must not
	// keep the request's deadline.
	found, err := oidc.NewProvider(oidc.ClientContext(ctx, o.http), p.cfg.Issuer)
	if err != nil {
		p.tried = o.now()
		o.log.LogAttrs(ctx, slog.LevelWarn, "OpenID Connect provider cannot be discovered", slog.String("provider", name), slog.Any("error", withoutURL(err)))
		return nil, errProviderAway
	}
	p.found = found
	p.verifier = found.VerifierContext(oidc.ClientContext(context.WithoutCancel(ctx), o.http), &oidc.Config{
		ClientID: p.cfg.ClientID, Now: o.now,
		SupportedSigningAlgs: []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.ES256, oidc.ES384, oidc.EdDSA},
	})
	return p, nil
}

func (o *OIDCLogin) oauth(p *oidcProvider) *oauth2.Config {
	scopes := append([]string{oidc.ScopeOpenID}, p.cfg.Scopes...)
	if len(p.cfg.Scopes) == 0 {
		scopes = append(scopes, "profile")
	}
	return &oauth2.Config{
		ClientID: p.cfg.ClientID, ClientSecret: p.cfg.Secret, Endpoint: p.found.Endpoint(),
		RedirectURL: o.cfg.PublicURL + "/v1/oidc/" + p.cfg.Name + "/callback", Scopes: scopes,
	}
}

// Providers returns the names of the OpenID Connect providers.
func (o *OIDCLogin) Providers() []string {
	names := make([]string, 0, len(o.cfg.OIDC))
	for _, p := range o.cfg.OIDC {
		names = append(names, p.Name)
	}
	return names
}

var challengePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)

// Begin begins a sign-in with the provider. The person is to be sent to
// address, and state must be kept in a cookie for Finish. redirect is where
// the ticket is to go; it must be one of Config.Redirects. challenge is "" or the
// S256 of the verifier that the ticket will take.
func (o *OIDCLogin) Begin(ctx context.Context, provider, redirect, challenge string) (address, state string, err error) {
	if !o.mayRedirect(redirect) {
		return "", "", chat.Refuse(chat.CodeInvalid, "This server sends nobody to that redirect address. Its operator can allow it with --oidc-redirect.")
	}
	if challenge != "" && !challengePattern.MatchString(challenge) {
		return "", "", chat.Refuse(chat.CodeInvalid, "The challenge must be the base64url of a SHA-256, 43 characters.")
	}
	p, err := o.discover(ctx, provider)
	if err != nil {
		return "", "", err
	}
	state = randomToken()
	nonce, verifier := randomToken(), oauth2.GenerateVerifier()
	if _, err := o.db.Q(ctx).Exec(ctx, schema.InsertFlow, hashToken(state), provider, nonce, verifier, redirect, challenge, flowTTL); err != nil {
		return "", "", fmt.Errorf("begin sign-in: %w", err)
	}
	return o.oauth(p).AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier)), state, nil
}

// Callback is what a provider sends a person back with.
type Callback struct {
	State   string
	Code    string
	Failure string // error, RFC 6749 section 4.1.2.1
	Cookie  string // the state that the browser was given
}

// Finish takes a person back from the provider and returns the address to
// send them on to: the redirect with ticket, or with error, in its query. It
// returns an error if there is no redirect to trust.
func (o *OIDCLogin) Finish(ctx context.Context, provider string, c Callback) (address string, err error) {
	if c.State == "" || subtle.ConstantTimeCompare([]byte(c.State), []byte(c.Cookie)) == 0 {
		return "", errUnknownFlow
	}
	var nonce, verifier, redirect, challenge string
	// Deleted as it is read: a state is for one use, whatever comes of it.
	err = o.db.Q(ctx).QueryRow(ctx, schema.TakeFlow, hashToken(c.State), provider).Scan(&nonce, &verifier, &redirect, &challenge)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", errUnknownFlow
	}
	if err != nil {
		return "", fmt.Errorf("finish sign-in: %w", err)
	}
	if c.Failure != "" || c.Code == "" {
		return withQuery(redirect, "error", "access_denied"), nil
	}
	p, err := o.discover(ctx, provider)
	if err != nil {
		return withQuery(redirect, "error", "temporarily_unavailable"), nil //nolint:nilerr // the person learns of it there
	}
	subject, name, err := o.exchange(ctx, p, c.Code, nonce, verifier)
	if err != nil {
		o.log.LogAttrs(ctx, slog.LevelWarn, "sign-in with OpenID Connect failed", slog.String("provider", provider), slog.Any("error", withoutURL(err)))
		return withQuery(redirect, "error", "server_error"), nil
	}
	ticket := randomToken()
	if _, err := o.db.Q(ctx).Exec(ctx, schema.InsertTicket, hashToken(ticket), providerOIDC+provider, subject, name, challenge, ticketTTL); err != nil {
		return "", fmt.Errorf("finish sign-in: %w", err)
	}
	return withQuery(redirect, "ticket", ticket), nil
}

// exchange changes the code into an ID token and returns whose it is.
func (o *OIDCLogin) exchange(ctx context.Context, p *oidcProvider, code, nonce, verifier string) (subject, name string, err error) {
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, oauth2.HTTPClient, o.http), oidcTimeout)
	defer cancel()
	token, err := o.oauth(p).Exchange(ctx, code, oauth2.VerifierOption(verifier))
	if err != nil {
		if refused, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
			// Its text holds the whole answer, which may hold tokens.
			return "", "", fmt.Errorf("the token endpoint refused the code: %s", cleanName(refused.ErrorCode))
		}
		return "", "", fmt.Errorf("exchange code: %w", withoutURL(err))
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return "", "", errors.New("the token endpoint gave no id_token")
	}
	id, err := p.verifier.Verify(ctx, raw) // signature, iss, aud, exp
	if err != nil {
		return "", "", fmt.Errorf("verify ID token: %w", err)
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) == 0 {
		return "", "", errors.New("verify ID token: it has another nonce")
	}
	var claims struct {
		AuthorizedParty string `json:"azp"`
		Name            string `json:"name"`
	}
	if err := id.Claims(&claims); err != nil {
		return "", "", errors.New("verify ID token: its claims cannot be read")
	}
	// OpenID Connect Core 1.0 section 3.1.3.7, 3 to 5.
	if len(id.Audience) > 1 && claims.AuthorizedParty != p.cfg.ClientID || claims.AuthorizedParty != "" && claims.AuthorizedParty != p.cfg.ClientID {
		return "", "", errors.New("verify ID token: it was issued to another party (azp)")
	}
	if id.Subject == "" || !validSubject(id.Subject) {
		return "", "", errors.New("verify ID token: it has no usable sub")
	}
	return id.Subject, cleanName(claims.Name), nil
}

// Check proves an OpenID Connect identity by the ticket that Finish
// gave out. verifier is needed if the sign-in was begun with a challenge. The
// ticket is used up, also if the verifier does not fit.
func (o *OIDCLogin) Check(ctx context.Context, ticket, verifier string) (Proof, error) {
	var p Proof
	var challenge string
	err := o.db.Pool().QueryRow(ctx, schema.TakeTicket, hashToken(ticket)).Scan(&p.Provider, &p.Subject, &p.Name, &challenge)
	if errors.Is(err, pgx.ErrNoRows) {
		return Proof{}, errWrongProof
	}
	if err != nil {
		return Proof{}, fmt.Errorf("use ticket: %w", err)
	}
	if challenge != "" {
		sum := sha256.Sum256([]byte(verifier))
		if subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(challenge)) == 0 {
			return Proof{}, errWrongProof
		}
	}
	return p, nil
}

// mayRedirect reports whether the address is one of those allowed.
func (o *OIDCLogin) mayRedirect(address string) bool {
	u, err := url.Parse(address)
	if err != nil || u.Scheme == "" || u.Host == "" || u.User != nil || u.Fragment != "" || strings.Contains(address, `\`) ||
		strings.Contains(u.Path, "/../") || strings.HasSuffix(u.Path, "/..") {
		return false
	}
	for _, allowed := range append([]string{o.cfg.PublicURL + "/"}, o.cfg.Redirects...) {
		a, err := url.Parse(allowed)
		if err != nil || a.Host == "" || u.Scheme != a.Scheme || u.Host != a.Host {
			continue
		}
		if u.Path == a.Path || a.Path == "" || strings.HasPrefix(u.Path, strings.TrimSuffix(a.Path, "/")+"/") {
			return true
		}
	}
	return false
}

func withQuery(address, name, value string) string {
	u, err := url.Parse(address)
	if err != nil {
		panic(err) // mayRedirect has parsed it
	}
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}

// withoutRedirects returns a client that follows no redirects: a service that is asked with
// a secret must not hand it on. Without one of the operator's it has its own
// connections, which Stop closes.
func withoutRedirects(c *http.Client) *http.Client {
	d := http.Client{Timeout: 10 * time.Second}
	if c != nil {
		d = *c
	} else if t, ok := http.DefaultTransport.(*http.Transport); ok {
		d.Transport = t.Clone()
	}
	d.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &d
}
