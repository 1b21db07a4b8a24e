package api_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"mynah/api"
	"mynah/authhook"
	"mynah/internal/pgtest"
	"mynah/internal/waitfor"
	"mynah/people"
)

// Guards against limits that a header goes around, and against a proxy's users
// who share one limit.
func TestWhoseAddressCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	proxied := newWorld(t, func(c *api.Config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	})
	last := func(w *world, forwarded string) string {
		w.do(http.MethodGet, "/v1/sign-in", "", nil, "X-Forwarded-For", forwarded).want(http.StatusOK)
		lines := strings.Split(strings.TrimSpace(w.log.String()), "\n")
		for _, line := range slices.Backward(lines) {
			if _, address, ok := strings.Cut(line, " address="); ok {
				return strings.TrimSpace(address)
			}
		}
		return ""
	}
	// RFC 7239's header, and then that alone.
	standard := newWorld(t, func(c *api.Config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		c.ForwardedHeader = "Forwarded"
	})
	if got := last(standard, "192.0.2.1"); got != "127.0.0.1" {
		t.Errorf("the other header: counted as %s", got)
	}
	standard.do(http.MethodGet, "/v1/sign-in", "", nil, "Forwarded", `for="[2001:db8::1]:443";proto=https`).want(http.StatusOK)
	waitfor.MustHold(t, "the client by Forwarded is counted", func() bool { return contains(standard.log.String(), "address=2001:db8::1") })
	for _, c := range []struct {
		world           *world
		forwarded, want string
	}{
		{w, "192.0.2.1", "127.0.0.1"},
		{proxied, "192.0.2.1", "192.0.2.1"},
		{proxied, "198.51.100.9, 192.0.2.1", "192.0.2.1"}, // the client wrote the first
		{proxied, "192.0.2.1, 10.0.0.7", "192.0.2.1"},
		{proxied, "nonsense", "127.0.0.1"},
		{proxied, "2001:db8::1", "2001:db8::1"},
		{proxied, "203.0.113.7:51234", "203.0.113.7"}, // as Azure's gateways write it
		{proxied, "[2001:db8::1]:443", "2001:db8::1"},
		{proxied, "[2001:db8::1]", "2001:db8::1"},
	} {
		if got := last(c.world, c.forwarded); got != c.want {
			t.Errorf("X-Forwarded-For %q: counted as %s, want %s", c.forwarded, got, c.want)
		}
	}
}

func TestOrigins(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *api.Config) { c.Origins = []string{"https://app.example.com"} })
	ask := func(origin string) *reply {
		return w.do(http.MethodOptions, "/v1/me", "", nil, "Origin", origin, "Access-Control-Request-Method", "PATCH")
	}
	r := ask("https://app.example.com").want(http.StatusNoContent)
	if r.Header.Get("Access-Control-Allow-Origin") != "https://app.example.com" || r.Header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("headers: %v", r.Header)
	}
	if r := ask("https://evil.example"); r.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("another origin is let in")
	}
}

// Guards against an origin that may open a WebSocket and gets no answer from the API:
// both doors are set by one flag.
func TestOriginPatterns(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *api.Config) {
		c.Origins = []string{"https://*.example.com", "http://localhost:5173", "https://plain.org:443"}
	})
	for origin, allowed := range map[string]bool{
		"https://a.example.com":      true,
		"https://a.b.example.com":    true,
		"https://A.Example.com:443":  true,
		"https://example.com":        false,
		"https://evilexample.com":    false,
		"http://a.example.com":       false,
		"https://a.example.com:8443": false,
		"http://localhost:5173":      true,
		"http://localhost":           false,
		"https://plain.org":          true,
		"null":                       false,
		"file://":                    false,
		"https://x.example.com/path": false,
		// Mini-games on iOS; no page in a browser can have it.
		"weapp://wechat-game-runtime": true,
	} {
		got := w.do(http.MethodGet, "/v1/sign-in", "", nil, "Origin", origin).Header.Get("Access-Control-Allow-Origin")
		if want := map[bool]string{true: origin}[allowed]; got != want {
			t.Errorf("%s: allowed is %q, want %q", origin, got, want)
		}
	}
	// The operator learns which page it was; the server's own is none of them.
	if log := w.log.String(); !contains(log, "origin=https://evilexample.com") || !contains(log, "--allow-origin") {
		t.Errorf("a page that may not call is not logged:\n%s", log)
	}
	w.do(http.MethodGet, "/v1/sign-in", "", nil, "Origin", w.url).want(http.StatusOK)
	for range 100 {
		w.do(http.MethodGet, "/v1/sign-in", "", nil, "Origin", "https://flood.example").want(http.StatusOK)
	}
	if log := w.log.String(); contains(log, "origin="+w.url) || strings.Count(log, "--allow-origin") > 20 {
		t.Errorf("the log has the server's own page, or too many:\n%s", log)
	}
	hybrid := newWorld(t, func(c *api.Config) { c.Origins = []string{"file://", "null"} })
	for _, origin := range []string{"file://", "null"} {
		if got := hybrid.do(http.MethodGet, "/v1/sign-in", "", nil, "Origin", origin).Header.Get("Access-Control-Allow-Origin"); got != origin {
			t.Errorf("%s, which is named, is allowed as %q", origin, got)
		}
	}
	for _, wrong := range []string{"https://*", "https://*example.com", "https://a.*.com", "example.com", "https://x/"} {
		if err := (&api.Config{Origins: []string{wrong}}).ValidateSettings(); err == nil || !strings.Contains(err.Error(), "--allow-origin") {
			t.Errorf("%s is taken: %v", wrong, err)
		}
	}
}

// The names of media types and of authentication schemes have no case.
func TestNamesWithoutCase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.do(http.MethodPatch, "/v1/me", "", `{"name":"Anna"}`, "Content-Type", "Application/JSON; charset=UTF-8",
		"Authorization", "bearer "+w.token("anna", "")).want(http.StatusOK)
	w.do(http.MethodPatch, "/v1/me", w.token("anna", ""), `{"name":"Anna"}`, "Content-Type", "text/plain").want(http.StatusUnsupportedMediaType)
}

// Guards against numbers that come back as others, and text that is stored as U+FFFD: an
// application's 64-bit ids, and what MQTT refuses as well.
func TestExtIsKeptAsItIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.token("anna", "")
	group := w.do(http.MethodPost, "/v1/groups", anna, `{"name":"g","ext":{"n": 1}}`).want(http.StatusCreated).get("id")
	for _, path := range []string{"/v1/me", "/v1/groups/" + group} {
		const ext = `{"n": 9007199254740993, "tiny": 0.1000000000000000055511151231257827, "face": "\ud83d\ude00", "a": [{"\\ud83d": null}]}`
		w.do(http.MethodPatch, path, anna, `{"ext":`+ext+`}`).want(http.StatusOK)
		got := string(w.do(http.MethodGet, path, anna, nil).want(http.StatusOK).Body)
		for _, part := range []string{`9007199254740993`, `0.1000000000000000055511151231257827`, "😀", `\\ud83d`} {
			if !strings.Contains(got, part) {
				t.Errorf("%s: %s is lost: %s", path, part, got)
			}
		}
		for _, bad := range []string{
			`{"a":"\ud83d"}`, `{"a":"\ude00"}`, `{"a":"\ud83dx\ude00"}`, `{"a":"\ud83d\ud83d\ude00"}`, `{"\udc00":1}`, "{\"a\":\"\xff\"}",
			`{"a":"\u0000"}`, `{"a":1e400}`, `{"a":1e-20000}`, `{"a":[` + strings.Repeat("1e308,", 200) + `0]}`,
			`{"a":"` + strings.Repeat("x", 17000) + `"}`, `[]`, `"x"`, `1`,
		} {
			if r := w.do(http.MethodPatch, path, anna, `{"ext":`+bad+`}`); r.Status/100 != 4 {
				t.Errorf("%s: ext %.40s: status %d: %.200s", path, bad, r.Status, r.Body)
			}
		}
	}
}

// A PostgreSQL that takes nothing, a standby after a failover for example, is away: who
// calls is asked to try again.
func TestReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.token("anna", "")
	w.do(http.MethodGet, "/v1/me", anna, nil).want(http.StatusOK)
	w.exec(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`)
	w.db.Reset()
	if r := w.do(http.MethodPost, "/v1/groups", anna, `{"name":"g"}`).problem(http.StatusServiceUnavailable, "unavailable"); r.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	w.do(http.MethodGet, "/v1/me", anna, nil).want(http.StatusOK)
}

// The log tells what happened and gives nothing away: no ids in paths, no query.
func TestLogLine(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.do(http.MethodGet, "/v1/people/somebody", w.token("anna", ""), nil).want(http.StatusOK)
	w.do(http.MethodGet, "/v1/sign-in?access_token=hunter2", "", nil).problem(http.StatusUnprocessableEntity, "invalid")
	waitfor.MustHold(t, "the request is logged", func() bool { return contains(w.log.String(), r.Header.Get("X-Request-Id")) })
	log := w.log.String()
	if !contains(log, `route="GET /v1/people/{id}"`) || !contains(log, "subject=anna") || contains(log, "somebody") || contains(log, "hunter2") {
		t.Errorf("log:\n%s", log)
	}
}

func TestStartAndStopMayBeRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	must(t, w.api.Start(t.Context()))
	w.do(http.MethodGet, "/v1/sign-in", "", nil).want(http.StatusOK)
	must(t, w.api.Stop(t.Context()))
	must(t, w.api.Stop(t.Context()))
	w.do(http.MethodGet, "/v1/sign-in", "", nil).problem(http.StatusServiceUnavailable, "unavailable")
	must(t, w.api.Start(t.Context()))
	w.do(http.MethodGet, "/v1/sign-in", "", nil).want(http.StatusOK)
}

func TestConfigNamesTheFlag(t *testing.T) {
	t.Parallel()
	for flag, c := range map[string]api.Config{
		"--public-url \"":         {PublicURL: "chat.example.com"},
		"--public-url is missing": {People: people.Config{OIDC: []people.OIDC{{Name: "a", Issuer: "https://x", ClientID: "c"}}}},
		"--allow-origin":          {Origins: []string{"https://x/path"}},
		"required":                {},
	} {
		if _, err := api.New(c); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

// brokenVerifier panics, as a bug would.
type brokenVerifier struct{}

func (brokenVerifier) Verify(context.Context, string) (*authhook.Identity, error) { panic("a bug") }

func TestPanicIsAnswered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *api.Config) { c.Verifier = brokenVerifier{} })
	r := w.do(http.MethodGet, "/v1/me", "x", nil).want(http.StatusInternalServerError)
	if r.Header.Get("Content-Type") != "application/problem+json" || contains(string(r.Body), "a bug") {
		t.Errorf("answer: %s", r.Body)
	}
	if !contains(w.log.String(), "a bug") {
		t.Error("not logged")
	}
}

// PostgreSQL goes away and comes back. Meanwhile every call says that it is to be
// tried again, and tokens are still verified (the broker uses the same keys).
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	w := newWorldOn(t, server.URL())
	anna := w.register("anna")
	server.Kill()
	// The postmaster is dead; a backend may answer once more before it notices.
	waitfor.MustHold(t, "the database is away", func() bool {
		return w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).Status != http.StatusOK
	})
	r := w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).problem(http.StatusServiceUnavailable, "unavailable")
	if r.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	w.refresh(anna.RefreshToken).problem(http.StatusServiceUnavailable, "unavailable")
	w.do(http.MethodPost, "/v1/accounts", "", map[string]any{"id": "bert", "password": goodPassword}).problem(http.StatusServiceUnavailable, "unavailable")
	if _, err := w.verifier().Verify(t.Context(), anna.AccessToken); err != nil {
		t.Errorf("the token is not verified while the database is away: %v", err)
	}
	server.Start()
	waitfor.MustHold(t, "the API answers again", func() bool {
		return w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).Status == http.StatusOK
	})
	w.refresh(anna.RefreshToken).want(http.StatusOK)
}

// A request that takes too long is given up.
func TestTimeout(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *api.Config) { c.Timeout = time.Second })
	anna := w.token("anna", "")
	tx, err := w.db.Begin(t.Context())
	must(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }() // if the test fails before
	_, err = tx.Exec(t.Context(), `LOCK TABLE accounts`)
	must(t, err)
	w.do(http.MethodGet, "/v1/me", anna, nil).problem(http.StatusServiceUnavailable, "unavailable")
	must(t, tx.Rollback(context.Background()))
	waitfor.MustHold(t, "the request is answered once the table is free", func() bool {
		return w.do(http.MethodGet, "/v1/me", anna, nil).Status == http.StatusOK
	})
}

// BenchmarkMe is a call with a token: verification, admission, one row.
func BenchmarkMe(b *testing.B) {
	w := newWorld(b, func(c *api.Config) { c.Log = slog.New(slog.DiscardHandler) })
	token := w.register("anna").AccessToken
	handler := w.api.Handler()
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/v1/me", http.NoBody)
		r.Header.Set("Authorization", "Bearer "+token)
		out := httptest.NewRecorder()
		if handler.ServeHTTP(out, r); out.Code != http.StatusOK {
			b.Fatal(fmt.Sprint(out.Code, out.Body))
		}
	}
}
