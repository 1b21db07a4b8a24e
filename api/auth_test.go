package api_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"mynah/authhook"
)

// Guards against a token that is refused and nobody knows why: the log has the reason that
// MQTT's door gives, and the answer has not. Nobody fills the log with it.
func TestWhyATokenIsRefusedIsLogged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other, err := authhook.Mint([]byte(strings.Repeat("x", 40)), authhook.TokenClaims{Subject: "anna", TTL: time.Hour})
	must(t, err)
	expired, err := authhook.Mint([]byte(secret), authhook.TokenClaims{Subject: "anna", TTL: time.Second, IssuedAt: time.Now().Add(-time.Hour)})
	must(t, err)
	for token, reason := range map[string]string{
		"nonsense": authhook.ErrMalformed.Error(),
		other:      authhook.ErrSignature.Error(),
		expired:    authhook.ErrExpired.Error(),
	} {
		r := w.do(http.MethodGet, "/v1/me", token, nil).problem(http.StatusUnauthorized, "unauthenticated")
		log := w.log.String()
		if !contains(log, `msg="token refused" request=`+r.Header.Get("X-Request-Id")) || !contains(log, reason) {
			t.Errorf("no line says %q:\n%s", reason, log)
		}
		if contains(log, token) && token != "nonsense" {
			t.Error("the log has the token")
		}
		if contains(string(r.Body), reason) {
			t.Errorf("the answer tells %q: %s", reason, r.Body)
		}
	}
	for range 300 {
		w.do(http.MethodGet, "/v1/me", "nonsense", nil).want(http.StatusUnauthorized)
	}
	if n := strings.Count(w.log.String(), `msg="token refused"`); n > 200 {
		t.Errorf("%d lines for 303 refused tokens", n)
	}
}
