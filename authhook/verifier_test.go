package authhook_test

import (
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"mynah/authhook"
	"mynah/chat"
)

// localKeys is a KeySource of fixed keys.
type localKeys map[string]crypto.PublicKey

func (l localKeys) PublicKey(_ context.Context, kid string) (crypto.PublicKey, bool) {
	key, ok := l[kid]
	return key, ok
}

// writeJWKS puts a key set into a file and returns its path.
func writeJWKS(tb testing.TB, doc []byte) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "jwks.json")
	if err := os.WriteFile(path, doc, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// everything returns a verifier with all kinds of keys side by side.
func everything(tb testing.TB) *authhook.Verifier {
	tb.Helper()
	return newVerifier(tb, authhook.VerifierConfig{
		Secret: secret,
		JWKS: []string{writeJWKS(tb, jwks(
			jwk(&rsaKey().PublicKey, map[string]any{"kid": "rsa"}),
			jwk(&rsaKey().PublicKey, map[string]any{"kid": "rsa-rs", "alg": "RS256", "use": "sig"}),
			jwk(&rsaKey().PublicKey, map[string]any{"kid": "rsa-ps", "alg": "PS256", "key_ops": []string{"verify"}}),
			jwk(&ecKey().PublicKey, map[string]any{"kid": "ec"}),
			jwk(edKey().Public(), map[string]any{"kid": "ed", "alg": "EdDSA"}),
		))},
		LocalKeys: localKeys{"own": edKey().Public()},
	})
}

func TestVerifyAcceptsEveryAlgorithm(t *testing.T) {
	t.Parallel()
	v := everything(t)
	for name, token := range map[string]string{
		"HS256":               sign(jwt.SigningMethodHS256, secret, "", claims(nil)),
		"HS256 with a kid":    sign(jwt.SigningMethodHS256, secret, "any", claims(nil)),
		"RS256":               sign(jwt.SigningMethodRS256, rsaKey(), "rsa", claims(nil)),
		"RS256, alg in JWK":   sign(jwt.SigningMethodRS256, rsaKey(), "rsa-rs", claims(nil)),
		"PS256":               sign(jwt.SigningMethodPS256, rsaKey(), "rsa", claims(nil)),
		"PS256, alg in JWK":   sign(jwt.SigningMethodPS256, rsaKey(), "rsa-ps", claims(nil)),
		"ES256":               sign(jwt.SigningMethodES256, ecKey(), "ec", claims(nil)),
		"EdDSA":               sign(jwt.SigningMethodEdDSA, edKey(), "ed", claims(nil)),
		"RS256 without a kid": sign(jwt.SigningMethodRS256, rsaKey(), "", claims(nil)),
		"ES256 without a kid": sign(jwt.SigningMethodES256, ecKey(), "", claims(nil)),
		"local key":           sign(jwt.SigningMethodEdDSA, edKey(), "own", claims(nil)),
	} {
		id, err := v.Verify(t.Context(), token)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if id.Subject != "alice" || id.Role != authhook.RoleUser {
			t.Errorf("%s: got %+v", name, id)
		}
	}
}

// raw makes a token by hand, for headers that no library writes.
func raw(header string, c jwt.MapClaims, mac []byte) string {
	b64 := base64.RawURLEncoding.EncodeToString
	text := b64([]byte(header)) + "." + b64(must(json.Marshal(c)))
	if mac == nil {
		return text + "."
	}
	h := hmac.New(sha256.New, mac)
	h.Write([]byte(text))
	return text + "." + b64(h.Sum(nil))
}

// TestVerifyRefuses guards the bad-input row "no token, expired, not yet valid,
// wrong signature, alg none, HS256 with the RSA public key, unknown key id, no
// sub, bad id" and algorithm confusion of every other kind.
func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	v := everything(t)
	now := time.Now()
	der := must(x509.MarshalPKIXPublicKey(&rsaKey().PublicKey))
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	good := sign(jwt.SigningMethodHS256, secret, "", claims(nil))
	hs := func(more map[string]any) string { return sign(jwt.SigningMethodHS256, secret, "", claims(more)) }
	other := newEd()
	many := func(n int, s string) []string {
		list := make([]string, n)
		for i := range list {
			list[i] = s
		}
		return list
	}

	for _, tc := range []struct {
		name  string
		token string
		want  error
	}{
		{"no token", "", authhook.ErrNoToken},
		{"too long", strings.Repeat("a", authhook.MaxTokenLen+1), authhook.ErrTokenTooLong},
		{"text", "hello", authhook.ErrMalformed},
		{"two parts", "a.b", authhook.ErrMalformed},
		{"four parts", good + ".x", authhook.ErrMalformed},
		{"padding", good + "=", authhook.ErrMalformed},
		{"header not JSON", "e30x.e30.e30", authhook.ErrMalformed},
		{"crit", raw(`{"alg":"HS256","crit":["b64"],"b64":false}`, claims(nil), secret), authhook.ErrMalformed},
		{"kid a number", raw(`{"alg":"RS256","kid":1}`, claims(nil), secret), authhook.ErrMalformed},

		{"alg none", sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "", claims(nil)), authhook.ErrAlgorithm},
		{"alg None", raw(`{"alg":"None"}`, claims(nil), nil), authhook.ErrAlgorithm},
		{"alg missing", raw(`{"typ":"JWT"}`, claims(nil), nil), authhook.ErrAlgorithm},
		{"alg none, named key", sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "rsa", claims(nil)), authhook.ErrAlgorithm},
		{"HS512", sign(jwt.SigningMethodHS512, secret, "", claims(nil)), authhook.ErrAlgorithm},
		{"RS512", sign(jwt.SigningMethodRS512, rsaKey(), "rsa", claims(nil)), authhook.ErrAlgorithm},
		{"RS256 by a key for PS256", sign(jwt.SigningMethodRS256, rsaKey(), "rsa-ps", claims(nil)), authhook.ErrAlgorithm},
		{"PS256 by a key for RS256", sign(jwt.SigningMethodPS256, rsaKey(), "rsa-rs", claims(nil)), authhook.ErrAlgorithm},
		{"ES256 naming the RSA key", sign(jwt.SigningMethodES256, ecKey(), "rsa", claims(nil)), authhook.ErrAlgorithm},
		{"RS256 naming the local key", sign(jwt.SigningMethodRS256, rsaKey(), "own", claims(nil)), authhook.ErrAlgorithm},

		{"HS256 with the RSA key, PEM", sign(jwt.SigningMethodHS256, publicPEM, "rsa", claims(nil)), authhook.ErrSignature},
		{"HS256 with the RSA key, DER", sign(jwt.SigningMethodHS256, der, "rsa", claims(nil)), authhook.ErrSignature},
		{"HS256 with the RSA modulus", sign(jwt.SigningMethodHS256, rsaKey().N.Bytes(), "rsa", claims(nil)), authhook.ErrSignature},
		{"HS256 with the Ed25519 key", sign(jwt.SigningMethodHS256, []byte(edKey()[32:]), "own", claims(nil)), authhook.ErrSignature},
		{"another secret", sign(jwt.SigningMethodHS256, []byte(strings.Repeat("x", 32)), "", claims(nil)), authhook.ErrSignature},
		{"no signature", good[:strings.LastIndexByte(good, '.')+1], authhook.ErrSignature},
		{"another's key, right kid", sign(jwt.SigningMethodEdDSA, other, "ed", claims(nil)), authhook.ErrSignature},
		{"another's key, no kid", sign(jwt.SigningMethodEdDSA, other, "", claims(nil)), authhook.ErrSignature},
		{"unknown kid", sign(jwt.SigningMethodRS256, rsaKey(), "elsewhere", claims(nil)), authhook.ErrUnknownKey},

		{"expired", hs(map[string]any{"exp": now.Add(-time.Second).Unix()}), authhook.ErrExpired},
		{"expired long ago", hs(map[string]any{"exp": 0}), authhook.ErrExpired},
		{"not yet valid", hs(map[string]any{"nbf": now.Add(time.Minute).Unix()}), authhook.ErrNotYetValid},

		{"no sub", hs(map[string]any{"sub": nil}), authhook.ErrClaims},
		{"sub null", raw(`{"alg":"HS256"}`, jwt.MapClaims{"sub": nil, "exp": now.Unix() + 60}, secret), authhook.ErrClaims},
		{"sub empty", hs(map[string]any{"sub": ""}), authhook.ErrClaims},
		{"sub with a slash", hs(map[string]any{"sub": "a/b"}), authhook.ErrClaims},
		{"sub with a wildcard", hs(map[string]any{"sub": "+"}), authhook.ErrClaims},
		{"sub too long", hs(map[string]any{"sub": strings.Repeat("a", 65)}), authhook.ErrClaims},
		{"sub not ASCII", hs(map[string]any{"sub": "玛丽"}), authhook.ErrClaims},
		{"sub a number", hs(map[string]any{"sub": 7}), authhook.ErrClaims},
		{"Sub", hs(map[string]any{"sub": nil, "Sub": "alice"}), authhook.ErrClaims},
		{"no exp", hs(map[string]any{"exp": nil}), authhook.ErrClaims},
		{"exp a string", hs(map[string]any{"exp": "tomorrow"}), authhook.ErrClaims},
		{"exp beyond time", hs(map[string]any{"exp": 1e300}), authhook.ErrClaims},
		{"exp negative", hs(map[string]any{"exp": -1}), authhook.ErrClaims},
		{"nbf a string", hs(map[string]any{"nbf": "now"}), authhook.ErrClaims},
		{"role unknown", hs(map[string]any{"role": "root"}), authhook.ErrClaims},
		{"role empty", hs(map[string]any{"role": ""}), authhook.ErrClaims},
		{"the archiver's subject, no role", hs(map[string]any{"sub": "archiver"}), authhook.ErrClaims},
		{"the archiver's subject, another role", hs(map[string]any{"sub": "archiver", "role": "service"}), authhook.ErrClaims},
		{"the system's subject, no role", hs(map[string]any{"sub": "system"}), authhook.ErrClaims},
		{"the system's subject, another role", hs(map[string]any{"sub": "system", "role": "archiver"}), authhook.ErrClaims},
		{"role in capitals", hs(map[string]any{"role": "Admin"}), authhook.ErrClaims},
		{"groups not a list", hs(map[string]any{"groups": "lobby"}), authhook.ErrClaims},
		{"group not an id", hs(map[string]any{"groups": []string{"lobby", "a/b"}}), authhook.ErrClaims},
		{"too many groups", hs(map[string]any{"groups": many(authhook.MaxGroups+1, "g")}), authhook.ErrClaims},
		{"acl a list", hs(map[string]any{"acl": []string{"a"}}), authhook.ErrClaims},
		{"acl not a filter", hs(map[string]any{"acl": map[string]any{"pub": []string{"a/#/b"}}}), authhook.ErrClaims},
		{"acl filter empty", hs(map[string]any{"acl": map[string]any{"sub": []string{""}}}), authhook.ErrClaims},
		{"too many filters", hs(map[string]any{"acl": map[string]any{"sub": many(authhook.MaxFilters+1, "a")}}), authhook.ErrClaims},
		{"jti too long", hs(map[string]any{"jti": strings.Repeat("a", 257)}), authhook.ErrClaims},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			id, err := v.Verify(t.Context(), tc.token)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, %v, want %v", id, err, tc.want)
			}
			if id != nil {
				t.Fatalf("got an identity with an error: %+v", id)
			}
			checkDiscreet(t, tc.token, err)
		})
	}
}

// checkDiscreet fails if an error is not fit for a log line or tells a client
// more than it is to know.
func checkDiscreet(t *testing.T, token string, err error) {
	t.Helper()
	text := err.Error()
	if len(text) > 300 || strings.ContainsAny(text, "\n\r") {
		t.Errorf("not one short line: %q", text)
	}
	for part := range strings.SplitSeq(token, ".") {
		if len(part) > 8 && strings.Contains(text, part) {
			t.Errorf("the error holds a part of the token: %q", text)
		}
	}
	switch reason := authhook.ClientError(err).Reason; reason {
	case "not authorised":
	case "token expired":
		if !errors.Is(err, authhook.ErrExpired) {
			t.Errorf("%v is told as expired", err)
		}
	default:
		t.Errorf("a client is told %q", reason)
	}
}

func TestVerifyReadsClaims(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, authhook.VerifierConfig{Secret: secret})
	now := time.Now().Truncate(time.Second)
	id, err := v.Verify(t.Context(), sign(jwt.SigningMethodHS256, secret, "", claims(map[string]any{
		"role": "device", "groups": []string{"b", "a", "b"}, "iat": now.Unix(), "exp": now.Unix() + 60,
		"jti": "j", "sid": "s", "iss": "whoever", "aud": []string{"x"},
		"acl": map[string]any{"pub": []string{"t/+"}, "sub": []string{"t/#", "#"}},
		// Claims are known by their exact names alone.
		"ROLE": "admin", "Groups": []string{"c"},
	})))
	if err != nil {
		t.Fatal(err)
	}
	want := &authhook.Identity{
		Subject: "alice", Role: authhook.RoleDevice, Groups: []string{"a", "b"},
		Pub: []string{"t/+"}, Sub: []string{"t/#", "#"}, Issued: now, Expires: now.Add(time.Minute),
		TokenID: "j", Session: "s",
	}
	if diff := cmp.Diff(want, id); diff != "" {
		t.Error(diff)
	}
}

// TestVerifyTime guards the limits of validity: exp is exact, because it is when
// connections end, and nbf has the leeway.
func TestVerifyTime(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	clock := now
	v := newVerifier(t, authhook.VerifierConfig{Secret: secret, Now: func() time.Time { return clock }})
	token := sign(jwt.SigningMethodHS256, secret, "", jwt.MapClaims{"sub": "alice", "nbf": now.Unix(), "exp": now.Unix() + 10})
	for _, tc := range []struct {
		at   time.Duration
		want error
	}{
		{-authhook.DefaultLeeway - time.Millisecond, authhook.ErrNotYetValid},
		{-authhook.DefaultLeeway, nil},
		{0, nil},
		{10*time.Second - time.Millisecond, nil},
		{10 * time.Second, authhook.ErrExpired},
	} {
		clock = now.Add(tc.at)
		if _, err := v.Verify(t.Context(), token); !errors.Is(err, tc.want) {
			t.Errorf("at %v: got %v, want %v", tc.at, err, tc.want)
		}
	}
	clock = now.Add(time.Minute)
	_, err := v.Verify(t.Context(), token)
	if te, ok := errors.AsType[*authhook.TokenError](err); !ok || te.Subject != "alice" {
		t.Errorf("the log is to know whose token expired, got %#v", err)
	}
}

func TestVerifyIssuerAndAudience(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, authhook.VerifierConfig{
		Secret: secret, LocalKeys: localKeys{"own": edKey().Public()}, Issuer: "https://id.example", Audience: "mynah",
	})
	hs := func(more map[string]any) string { return sign(jwt.SigningMethodHS256, secret, "", claims(more)) }
	for _, tc := range []struct {
		name  string
		token string
		want  error
	}{
		{"both", hs(map[string]any{"iss": "https://id.example", "aud": "mynah"}), nil},
		{"one of several", hs(map[string]any{"iss": "https://id.example", "aud": []string{"x", "mynah"}}), nil},
		{"minted", must(authhook.Mint(secret, authhook.TokenClaims{Subject: "a", Issuer: "https://id.example", Audience: "mynah"})), nil},
		{"no iss", hs(map[string]any{"aud": "mynah"}), authhook.ErrIssuer},
		{"another iss", hs(map[string]any{"iss": "https://id.example/", "aud": "mynah"}), authhook.ErrIssuer},
		{"iss a list", hs(map[string]any{"iss": []string{"https://id.example"}, "aud": "mynah"}), authhook.ErrClaims},
		{"no aud", hs(map[string]any{"iss": "https://id.example"}), authhook.ErrAudience},
		{"another aud", hs(map[string]any{"iss": "https://id.example", "aud": []string{"x"}}), authhook.ErrAudience},
		{"aud a number", hs(map[string]any{"iss": "https://id.example", "aud": 1}), authhook.ErrClaims},
		{"the server's own", must(authhook.MintEd25519(edKey(), "own", authhook.TokenClaims{Subject: "a"})), nil},
	} {
		if _, err := v.Verify(t.Context(), tc.token); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
}

// binder is a KeyBinder of fixed keys.
type binder struct {
	localKeys
	bind func(kid string, id *authhook.Identity) error
}

func (b binder) Bind(_ context.Context, kid string, id *authhook.Identity) error {
	return b.bind(kid, id)
}

// TestKeyBinder: a key that is one holder's signs for nobody else, and its holder
// has the rights that the source says, not those that its token claims.
func TestKeyBinder(t *testing.T) {
	t.Parallel()
	keys := localKeys{"lamp": edKey().Public(), "bad": edKey().Public(), "thief": edKey().Public()}
	v := newVerifier(t, authhook.VerifierConfig{Secret: secret, LocalKeys: binder{keys, func(kid string, id *authhook.Identity) error {
		switch kid {
		case "thief":
			id.Subject = "bob"
		case "bad":
			id.Pub = []string{"a/#/b"}
		default:
			if id.Subject != "lamp" {
				return errors.New("not the holder")
			}
			id.Role, id.Groups, id.Pub, id.Sub = authhook.RoleDevice, nil, []string{"lamp/#"}, nil
		}
		return nil
	}}})
	boast := authhook.TokenClaims{Subject: "lamp", Role: authhook.RoleAdmin, Groups: []string{"all"}, Pub: []string{"#"}, Sub: []string{"#"}}
	id, err := v.Verify(t.Context(), must(authhook.MintEd25519(edKey(), "lamp", boast)))
	if err != nil {
		t.Fatal(err)
	}
	if id.Role != authhook.RoleDevice || id.Groups != nil || !cmp.Equal(id.Pub, []string{"lamp/#"}) || id.Sub != nil {
		t.Errorf("the token's own claims count: %+v", id)
	}
	for name, token := range map[string]string{
		"another subject":   must(authhook.MintEd25519(edKey(), "lamp", authhook.TokenClaims{Subject: "alice"})),
		"a changed subject": must(authhook.MintEd25519(edKey(), "thief", authhook.TokenClaims{Subject: "alice"})),
		"a bad filter":      must(authhook.MintEd25519(edKey(), "bad", authhook.TokenClaims{Subject: "alice"})),
		"no kid":            sign(jwt.SigningMethodEdDSA, edKey(), "", claims(map[string]any{"sub": "lamp"})),
	} {
		if id, err := v.Verify(t.Context(), token); err == nil {
			t.Errorf("%s: accepted as %+v", name, id)
		}
	}
	// Other sources are not asked about.
	if id, err := v.Verify(t.Context(), goodToken(boast)); err != nil || id.Role != authhook.RoleAdmin {
		t.Errorf("a token of the secret: %+v, %v", id, err)
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	t.Parallel()
	if _, err := authhook.NewVerifier(authhook.VerifierConfig{}); err == nil {
		t.Error("a verifier without keys was made")
	}
	if _, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: secret[:31]}); !errors.Is(err, authhook.ErrShortSecret) {
		t.Errorf("short secret: got %v", err)
	}
	for _, location := range []string{"/does/not/exist.json", "ftp://host/jwks", "http://", "https:///path", "http://user:hunter2@%zz/"} {
		_, err := authhook.NewVerifier(authhook.VerifierConfig{JWKS: []string{location}})
		if err == nil {
			t.Errorf("%s was accepted", location)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error holds a password: %v", err)
		}
	}
}

func TestMint(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, authhook.VerifierConfig{Secret: secret})
	issued := time.Now().Truncate(time.Second)
	id, err := v.Verify(t.Context(), goodToken(authhook.TokenClaims{
		Subject: "archiver", Role: authhook.RoleArchiver, Groups: []string{"lobby"}, Pub: []string{"a/#"}, Sub: []string{"b/+"},
		TTL: 90 * time.Second, TokenID: "t", Session: "s", IssuedAt: issued,
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := &authhook.Identity{
		Subject: "archiver", Role: authhook.RoleArchiver, Groups: []string{"lobby"}, Pub: []string{"a/#"}, Sub: []string{"b/+"},
		Issued: issued, Expires: issued.Add(90 * time.Second), TokenID: "t", Session: "s",
	}
	if diff := cmp.Diff(want, id); diff != "" {
		t.Error(diff)
	}

	first, err := v.Verify(t.Context(), goodToken(authhook.TokenClaims{Subject: "alice"}))
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(first.Expires); left < authhook.DefaultTTL-time.Minute || left > authhook.DefaultTTL {
		t.Errorf("default time to live is %v", left)
	}
	second, err := v.Verify(t.Context(), goodToken(authhook.TokenClaims{Subject: "alice"}))
	if err != nil {
		t.Fatal(err)
	}
	if first.TokenID == "" || first.TokenID == second.TokenID {
		t.Errorf("tokens cannot be told apart: %q and %q", first.TokenID, second.TokenID)
	}

	for name, c := range map[string]authhook.TokenClaims{
		"no subject":   {},
		"bad subject":  {Subject: "a b"},
		"bad role":     {Subject: "a", Role: "root"},
		"bad group":    {Subject: "a", Groups: []string{"a/b"}},
		"bad filter":   {Subject: "a", Pub: []string{"a+"}},
		"negative ttl": {Subject: "a", TTL: -time.Second},
	} {
		if token, err := authhook.Mint(secret, c); !errors.Is(err, authhook.ErrClaims) {
			t.Errorf("%s: got %q, %v", name, token, err)
		}
	}
	if _, err := authhook.Mint(secret[:31], authhook.TokenClaims{Subject: "a"}); !errors.Is(err, authhook.ErrShortSecret) {
		t.Errorf("short secret: got %v", err)
	}
	if _, err := authhook.MintEd25519(edKey(), "", authhook.TokenClaims{Subject: "a"}); err == nil {
		t.Error("a token without a kid cannot be found by LocalKeys")
	}
}

func TestClientErrorPassesRefusalsOn(t *testing.T) {
	t.Parallel()
	want := chat.Refuse(chat.CodeMuted, "x")
	if got := authhook.ClientError(errors.Join(errors.New("internal"), want)); got != want {
		t.Errorf("got %v", got)
	}
}

// FuzzVerify feeds Verify with anything: it must not panic, must not accept what
// no configured key signed, and must not repeat the token in its error.
func FuzzVerify(f *testing.F) {
	v := newVerifier(f, authhook.VerifierConfig{
		Secret:    secret,
		LocalKeys: localKeys{"own": edKey().Public()},
	})
	good := goodToken(authhook.TokenClaims{Subject: "alice", Groups: []string{"a"}, Sub: []string{"#"}})
	parts := strings.Split(good, ".")
	for _, seed := range []string{
		"", ".", "..", "...", "a.b.c", good, good + "=", parts[0] + "." + parts[1] + ".",
		raw(`{"alg":"none"}`, claims(nil), nil), raw(`{"alg":"HS256","crit":[]}`, claims(nil), secret),
		raw(`{"alg":"EdDSA","kid":"own"}`, claims(nil), secret), "bnVsbA.bnVsbA.", "W10.W10.AA",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		id, err := v.Verify(t.Context(), token)
		if err == nil {
			// The fuzzer cannot sign, so only claims signed by us pass.
			cut := strings.LastIndexByte(token, '.')
			h := hmac.New(sha256.New, secret)
			h.Write([]byte(token[:cut]))
			if base64.RawURLEncoding.EncodeToString(h.Sum(nil)) != token[cut+1:] {
				t.Fatalf("accepted %q as %+v", token, id)
			}
			return
		}
		if id != nil {
			t.Fatalf("an identity with an error: %+v", id)
		}
		if len(token) > 40 && strings.Contains(err.Error(), token) {
			t.Fatalf("the error holds the token: %v", err)
		}
	})
}

// FuzzVerifyClaims signs anything as claims: whatever a trusted issuer writes,
// an identity that comes out keeps the rules.
func FuzzVerifyClaims(f *testing.F) {
	v := newVerifier(f, authhook.VerifierConfig{Secret: secret})
	for _, seed := range []string{
		`{"sub":"alice","exp":4000000000}`, `{"sub":"a/b","exp":1e10}`, `null`, `[]`, `{"sub":"\u0000","exp":4e9}`,
		`{"sub":"a","exp":4e9,"groups":["a","b/c"],"acl":{"pub":["#"],"sub":["+/a/#","$SYS/#"]},"role":"admin"}`,
		`{"sub":"a","exp":1e400}`, `{"sub":"a","exp":4000000000.5,"iat":null,"nbf":-0}`, `{"sub":"a","sub":"b","exp":4e9}`,
	} {
		f.Add(seed)
	}
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`))
	f.Fuzz(func(t *testing.T, body string) {
		text := header + "." + base64.RawURLEncoding.EncodeToString([]byte(body))
		h := hmac.New(sha256.New, secret)
		h.Write([]byte(text))
		id, err := v.Verify(t.Context(), text+"."+base64.RawURLEncoding.EncodeToString(h.Sum(nil)))
		if err != nil {
			return
		}
		if !chat.ValidID(id.Subject) || id.Expires.IsZero() || !time.Now().Before(id.Expires) || len(id.Groups) > authhook.MaxGroups {
			t.Fatalf("%q gave %+v", body, id)
		}
		for _, g := range id.Groups {
			if !chat.ValidID(g) {
				t.Fatalf("%q gave the group %q", body, g)
			}
		}
	})
}
