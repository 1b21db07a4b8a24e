package authhook_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"mynah/authhook"
	"mynah/internal/waitfor"
)

// TestJWKSKeysRefused guards the rules for keys: each of these must not verify
// anything, and must not take the good key beside it down.
func TestJWKSKeysRefused(t *testing.T) {
	t.Parallel()
	good := jwk(edKey().Public(), map[string]any{"kid": "good"})
	for _, tc := range []struct {
		name  string
		key   map[string]any
		token string
	}{
		{"oct", jwk(secret, map[string]any{"kid": "k"}), sign(jwt.SigningMethodHS256, secret, "k", claims(nil))},
		{"oct with alg HS256", jwk(secret, map[string]any{"kid": "k", "alg": "HS256", "use": "sig"}), sign(jwt.SigningMethodHS256, secret, "k", claims(nil))},
		{"RSA with alg HS256", jwk(&rsaKey().PublicKey, map[string]any{"kid": "k", "alg": "HS256"}), sign(jwt.SigningMethodRS256, rsaKey(), "k", claims(nil))},
		{"RSA with alg ES256", jwk(&rsaKey().PublicKey, map[string]any{"kid": "k", "alg": "ES256"}), sign(jwt.SigningMethodRS256, rsaKey(), "k", claims(nil))},
		{"RSA with alg none", jwk(&rsaKey().PublicKey, map[string]any{"kid": "k", "alg": "none"}), sign(jwt.SigningMethodRS256, rsaKey(), "k", claims(nil))},
		{"RSA for encryption", jwk(&rsaKey().PublicKey, map[string]any{"kid": "k", "use": "enc"}), sign(jwt.SigningMethodRS256, rsaKey(), "k", claims(nil))},
		{"RSA for signing only", jwk(&rsaKey().PublicKey, map[string]any{"kid": "k", "key_ops": []string{"sign"}}), sign(jwt.SigningMethodRS256, rsaKey(), "k", claims(nil))},
		{"RSA of 1024 bits", jwk(&shortRSA().PublicKey, map[string]any{"kid": "k"}), sign(jwt.SigningMethodRS256, shortRSA(), "k", claims(nil))},
		{"RSA with a private part", jwk(&rsaKey().PublicKey, map[string]any{"kid": "k", "d": "AQAB"}), sign(jwt.SigningMethodRS256, rsaKey(), "k", claims(nil))},
		{"EC with kty RSA", jwk(&ecKey().PublicKey, map[string]any{"kid": "k", "kty": "RSA"}), sign(jwt.SigningMethodES256, ecKey(), "k", claims(nil))},
		{"EC on P-384", jwk(&ec384Key().PublicKey, map[string]any{"kid": "k"}), sign(jwt.SigningMethodES384, ec384Key(), "k", claims(nil))},
		{"EC P-256 said to be P-384", jwk(&ecKey().PublicKey, map[string]any{"kid": "k", "crv": "P-384"}), sign(jwt.SigningMethodES256, ecKey(), "k", claims(nil))},
		{"EC with alg ES384", jwk(&ecKey().PublicKey, map[string]any{"kid": "k", "alg": "ES384"}), sign(jwt.SigningMethodES256, ecKey(), "k", claims(nil))},
		{"Ed25519 said to be X25519", jwk(edKey().Public(), map[string]any{"kid": "k", "crv": "X25519"}), sign(jwt.SigningMethodEdDSA, edKey(), "k", claims(nil))},
		{"Ed25519 with alg ES256", jwk(edKey().Public(), map[string]any{"kid": "k", "alg": "ES256"}), sign(jwt.SigningMethodEdDSA, edKey(), "k", claims(nil))},
		{"kid too long", jwk(&rsaKey().PublicKey, map[string]any{"kid": strings.Repeat("k", 257)}), sign(jwt.SigningMethodRS256, rsaKey(), strings.Repeat("k", 257), claims(nil))},
		{"kid a number", jwk(&rsaKey().PublicKey, map[string]any{"kid": 1}), sign(jwt.SigningMethodRS256, rsaKey(), "1", claims(nil))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v := newVerifier(t, authhook.VerifierConfig{JWKS: []string{writeJWKS(t, jwks(tc.key, good))}})
			if id, err := v.Verify(t.Context(), tc.token); err == nil {
				t.Errorf("accepted as %+v", id)
			}
			if _, err := v.Verify(t.Context(), sign(jwt.SigningMethodEdDSA, edKey(), "good", claims(nil))); err != nil {
				t.Errorf("the good key beside it: %v", err)
			}
			// At start, a file that is of no use is a mistake to be told.
			if v, err := authhook.NewVerifier(authhook.VerifierConfig{JWKS: []string{writeJWKS(t, jwks(tc.key))}}); err == nil {
				v.Close()
				t.Error("a file without a usable key was accepted at start")
			}
		})
	}
}

// TestLocalKeysRefused: the same rules hold for keys of the program's own.
func TestLocalKeysRefused(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, authhook.VerifierConfig{LocalKeys: localKeys{
		"short": &shortRSA().PublicKey, "secret": secret, "p384": &ec384Key().PublicKey,
	}})
	for name, token := range map[string]string{
		"RSA of 1024 bits": sign(jwt.SigningMethodRS256, shortRSA(), "short", claims(nil)),
		"a secret":         sign(jwt.SigningMethodHS256, secret, "secret", claims(nil)),
		"P-384":            sign(jwt.SigningMethodES384, ec384Key(), "p384", claims(nil)),
	} {
		if _, err := v.Verify(t.Context(), token); !errors.Is(err, authhook.ErrAlgorithm) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestJWKSDocumentRefused(t *testing.T) {
	t.Parallel()
	many := make([]map[string]any, 65)
	for i := range many {
		many[i] = jwk(edKey().Public(), nil)
	}
	for name, doc := range map[string][]byte{
		"empty":         nil,
		"not JSON":      []byte("keys"),
		"a single key":  []byte(`{"kty":"OKP","crv":"Ed25519","x":"AA"}`),
		"keys a string": []byte(`{"keys":"x"}`),
		"no keys":       jwks(),
		"too many keys": jwks(many...),
		"too long":      append(jwks(jwk(edKey().Public(), nil)), make([]byte, 1<<20)...),
	} {
		if v, err := authhook.NewVerifier(authhook.VerifierConfig{JWKS: []string{writeJWKS(t, doc)}}); err == nil {
			v.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestJWKSWithoutKeyIDs: RFC 7517 does not demand ids.
func TestJWKSWithoutKeyIDs(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, authhook.VerifierConfig{JWKS: []string{writeJWKS(t, jwks(jwk(edKey().Public(), nil)))}})
	for _, kid := range []string{"", "a"} {
		if _, err := v.Verify(t.Context(), sign(jwt.SigningMethodEdDSA, edKey(), kid, claims(nil))); err != nil {
			t.Errorf("kid %q: %v", kid, err)
		}
	}
}

// TestGuessesAreFew guards against CONNECTs that cost a signature check for each
// of many keys.
func TestGuessesAreFew(t *testing.T) {
	t.Parallel()
	keys := make([]map[string]any, 9)
	for i := range keys {
		keys[i] = jwk(newEd().Public(), nil)
	}
	keys[8] = jwk(edKey().Public(), nil)
	v := newVerifier(t, authhook.VerifierConfig{JWKS: []string{writeJWKS(t, jwks(keys...))}})
	if _, err := v.Verify(t.Context(), sign(jwt.SigningMethodEdDSA, edKey(), "", claims(nil))); !errors.Is(err, authhook.ErrUnknownKey) {
		t.Errorf("got %v", err)
	}
}

// TestJWKSFileRotation: a changed file is used without a restart, and one that
// is broken or gone costs nothing.
func TestJWKSFileRotation(t *testing.T) {
	t.Parallel()
	var log logBuffer
	old, fresh := newEd(), newEd()
	path := writeJWKS(t, jwks(jwk(old.Public(), map[string]any{"kid": "old"})))
	v := newVerifier(t, authhook.VerifierConfig{JWKS: []string{path}, Log: log.logger(), RefreshInterval: 20 * time.Millisecond})
	accepted := func(token string) func() bool {
		return func() bool {
			_, err := v.Verify(t.Context(), token)
			return err == nil
		}
	}
	oldToken := sign(jwt.SigningMethodEdDSA, old, "old", claims(nil))
	freshToken := sign(jwt.SigningMethodEdDSA, fresh, "fresh", claims(nil))
	waitfor.MustHold(t, "old token accepted", accepted(oldToken))

	if err := os.WriteFile(path, []byte(`{"keys":[`), 0o600); err != nil { // half written
		t.Fatal(err)
	}
	waitfor.MustHold(t, "broken file noticed", func() bool { return strings.Contains(log.String(), "cannot be read") })
	if !accepted(oldToken)() {
		t.Fatal("the last good keys are not used while the file is broken")
	}
	if err := os.WriteFile(path, jwks(jwk(fresh.Public(), map[string]any{"kid": "fresh"})), 0o600); err != nil {
		t.Fatal(err)
	}
	waitfor.MustHold(t, "fresh token accepted", accepted(freshToken))
	if accepted(oldToken)() {
		t.Error("a key that was taken out of the file is still accepted")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	waitfor.MustHold(t, "missing file noticed", func() bool { return strings.Contains(log.String(), "no such file") })
	if !accepted(freshToken)() {
		t.Error("the last good keys are not used while the file is gone")
	}
}

// keyServer serves a JWKS that can change and fail.
type keyServer struct {
	*httptest.Server
	doc     atomic.Pointer[[]byte] // nil answers 503
	fetches atomic.Int64
}

func newKeyServer(t *testing.T, doc []byte) *keyServer {
	t.Helper()
	s := &keyServer{}
	if doc != nil {
		s.doc.Store(&doc)
	}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.fetches.Add(1)
		doc := s.doc.Load()
		if doc == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write(*doc) // the client may be gone
	}))
	t.Cleanup(s.Close)
	return s
}

// TestJWKSURLRotation: a token with a new key makes the URL be fetched at once.
func TestJWKSURLRotation(t *testing.T) {
	t.Parallel()
	old, fresh := newEd(), newEd()
	server := newKeyServer(t, jwks(jwk(old.Public(), map[string]any{"kid": "old"})))
	v := newVerifier(t, authhook.VerifierConfig{JWKS: []string{server.URL}, RefreshGap: time.Nanosecond})
	if _, err := v.Verify(t.Context(), sign(jwt.SigningMethodEdDSA, old, "old", claims(nil))); err != nil {
		t.Fatal(err)
	}
	next := jwks(jwk(fresh.Public(), map[string]any{"kid": "fresh"}))
	server.doc.Store(&next)
	if _, err := v.Verify(t.Context(), sign(jwt.SigningMethodEdDSA, fresh, "fresh", claims(nil))); err != nil {
		t.Errorf("first token of the new key: %v", err)
	}
	if _, err := v.Verify(t.Context(), sign(jwt.SigningMethodEdDSA, old, "old", claims(nil))); !errors.Is(err, authhook.ErrUnknownKey) {
		t.Errorf("token of the key that is gone: %v", err)
	}
	server.doc.Store(nil) // down: the last good set stays
	_, _ = v.Verify(t.Context(), sign(jwt.SigningMethodEdDSA, old, "old", claims(nil)))
	if _, err := v.Verify(t.Context(), sign(jwt.SigningMethodEdDSA, fresh, "fresh", claims(nil))); err != nil {
		t.Errorf("while the URL is down: %v", err)
	}
}

// TestJWKSURLInterval: a key that is taken back stops to count after the
// interval, though no token asked for anything.
func TestJWKSURLInterval(t *testing.T) {
	t.Parallel()
	old := newEd()
	server := newKeyServer(t, jwks(jwk(old.Public(), map[string]any{"kid": "old"})))
	v := newVerifier(t, authhook.VerifierConfig{JWKS: []string{server.URL}, RefreshInterval: 20 * time.Millisecond})
	next := jwks()
	server.doc.Store(&next)
	waitfor.MustHold(t, "key taken back", func() bool {
		_, err := v.Verify(t.Context(), sign(jwt.SigningMethodEdDSA, old, "old", claims(nil)))
		return errors.Is(err, authhook.ErrUnknownKey)
	})
}

// TestJWKSURLGap guards the key server from whoever sends tokens with made-up
// key ids.
func TestJWKSURLGap(t *testing.T) {
	t.Parallel()
	server := newKeyServer(t, jwks(jwk(edKey().Public(), map[string]any{"kid": "k"})))
	v := newVerifier(t, authhook.VerifierConfig{JWKS: []string{server.URL}, RefreshGap: time.Hour})
	for range 50 {
		_, err := v.Verify(t.Context(), sign(jwt.SigningMethodEdDSA, edKey(), "made-up", claims(nil)))
		if !errors.Is(err, authhook.ErrUnknownKey) {
			t.Fatal(err)
		}
	}
	if n := server.fetches.Load(); n != 1 {
		t.Errorf("%d fetches, want the first one only", n)
	}
}

// TestJWKSURLDownAtStart: it is tried again until it is there, and meanwhile
// clients are told to try again.
func TestJWKSURLDownAtStart(t *testing.T) {
	t.Parallel()
	var log logBuffer
	server := newKeyServer(t, nil)
	v := newVerifier(t, authhook.VerifierConfig{
		Secret: secret, JWKS: []string{server.URL + "/?token=hunter2"}, RefreshInterval: 50 * time.Millisecond, Log: log.logger(),
	})
	token := sign(jwt.SigningMethodEdDSA, edKey(), "k", claims(nil))
	_, err := v.Verify(t.Context(), token)
	if !errors.Is(err, authhook.ErrKeysUnavailable) || authhook.ClientError(err).Code != "unavailable" {
		t.Errorf("while the keys are not there: %v", err)
	}
	if _, err := v.Verify(t.Context(), goodToken(authhook.TokenClaims{Subject: "alice"})); err != nil {
		t.Errorf("the secret works meanwhile: %v", err)
	}
	doc := jwks(jwk(edKey().Public(), map[string]any{"kid": "k"}))
	server.doc.Store(&doc)
	waitfor.MustHold(t, "keys fetched", func() bool {
		_, err := v.Verify(t.Context(), token)
		return err == nil
	})
	if strings.Contains(log.String(), "hunter2") {
		t.Errorf("the log holds a secret of the URL:\n%s", log.String())
	}
}

// TestJWKSURLHangs: a key server that does not answer holds up neither the start
// nor the CONNECTs whose context ends.
func TestJWKSURLHangs(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	v := newVerifier(t, authhook.VerifierConfig{Secret: secret, JWKS: []string{server.URL}})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := v.Verify(ctx, sign(jwt.SigningMethodEdDSA, edKey(), "k", claims(nil))); !errors.Is(err, authhook.ErrKeysUnavailable) {
		t.Errorf("got %v", err)
	}
}

// TestJWKSRedirectToPlain: a redirect must not take the keys out of TLS.
func TestJWKSRedirectToPlain(t *testing.T) {
	t.Parallel()
	plain := newKeyServer(t, jwks(jwk(edKey().Public(), map[string]any{"kid": "k"})))
	tls := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusFound))
	t.Cleanup(tls.Close)
	client := tls.Client()
	client.CheckRedirect = authhook.StayEncrypted
	v := newVerifier(t, authhook.VerifierConfig{JWKS: []string{tls.URL}, HTTPClient: client})
	if _, err := v.Verify(t.Context(), sign(jwt.SigningMethodEdDSA, edKey(), "k", claims(nil))); err == nil {
		t.Error("keys were taken from a plain http server")
	}
	if plain.fetches.Load() != 0 {
		t.Error("the plain http server was asked")
	}
}
