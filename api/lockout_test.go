package api_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"testing"

	"mynah/api"
)

// Guards against strangers who keep a person out by guessing: tries from where the person
// has signed in before, and from devices that they have used, are counted apart.
func TestStrangersLockNobodyOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *api.Config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		c.AddressLimits = 100
	})
	const password = "correct horse battery"
	try := func(address, password, device string) *reply {
		t.Helper()
		body := map[string]string{"id": "anna", "password": password}
		if device != "" {
			body["device_token"] = device
		}
		return w.do(http.MethodPost, "/v1/sessions/password", "", body, "X-Forwarded-For", address)
	}
	registered := w.do(http.MethodPost, "/v1/accounts", "", map[string]string{"id": "anna", "password": password}, "X-Forwarded-For", "198.51.100.1").want(http.StatusCreated)
	phone := registered.get("device_token")
	try("2001:db8:1:2::7", password, "").want(http.StatusCreated)

	// Guesses from twelve addresses use up what all strangers have.
	for i := range 12 {
		for range 10 {
			if got := try(fmt.Sprintf("203.0.113.%d", i), "a guess", ""); got.Status != http.StatusUnauthorized && got.Status != http.StatusTooManyRequests {
				t.Fatalf("%d %s", got.Status, got.Body)
			}
		}
	}
	try("203.0.113.99", password, "").problem(http.StatusTooManyRequests, "rate_limited")
	try("203.0.113.99", password, "dt_invented").problem(http.StatusTooManyRequests, "rate_limited")
	bert := w.do(http.MethodPost, "/v1/accounts", "", map[string]string{"id": "bert", "password": password}, "X-Forwarded-For", "203.0.113.99").want(http.StatusCreated).get("device_token")
	try("203.0.113.99", password, bert).problem(http.StatusTooManyRequests, "rate_limited") // another's device

	// The person comes in: from an address of theirs (an IPv6 one is its /64), and with
	// their phone from wherever they are.
	try("198.51.100.1", password, "").want(http.StatusCreated)
	try("2001:db8:1:2:3::4", password, "").want(http.StatusCreated)
	abroad := try("192.0.2.55", password, phone).want(http.StatusCreated)
	if abroad.get("device_token") != phone {
		t.Errorf("the phone is given another token: %q", abroad.get("device_token"))
	}
	try("192.0.2.55", password, "").want(http.StatusCreated) // known now
	// Who is signed in changes the password.
	w.do(http.MethodPut, "/v1/me/password", abroad.get("access_token"), map[string]string{"current": password, "new": "another horse battery"}).want(http.StatusNoContent)

	// What is known has limits of its own: a stolen phone, or a neighbour.
	for range 10 {
		try("203.0.113.200", "a guess", phone).problem(http.StatusUnauthorized, "unauthenticated")
		try("198.51.100.1", "a guess", "").problem(http.StatusUnauthorized, "unauthenticated")
	}
	try("203.0.113.200", "another horse battery", phone).problem(http.StatusTooManyRequests, "rate_limited")
	try("198.51.100.1", "another horse battery", "").problem(http.StatusTooManyRequests, "rate_limited")
	try("2001:db8:1:2::7", "another horse battery", "").want(http.StatusCreated)
}

// What is stored of places is bounded, says no address, and goes with the account.
func TestPlacesAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *api.Config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		c.AddressLimits = 100
	})
	const password = "correct horse battery"
	token := w.do(http.MethodPost, "/v1/accounts", "", map[string]string{"id": "anna", "password": password}).want(http.StatusCreated).get("access_token")
	w.do(http.MethodPost, "/v1/accounts", "", map[string]string{"id": "bert", "password": password}).want(http.StatusCreated)
	for i := range 30 {
		w.do(http.MethodPost, "/v1/sessions/password", "", map[string]string{"id": "anna", "password": password}, "X-Forwarded-For", fmt.Sprintf("198.51.100.%d", i)).want(http.StatusCreated)
	}
	if n := len(w.column(`SELECT place::text FROM known_places WHERE account = 'anna'`)); n != 50 {
		t.Errorf("%d places, want 50", n)
	}
	if n := len(w.column(`SELECT a.place::text FROM known_places a JOIN known_places b USING (place) WHERE a.account < b.account`)); n != 0 {
		t.Error("two people at one address have a place in common")
	}
	w.exec(`UPDATE known_places SET used_at = now() - interval '181 days' WHERE account = 'bert'`)
	must(t, w.api.Sweep(t.Context()))
	w.do(http.MethodDelete, "/v1/me", token, nil).want(http.StatusNoContent)
	if left := w.column(`SELECT account FROM known_places`); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
