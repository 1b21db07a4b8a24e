package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"mynah"
	"mynah/api"
	"mynah/authhook"
	"mynah/internal/leak"
	"mynah/internal/pgtest"
	"mynah/people"
)

func TestMain(m *testing.M) { leak.Main(m) }

// secret signs tokens of "another issuer".
const secret = "a secret of at least thirty-two bytes"

// world is an API on a database of its own.
type world struct {
	tb   testing.TB
	url  string
	db   *pgxpool.Pool
	api  *api.API
	keys *people.Keys
	http *http.Client
	log  *logBook
}

// newWorld starts an API. configure may change its configuration first.
func newWorld(tb testing.TB, configure ...func(*api.Config)) *world {
	tb.Helper()
	return newWorldOn(tb, pgtest.New(tb), configure...)
}

// newWorldOn starts an API on the database with the address.
func newWorldOn(tb testing.TB, database string, configure ...func(*api.Config)) *world {
	tb.Helper()
	ctx := context.Background()
	config, err := pgxpool.ParseConfig(database)
	must(tb, err)
	config.MaxConns = 10 // tests hold some of them
	pool, err := pgxpool.NewWithConfig(ctx, config)
	must(tb, err)
	tb.Cleanup(pool.Close)
	w := &world{tb: tb, db: pool, log: &logBook{}}
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.keys = people.NewKeys(pool, people.KeysConfig{Secret: []byte(secret), Log: log})
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: []byte(secret), LocalKeys: w.keys})
	must(tb, err)
	tb.Cleanup(verifier.Close)
	cfg := api.Config{DB: pool, Verifier: verifier, Keys: w.keys, Log: log, Protocol: mynah.Protocol}
	server := httptest.NewUnstartedServer(nil)
	cfg.PublicURL = "http://" + server.Listener.Addr().String()
	for _, c := range configure {
		c(&cfg)
	}
	w.api, err = api.New(cfg)
	must(tb, err)
	must(tb, w.api.Start(ctx))
	tb.Cleanup(func() {
		must(tb, w.api.Stop(ctx))
		must(tb, w.keys.Stop(ctx))
	})
	server.Config.Handler = w.api.Handler()
	server.Start()
	tb.Cleanup(server.Close)
	w.url, w.http = server.URL, server.Client()
	w.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return w
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// token returns a token of another issuer.
func (w *world) token(subject string, role authhook.Role) string {
	w.tb.Helper()
	token, err := authhook.Mint([]byte(secret), authhook.TokenClaims{Subject: subject, Role: role, TTL: time.Hour})
	must(w.tb, err)
	return token
}

// verifier is a broker's: it takes what the API's keys sign.
func (w *world) verifier() *authhook.Verifier {
	w.tb.Helper()
	v, err := authhook.NewVerifier(authhook.VerifierConfig{LocalKeys: w.keys})
	must(w.tb, err)
	w.tb.Cleanup(v.Close)
	return v
}

// reply is an answer, read whole.
type reply struct {
	tb     testing.TB
	what   string
	Status int
	Header http.Header
	Body   []byte
}

// do calls the API. body is JSON text, or a value to be rendered, or nil.
// headers are names and values in turn.
func (w *world) do(method, path, token string, body any, headers ...string) *reply {
	w.tb.Helper()
	var reader io.Reader = http.NoBody
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	default:
		text, err := json.Marshal(b)
		must(w.tb, err)
		reader = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, w.url+path, reader)
	must(w.tb, err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := w.http.Do(req)
	must(w.tb, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	must(w.tb, err)
	r := &reply{tb: w.tb, what: method + " " + path, Status: resp.StatusCode, Header: resp.Header, Body: text}
	if r.Header.Get("Content-Type") == "application/problem+json" {
		w.documented(method, path, r.Status, r.get("code"))
	}
	return r
}

// want fails the test unless the answer has the status, and returns it.
func (r *reply) want(status int) *reply {
	r.tb.Helper()
	if r.Status != status {
		r.tb.Fatalf("%s: status %d, want %d: %s", r.what, r.Status, status, r.Body)
	}
	return r
}

// problem fails the test unless the answer is a problem document with the status
// and the code.
func (r *reply) problem(status int, code string) *reply {
	r.tb.Helper()
	r.want(status)
	if got := r.Header.Get("Content-Type"); got != "application/problem+json" {
		r.tb.Fatalf("%s: Content-Type %q: %s", r.what, got, r.Body)
	}
	if got := r.get("code"); got != code {
		r.tb.Fatalf("%s: code %q, want %q: %s", r.what, got, code, r.Body)
	}
	return r
}

// get returns the string at the path of a JSON answer, "" if there is none;
// names are separated by dots.
func (r *reply) get(path string) string {
	r.tb.Helper()
	var v any
	if err := json.Unmarshal(r.Body, &v); err != nil {
		r.tb.Fatalf("%s: %v: %s", r.what, err, r.Body)
	}
	for name := range strings.SplitSeq(path, ".") {
		object, _ := v.(map[string]any)
		v = object[name]
	}
	text, _ := v.(string)
	return text
}

// into decodes the answer.
func (r *reply) into(v any) *reply {
	r.tb.Helper()
	if err := json.Unmarshal(r.Body, v); err != nil {
		r.tb.Fatalf("%s: %v: %s", r.what, err, r.Body)
	}
	return r
}

// exec runs SQL behind the API's back.
func (w *world) exec(sql string, args ...any) {
	w.tb.Helper()
	_, err := w.db.Exec(context.Background(), sql, args...)
	must(w.tb, err)
}

// logBook keeps what was logged, so that tests can look for secrets in it.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBook) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// timed returns how long fn took, in milliseconds.
func timed(fn func()) float64 {
	began := time.Now()
	fn()
	return float64(time.Since(began).Microseconds()) / 1000
}
