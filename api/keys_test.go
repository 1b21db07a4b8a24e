package api_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"mynah/authhook"
	"mynah/internal/waitfor"
	"mynah/people"
)

func newKeys(w *world, secret string) *people.Keys {
	return people.NewKeys(w.db, people.KeysConfig{Secret: []byte(secret), Log: slog.New(slog.DiscardHandler)})
}

func TestSigningKeyIsSealed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var sealed bool
	var length int
	must(t, w.db.QueryRow(t.Context(), `SELECT sealed, length(private) FROM signing_keys`).Scan(&sealed, &length))
	if !sealed || length <= ed25519.SeedSize {
		t.Errorf("the private key is stored as it is (%d bytes)", length)
	}
	if err := newKeys(w, "another secret").Start(t.Context()); !errors.Is(err, people.ErrKeySecret) {
		t.Errorf("with another secret: %v", err)
	}
	// The remedy that the error names, and the one for a database of one's own.
	other := newKeys(w, "another secret")
	if _, err := other.Rotate(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	must(t, other.Start(t.Context()))
	must(t, other.Stop(t.Context()))
	third := people.NewKeys(w.db, people.KeysConfig{Secret: []byte("a third"), ReplaceSealed: true, Log: slog.New(slog.DiscardHandler)})
	must(t, third.Start(t.Context()))
	must(t, third.Stop(t.Context()))
	if _, _, err := third.Sign(authhook.TokenClaims{Subject: "anna"}); err != nil {
		t.Error(err)
	}
}

// Guards against two processes that start on an empty database and sign with
// different keys, and against one that does not learn of the other's rotation.
func TestTwoProcessesShareKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := newKeys(w, secret)
	must(t, other.Start(t.Context()))
	t.Cleanup(func() { must(t, other.Stop(context.Background())) })
	anna := w.register("anna")
	v, err := authhook.NewVerifier(authhook.VerifierConfig{LocalKeys: other})
	must(t, err)
	t.Cleanup(v.Close)
	if _, err := v.Verify(t.Context(), anna.AccessToken); err != nil {
		t.Fatalf("the other process refuses the token: %v", err)
	}
	kid, err := w.keys.Rotate(t.Context(), false)
	must(t, err)
	bert := w.register("bert")
	waitfor.MustHold(t, "the other process finds the new key", func() bool {
		_, ok := other.PublicKey(t.Context(), kid)
		return ok
	})
	for _, token := range []string{anna.AccessToken, bert.AccessToken} {
		if _, err := v.Verify(t.Context(), token); err != nil {
			t.Errorf("after the rotation: %v", err)
		}
	}
	// A retired key has no private part any more, and is forgotten once the
	// last token that it signed has expired.
	var retired int
	must(t, w.db.QueryRow(t.Context(), `SELECT count(*) FROM signing_keys
		WHERE retired_at IS NOT NULL AND private IS NULL AND expires_at BETWEEN now() + interval '15 minutes' AND now() + interval '1 hour'`).Scan(&retired))
	if retired != 1 {
		t.Errorf("%d keys retired as they should", retired)
	}
}

// What was kept verifies before the database has answered, and nothing else does: not a
// file that is damaged, not a key that is none of ours.
func TestRecallKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.register("anna")
	file := filepath.Join(t.TempDir(), "below", "keys.json")
	cfg := people.KeysConfig{Secret: []byte(secret), File: file, Log: slog.New(slog.DiscardHandler)}
	recall := func() (*people.Keys, int, error) {
		k := people.NewKeys(w.db, cfg)
		n, err := k.LoadFile()
		return k, n, err
	}
	believes := func(k *people.Keys) bool {
		v, err := authhook.NewVerifier(authhook.VerifierConfig{LocalKeys: k})
		must(t, err)
		defer v.Close()
		// The database is there: without its leave no key may be read from it.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = v.Verify(ctx, anna.AccessToken)
		return err == nil
	}
	if k, n, err := recall(); n != 0 || err != nil || believes(k) {
		t.Fatalf("without a file: %d keys, %v", n, err)
	}
	first := people.NewKeys(w.db, cfg)
	must(t, first.Start(t.Context()))
	must(t, first.Stop(t.Context()))
	good, err := os.ReadFile(file)
	must(t, err)
	k, n, err := recall()
	if n != 1 || err != nil || !believes(k) {
		t.Fatalf("from the file: %d keys, %v", n, err)
	}
	if _, _, err := k.Sign(authhook.TokenClaims{Subject: "anna"}); !errors.Is(err, people.ErrKeySecret) {
		t.Errorf("sign with public keys: %v", err)
	}
	for name, content := range map[string]string{
		"empty": "", "cut": string(good[:len(good)/2]), "no key": strings.ReplaceAll(string(good), `"x":"`, `"x":"A`),
		"another kind": strings.ReplaceAll(string(good), "OKP", "EC"), "no id": strings.ReplaceAll(string(good), `"kid"`, `"id"`),
	} {
		must(t, os.WriteFile(file, []byte(content), 0o600))
		if k, n, err := recall(); n != 0 || err == nil || !strings.Contains(err.Error(), file) || believes(k) {
			t.Errorf("%s: %d keys, %v", name, n, err)
		}
	}

	// A reading of other keys replaces the file.
	must(t, os.WriteFile(file, good, 0o600))
	second := people.NewKeys(w.db, cfg)
	_, err = second.Rotate(t.Context(), true)
	must(t, err)
	if k, n, err := recall(); n != 1 || err != nil || believes(k) {
		t.Errorf("after a key was distrusted: %d keys, %v", n, err)
	}
}

// signs makes a device that signs its own tokens.
func (w *world) signs(id string, jwk map[string]any) (kid string) {
	w.tb.Helper()
	return w.do(http.MethodPost, "/v1/devices", w.token("boss", authhook.RoleAdmin),
		map[string]any{"id": id, "groups": []string{"g1"}, "acl_pub": []string{"meters/#"}, "key": jwk}).want(http.StatusCreated).get("credential.kid")
}

func own(tb testing.TB, method jwt.SigningMethod, key crypto.PrivateKey, kid string, claims jwt.MapClaims) string {
	tb.Helper()
	token := jwt.NewWithClaims(method, claims)
	token.Header["kid"] = kid
	signed, err := token.SignedString(key)
	must(tb, err)
	return signed
}

// A device's key is for that device alone: with it nobody becomes somebody else,
// an admin, or a member of more groups.
func TestDeviceKeySignsForItsDeviceOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.token("boss", authhook.RoleAdmin)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	kid := w.signs("meter", map[string]any{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(public)})
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	point, err := curve.PublicKey.Bytes()
	must(t, err)
	kid2 := w.signs("pump", map[string]any{
		"kty": "EC", "crv": "P-256", "x": base64.RawURLEncoding.EncodeToString(point[1:33]), "y": base64.RawURLEncoding.EncodeToString(point[33:]),
	})
	exp := time.Now().Add(time.Hour).Unix()
	v := w.verifier()
	id, err := v.Verify(t.Context(), own(t, jwt.SigningMethodEdDSA, private, kid, jwt.MapClaims{
		"sub": "meter", "exp": exp, "role": "admin", "groups": []string{"g1", "secret"}, "acl": map[string]any{"sub": []string{"#"}},
	}))
	must(t, err)
	if id.Role != authhook.RoleDevice || len(id.Groups) != 1 || id.Groups[0] != "g1" || len(id.Sub) != 0 || len(id.Pub) != 1 || id.Session != kid {
		t.Errorf("what the device says of itself is believed: %+v", id)
	}
	if _, err := v.Verify(t.Context(), own(t, jwt.SigningMethodES256, curve, kid2, jwt.MapClaims{"sub": "pump", "exp": exp})); err != nil {
		t.Errorf("P-256: %v", err)
	}
	for name, token := range map[string]string{
		"another subject":     own(t, jwt.SigningMethodEdDSA, private, kid, jwt.MapClaims{"sub": "pump", "exp": exp}),
		"an admin's subject":  own(t, jwt.SigningMethodEdDSA, private, kid, jwt.MapClaims{"sub": "boss", "role": "admin", "exp": exp}),
		"another's key id":    own(t, jwt.SigningMethodEdDSA, private, kid2, jwt.MapClaims{"sub": "pump", "exp": exp}),
		"an unknown key id":   own(t, jwt.SigningMethodEdDSA, private, "device.unknown", jwt.MapClaims{"sub": "meter", "exp": exp}),
		"no expiry":           own(t, jwt.SigningMethodEdDSA, private, kid, jwt.MapClaims{"sub": "meter"}),
		"another key's bytes": own(t, jwt.SigningMethodES256, curve, kid, jwt.MapClaims{"sub": "meter", "exp": exp}),
	} {
		if _, err := v.Verify(t.Context(), token); err == nil {
			t.Errorf("%s: accepted", name)
		}
		w.do(http.MethodGet, "/v1/me", token, nil).problem(http.StatusUnauthorized, "unauthenticated")
	}
	// Disabling it, or giving it another key, refuses the key at once.
	good := own(t, jwt.SigningMethodEdDSA, private, kid, jwt.MapClaims{"sub": "meter", "exp": exp})
	w.do(http.MethodGet, "/v1/me", good, nil).want(http.StatusOK)
	w.do(http.MethodPost, "/v1/devices/meter/disable", admin, nil).want(http.StatusNoContent)
	if _, err := v.Verify(t.Context(), good); err == nil {
		t.Error("disabled, and accepted")
	}
	w.do(http.MethodPost, "/v1/devices/meter/enable", admin, nil).want(http.StatusNoContent)
	w.do(http.MethodGet, "/v1/me", good, nil).want(http.StatusOK)
	w.do(http.MethodPost, "/v1/devices/meter/credential", admin, map[string]any{"days": 1}).want(http.StatusCreated)
	if _, err := v.Verify(t.Context(), good); err == nil {
		t.Error("replaced, and accepted")
	}
	var ended int
	must(t, w.db.QueryRow(t.Context(), `SELECT count(*) FROM changes WHERE kind = 'disabled' AND subject = 'meter' AND session = $1`, kid).Scan(&ended))
	if ended != 1 {
		t.Errorf("%d changes tell that what the key opened ends, want 1", ended)
	}
}

func TestDeviceKeysThatAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.token("boss", authhook.RoleAdmin)
	x := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	for name, jwk := range map[string]map[string]any{
		"private":             {"kty": "OKP", "crv": "Ed25519", "x": x, "d": x},
		"off the curve":       {"kty": "EC", "crv": "P-256", "x": x, "y": x},
		"short":               {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
		"symmetric":           {"kty": "oct", "crv": "P-256", "x": x},
		"of mixed kinds":      {"kty": "OKP", "crv": "P-256", "x": x},
		"not base64url":       {"kty": "OKP", "crv": "Ed25519", "x": "****"},
		"with a y it has not": {"kty": "OKP", "crv": "Ed25519", "x": x, "y": x},
	} {
		r := w.do(http.MethodPost, "/v1/devices", admin, map[string]any{"id": "meter", "key": jwk})
		if r.Status != http.StatusUnprocessableEntity {
			t.Errorf("a key that is %s: %d %s", name, r.Status, r.Body)
		}
	}
	w.do(http.MethodPost, "/v1/devices", admin, map[string]any{"id": "meter", "acl_sub": []string{"a/#/b"}}).problem(http.StatusUnprocessableEntity, "invalid")
}
