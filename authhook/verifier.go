package authhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"
)

// DefaultLeeway is how far another machine's clock may be ahead of ours: a token
// is accepted this long before its nbf. Machines that keep their time by NTP are
// within fractions of a second, a virtual machine that was paused within a few.
// exp has no leeway, since it is also the moment at which connections end; a
// clock that is behind costs the holder seconds at the end of the token's life,
// not the connection.
const DefaultLeeway = 5 * time.Second

// maxGuesses is how many keys are tried for a token that names none. A
// signature check costs the attacker nothing and us some 50 µs.
const maxGuesses = 8

// VerifierConfig says whose tokens are accepted. All sources are accepted side
// by side; at least one is needed.
type VerifierConfig struct {
	// Secret is for HS256: at least MinSecretLen bytes, or empty for none.
	Secret []byte
	// JWKS are file paths and http or https URLs of JWK Sets (RFC 7517) with
	// keys for RS256, PS256, ES256 and EdDSA. A file must be readable at
	// start; a URL that is not is tried again until it is.
	JWKS []string
	// Claims says in which claims of tokens that keys of JWKS have signed the
	// subject, groups and role stand; see ClaimNames.
	Claims ClaimNames
	// LocalKeys has the API's own keys, or is nil.
	LocalKeys KeySource
	// Issuer, if not empty, must be the token's iss, and Audience must be in
	// its aud. Tokens of LocalKeys are the server's own and exempt.
	Issuer   string
	Audience string
	// Leeway is applied to nbf; 0 means DefaultLeeway, negative none.
	Leeway time.Duration
	// RefreshInterval is the time between two fetches of a JWKS URL, default
	// DefaultRefreshInterval; RefreshGap the least time between two that tokens
	// with unknown keys cause, default DefaultRefreshGap. A file is read every 2 seconds,
	// or every second if tokens ask, and more often if these say so.
	RefreshInterval time.Duration
	RefreshGap      time.Duration
	// Now is the clock for exp and nbf, default time.Now.
	Now func() time.Time
	// HTTPClient fetches the JWKS, default one of the Verifier's own.
	HTTPClient *http.Client
	// Log is told about key sets that change or fail, default nobody.
	Log *slog.Logger
}

// Verifier turns tokens into identities. It is safe for concurrent use.
type Verifier struct {
	cfg              VerifierConfig
	parser           *jwt.Parser
	sources          []*source
	stop             context.CancelFunc
	running          sync.WaitGroup
	client           *http.Client // nil if it is the caller's
	invalidGroupsLog *rate.Limiter
}

// NewVerifier checks the configuration, reads the key sets and keeps them fresh
// until Close. It returns ErrShortSecret for a short secret and an error with
// the location for a JWKS file that cannot be used. It waits a few seconds for
// URLs and goes on without them if they do not answer.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) {
	if len(cfg.Secret) == 0 && len(cfg.JWKS) == 0 && cfg.LocalKeys == nil {
		return nil, errors.New("no keys: a secret, a JWKS or local keys are needed")
	}
	if n := len(cfg.Secret); n > 0 && n < MinSecretLen {
		return nil, fmt.Errorf("%w, this one has %d", ErrShortSecret, n)
	}
	if cfg.Leeway == 0 {
		cfg.Leeway = DefaultLeeway
	}
	cfg.Leeway = max(cfg.Leeway, 0)
	if cfg.RefreshInterval <= 0 {
		cfg.RefreshInterval = DefaultRefreshInterval
	}
	if cfg.RefreshGap <= 0 {
		cfg.RefreshGap = DefaultRefreshGap
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.Claims.Validate(); err != nil {
		return nil, err
	}
	cfg.Secret = slices.Clone(cfg.Secret)
	v := &Verifier{
		cfg: cfg, invalidGroupsLog: newInvalidGroupsLimiter(),
		parser: jwt.NewParser(
			jwt.WithValidMethods([]string{algHS256, algRS256, algPS256, algES256, algEdDSA}),
			jwt.WithStrictDecoding(),
			jwt.WithoutClaimsValidation(), // see rawClaims
		),
	}
	if err := v.startSources(); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// startSources reads every JWKS once and starts to keep them fresh.
func (v *Verifier) startSources() error {
	ctx, stop := context.WithCancel(context.Background())
	v.stop = stop
	if len(v.cfg.JWKS) == 0 {
		return nil
	}
	client := v.cfg.HTTPClient
	if client == nil {
		client = &http.Client{CheckRedirect: stayEncrypted}
		if t, ok := http.DefaultTransport.(*http.Transport); ok {
			client.Transport = t.Clone() // of its own, so that Close can end its connections
		}
		v.client = client
	}
	var firsts []chan struct{}
	for _, location := range v.cfg.JWKS {
		s, err := newSource(location, &v.cfg, client)
		if err != nil {
			return err
		}
		if s.file {
			if err := checkFile(location); err != nil {
				return err
			}
		}
		first := make(chan struct{})
		v.running.Go(func() { s.run(ctx, first) })
		v.sources, firsts = append(v.sources, s), append(firsts, first)
	}
	patience := time.NewTimer(refreshWait)
	defer patience.Stop()
	for _, first := range firsts {
		select {
		case <-first:
		case <-patience.C:
			return nil
		}
	}
	return nil
}

// checkFile refuses at start a JWKS file that cannot be read or used at all.
func checkFile(path string) error {
	raw, err := readFile(path)
	if err != nil {
		return fmt.Errorf("read JWKS: %w", err)
	}
	set, refused, err := parseKeySet(raw)
	if err != nil {
		return fmt.Errorf("read JWKS %s: %w", path, err)
	}
	if len(set.all) == 0 {
		errs := []error{fmt.Errorf("read JWKS %s: no key in it can be used", path)}
		for _, r := range refused {
			errs = append(errs, fmt.Errorf("key %q: %w", r.kid, r.err))
		}
		return errors.Join(errs...)
	}
	return nil
}

// Close ends the refreshing of keys. It is harmless to repeat; a closed Verifier
// goes on with the keys that it has.
func (v *Verifier) Close() {
	v.stop()
	v.running.Wait()
	if v.client != nil {
		v.client.CloseIdleConnections()
	}
}

// Verify returns what a token says about its holder. The error is a *TokenError
// around one of the Err… variables and never holds the token. The context
// bounds the wait for a JWKS that is fetched anew because of an unknown key.
func (v *Verifier) Verify(ctx context.Context, token string) (*Identity, error) {
	switch {
	case token == "":
		return nil, &TokenError{Err: ErrNoToken}
	case len(token) > MaxTokenLen:
		return nil, &TokenError{Err: fmt.Errorf("%w: %d bytes, at most %d", ErrTokenTooLong, len(token), MaxTokenLen)}
	}
	claims := rawClaims{}
	signer, ownKID, err := v.checkSignature(ctx, token, &claims)
	if err != nil {
		return nil, &TokenError{Err: err}
	}
	var noIDs []string
	if signer == signerJWKS {
		if claims, noIDs, err = claims.foreign(v.cfg.Claims); err != nil {
			return nil, &TokenError{Err: err}
		}
	}
	id, err := claims.identity()
	if err != nil {
		return nil, &TokenError{Err: err}
	}
	if binder, ok := v.cfg.LocalKeys.(KeyBinder); ok && ownKID != "" {
		if err := bind(ctx, binder, ownKID, id); err != nil {
			return nil, &TokenError{Err: err}
		}
	}
	if err := v.checkClaims(id, claims, signer == signerOwn); err != nil {
		return nil, &TokenError{Subject: id.Subject, Err: err}
	}
	v.logInvalidGroups(id.Subject, noIDs)
	return id, nil
}

// bind lets the key's source say who its holder is.
func bind(ctx context.Context, binder KeyBinder, kid string, id *Identity) error {
	said := id.Subject
	if err := binder.Bind(ctx, kid, id); err != nil {
		return fmt.Errorf("%w: key %s: %w", ErrClaims, quoteForLog(kid), err)
	}
	if id.Subject != said {
		return fmt.Errorf("%w: key %s is another holder's", ErrClaims, quoteForLog(kid))
	}
	return id.check()
}

// signer says whose key has signed a token.
type signer uint8

const (
	signerSecret signer = iota // the shared secret
	signerJWKS                 // a key of a JWKS: a foreign issuer
	signerOwn                  // a key of LocalKeys
)

// checkSignature fills the claims and returns nil only if a configured key
// signed them. ownKID is the key's id if it was one of LocalKeys.
func (v *Verifier) checkSignature(ctx context.Context, token string, claims *rawClaims) (by signer, ownKID string, err error) {
	var keyErr error
	parsed, err := v.parser.ParseWithClaims(token, claims, func(t *jwt.Token) (any, error) {
		var keys []jwt.VerificationKey
		keys, by, keyErr = v.candidates(ctx, t)
		return jwt.VerificationKeySet{Keys: keys}, keyErr
	})
	switch {
	case err == nil && by == signerOwn:
		ownKID, _ = parsed.Header["kid"].(string) // candidates has found the key by it
		return by, ownKID, nil
	case err == nil:
		return by, "", nil
	case keyErr != nil:
		return by, "", keyErr
	case errors.Is(err, jwt.ErrTokenMalformed):
		// The library's text quotes what it could not decode.
		return by, "", ErrMalformed
	case parsed == nil || parsed.Method == nil || !known(parsed.Method.Alg()):
		return by, "", ErrAlgorithm
	}
	return by, "", ErrSignature
}

// known reports whether the algorithm is one that some key can stand for.
func known(alg string) bool {
	switch alg {
	case algHS256, algRS256, algPS256, algES256, algEdDSA:
		return true
	}
	return false
}

// candidates returns the configured keys that may have signed the token and
// stand for its algorithm, and whose they are.
func (v *Verifier) candidates(ctx context.Context, t *jwt.Token) (keys []jwt.VerificationKey, by signer, err error) {
	if _, ok := t.Header["crit"]; ok {
		return nil, 0, fmt.Errorf("%w: its header has crit", ErrMalformed)
	}
	kid := ""
	if named, ok := t.Header["kid"]; ok {
		if kid, ok = named.(string); !ok {
			return nil, 0, fmt.Errorf("%w: kid is not a string", ErrMalformed)
		}
	}
	alg := t.Method.Alg()
	if alg == algHS256 {
		// Only the secret is ever used as one, whatever the token names:
		// a public key of a JWKS must not become an HMAC key.
		if len(v.cfg.Secret) == 0 {
			return nil, 0, fmt.Errorf("%w: HS256 and no secret is configured", ErrAlgorithm)
		}
		return []jwt.VerificationKey{v.cfg.Secret}, signerSecret, nil
	}
	if kid == "" {
		keys, err = v.guess(alg)
		return keys, signerJWKS, err
	}
	if v.cfg.LocalKeys != nil {
		if public, ok := v.cfg.LocalKeys.PublicKey(ctx, kid); ok {
			key, err := newVerifyKey(kid, "", public)
			if err != nil {
				return nil, 0, fmt.Errorf("%w: local key %s: %w", ErrAlgorithm, quoteForLog(kid), err)
			}
			if slices.Contains(key.algs, alg) {
				return []jwt.VerificationKey{key.key}, signerOwn, nil
			}
			return nil, 0, wrongAlg(kid, alg)
		}
	}
	named := v.named(kid)
	if len(named) == 0 {
		for _, s := range v.sources {
			s.requestRefresh(ctx)
		}
		if named = v.named(kid); len(named) == 0 {
			named = v.named("") // a set's keys need no ids (RFC 7517 section 4.5)
		}
	}
	if len(named) == 0 {
		return nil, 0, v.unknown(fmt.Sprintf("kid %s", quoteForLog(kid)))
	}
	for _, k := range named {
		if slices.Contains(k.algs, alg) {
			keys = append(keys, k.key)
		}
	}
	if len(keys) == 0 {
		return nil, 0, wrongAlg(kid, alg)
	}
	return keys, signerJWKS, nil
}

func wrongAlg(kid, alg string) error {
	return fmt.Errorf("%w: key %s does not stand for %s", ErrAlgorithm, quoteForLog(kid), alg)
}

// named returns the keys of all JWKS with the id.
func (v *Verifier) named(kid string) []*verifyKey {
	var found []*verifyKey
	for _, s := range v.sources {
		if set := s.set.Load(); set != nil {
			found = append(found, set.byKID[kid]...)
		}
	}
	return found
}

// guess returns the keys that a token without a key id may have been signed
// with, if they are few.
func (v *Verifier) guess(alg string) ([]jwt.VerificationKey, error) {
	var keys []jwt.VerificationKey
	for _, s := range v.sources {
		set := s.set.Load()
		if set == nil {
			continue
		}
		for _, k := range set.all {
			if slices.Contains(k.algs, alg) {
				keys = append(keys, k.key)
			}
		}
	}
	switch n := len(keys); {
	case n == 0:
		return nil, v.unknown("no kid, and no key for " + alg)
	case n > maxGuesses:
		return nil, fmt.Errorf("%w: no kid, and %d keys would fit", ErrUnknownKey, n)
	}
	return keys, nil
}

// unknown returns ErrUnknownKey, or ErrKeysUnavailable if the key may be in a
// set that could not be read yet.
func (v *Verifier) unknown(what string) error {
	for _, s := range v.sources {
		if s.set.Load() == nil {
			return fmt.Errorf("%w: %s", ErrKeysUnavailable, what)
		}
	}
	return fmt.Errorf("%w: %s", ErrUnknownKey, what)
}

// checkClaims checks what depends on the time and on the configuration.
func (v *Verifier) checkClaims(id *Identity, claims rawClaims, own bool) error {
	now := v.cfg.Now()
	if !now.Before(id.Expires) {
		return fmt.Errorf("%w at %s", ErrExpired, id.Expires.UTC().Format(time.RFC3339))
	}
	notBefore, err := claims.date("nbf")
	if err != nil {
		return err
	}
	if now.Before(notBefore.Add(-v.cfg.Leeway)) {
		return fmt.Errorf("%w: from %s", ErrNotYetValid, notBefore.UTC().Format(time.RFC3339))
	}
	if !own {
		if err := v.checkOrigin(claims); err != nil {
			return err
		}
	}
	return nil
}

// checkOrigin checks iss and aud.
func (v *Verifier) checkOrigin(claims rawClaims) error {
	if v.cfg.Issuer != "" {
		var issuer string
		if _, err := claims.read("iss", &issuer); err != nil {
			return err
		}
		if issuer != v.cfg.Issuer {
			return fmt.Errorf("%w: %s", ErrIssuer, quoteForLog(issuer))
		}
	}
	if v.cfg.Audience != "" {
		audience, err := claims.audience()
		if err != nil {
			return err
		}
		if !slices.Contains(audience, v.cfg.Audience) {
			return ErrAudience
		}
	}
	return nil
}
