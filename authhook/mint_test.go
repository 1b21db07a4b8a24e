package authhook_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"mynah/authhook"
)

// Guards against dates with fractions in tokens of ours: libraries of other languages
// refuse exp 1795928136.794. It is never later than asked where the time is long, never earlier where it is short.
func TestMintedDatesAreWhole(t *testing.T) {
	t.Parallel()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		issued time.Time
		ttl    time.Duration
		exp    string
	}{
		{time.Unix(1795928136, 794e6), time.Minute, "1795928196"},
		{time.Unix(1795928136, 1), 59 * time.Second, "1795928196"},
		{time.Unix(1795928136, 0), time.Minute, "1795928196"},
		{time.Unix(1795928136, 0), time.Millisecond, "1795928137"},
		{time.Unix(1795928136, 999999999), 10 * 365 * 24 * time.Hour, "2111288136"},
	} {
		claims := authhook.TokenClaims{Subject: "alice", IssuedAt: c.issued, TTL: c.ttl}
		for name, mint := range map[string]func() (string, error){
			"secret": func() (string, error) { return authhook.Mint(secret, claims) },
			"key":    func() (string, error) { return authhook.MintEd25519(private, "k", claims) },
		} {
			token, err := mint()
			if err != nil {
				t.Fatal(err)
			}
			payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
			if err != nil {
				t.Fatal(err)
			}
			var dates struct {
				Iat, Exp json.Number
			}
			if err := json.Unmarshal(payload, &dates); err != nil {
				t.Fatal(err)
			}
			if dates.Iat != "1795928136" || dates.Exp.String() != c.exp {
				t.Errorf("%s, %v for %v: iat %s, exp %s, want %s", name, c.issued, c.ttl, dates.Iat, dates.Exp, c.exp)
			}
		}
	}
}

// The dates of others are taken with a fraction and without.
func TestDatesOfOthers(t *testing.T) {
	t.Parallel()
	now := time.Unix(1795928136, 500e6)
	v, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: secret, Leeway: -1, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	for name, c := range map[string]struct {
		iat, nbf, exp any
		ok            bool
	}{
		"whole":                 {1795928130, 1795928136, 1795928137, true},
		"with fractions":        {1795928136.25, 1795928136.5, 1795928136.75, true},
		"expired by a fraction": {1795928136.25, 1795928136.25, 1795928136.375, false},
		"early by a fraction":   {1795928136.25, 1795928136.75, 1795928137.5, false},
	} {
		token := sign(jwt.SigningMethodHS256, secret, "", jwt.MapClaims{"sub": "alice", "iat": c.iat, "nbf": c.nbf, "exp": c.exp})
		if _, err := v.Verify(t.Context(), token); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
