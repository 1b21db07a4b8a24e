package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"mynah/chat"
	"mynah/internal/ratelimit"
)

// request is what the API notes about a request under way.
type request struct {
	id      string
	address netip.Addr
	pattern string   // the route, without the ids and the query that were put into it
	subject string   // set once the token is verified
	key     string   // Idempotency-Key
	token   string   // bearer token, "" if there is none
	refunds []func() // take back what was counted
}

// count counts n for the key.
func (r *request) count(l *ratelimit.Limiter, key string, n int) error {
	if err := l.AllowN(key, n); err != nil {
		return err
	}
	r.refunds = append(r.refunds, func() { l.RefundN(key, n) })
	return nil
}

// refundIfFailed takes back what was counted if the server has failed: who is asked to try
// again must not be refused for having asked too often.
func (r *request) refundIfFailed(p *Problem) {
	if p.Status < http.StatusInternalServerError {
		return
	}
	for _, back := range r.refunds {
		back()
	}
	r.refunds = nil
}

type requestKey struct{}

func requestOf(ctx context.Context) *request {
	r, ok := ctx.Value(requestKey{}).(*request)
	if !ok {
		panic("api: a handler runs outside of Handler")
	}
	return r
}

func requestID(ctx context.Context) string {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r.id
	}
	return ""
}

// serve is the outermost layer: every request gets an id, a deadline, a line in
// the log, and an answer even if the handler panics. The log has the route's
// pattern, never the path, the query, a header or a body.
func (a *API) serve(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	req := &request{id: rand.Text(), address: a.clientAddress(r)}
	ctx, cancel := context.WithTimeout(context.WithValue(r.Context(), requestKey{}, req), a.cfg.Timeout)
	defer cancel()
	r = r.WithContext(ctx)
	out := &recorder{ResponseWriter: w}

	h := out.Header()
	h.Set("X-Request-Id", req.id)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	defer func() {
		if reason := recover(); reason != nil {
			if reason == http.ErrAbortHandler { //nolint:errorlint,err113 // net/http says to compare it
				panic(reason)
			}
			a.log.LogAttrs(ctx, slog.LevelError, "request panicked", slog.String("request", req.id),
				slog.Any("reason", reason), slog.String("stack", string(debug.Stack())))
			out.reset()
			a.writeProblem(out, r, statusProblem(http.StatusInternalServerError, ""))
		}
		out.finish(r)
		a.log.LogAttrs(ctx, slog.LevelInfo, "http", slog.String("request", req.id), slog.String("method", r.Method),
			slog.String("route", req.pattern), slog.Int("status", out.status), slog.Duration("took", time.Since(began)),
			slog.String("subject", req.subject), slog.String("address", req.address.String()))
	}()
	a.route(out, r, req)
}

// route finds the handler. net/http's mux answers what it does not know in plain
// text; clients of an API want a problem document there, too.
func (a *API) route(w *recorder, r *http.Request, req *request) {
	if a.cors(w, r, req) {
		return
	}
	if !cleanText(r.URL.Path) || !cleanQuery(r.URL.RawQuery) {
		a.writeProblem(w, r, statusProblem(http.StatusBadRequest, "The address holds characters that nothing can have: U+0000 or bytes that are not UTF-8."))
		return
	}
	// The names of schemes and of media types have no case: RFC 9110 sections 11.1, 8.3.1.
	if scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Bearer") {
		req.token = strings.TrimSpace(token)
	}
	if media, parameters, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); media != "" {
		r.Header.Set("Content-Type", strings.TrimSuffix(strings.ToLower(media)+";"+parameters, ";"))
	}
	req.key = r.Header.Get("Idempotency-Key")
	if !a.ready.Load() {
		a.writeProblem(w, r, newProblem(chat.CodeUnavailable, "The server is starting or stopping. Try again."))
		return
	}
	handler, pattern := a.mux.Handler(r)
	if req.pattern = pattern; pattern == "" {
		var asked recorder                                    // the mux's own answer: 404, or 405 with Allow
		asked.ResponseWriter = discard{header: http.Header{}} // nothing is sent: finish is not called
		handler.ServeHTTP(&asked, r)
		detail := "There is nothing here. See /docs."
		if asked.status == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", asked.Header().Get("Allow"))
			detail = "This address knows other methods only: " + asked.Header().Get("Allow") + "."
		} else {
			asked.status = http.StatusNotFound
		}
		a.writeProblem(w, r, statusProblem(asked.status, detail))
		return
	}
	a.mux.ServeHTTP(w, r)
}

func (a *API) writeProblem(w http.ResponseWriter, r *http.Request, p *Problem) {
	maps.Copy(w.Header(), p.GetHeaders())
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	if err := encodeJSON(w, p); err != nil {
		a.log.LogAttrs(r.Context(), slog.LevelDebug, "client gone", slog.String("request", requestID(r.Context())), slog.Any("error", err))
	}
}

// clientAddress is the peer's address, or what a trusted proxy says of it.
func (a *API) clientAddress(r *http.Request) netip.Addr {
	if client := a.source.Client(r).Addr(); client.IsValid() {
		return client
	}
	return netip.IPv4Unspecified() // a Unix socket or a test: all share one limit
}

// cleanText reports whether PostgreSQL's text can hold s.
func cleanText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}

// cleanQuery reports whether the decoded query is clean.
func cleanQuery(raw string) bool {
	text, err := url.QueryUnescape(raw)
	return err == nil && cleanText(text)
}

// recorder keeps an answer back until the handler is done: they are pages of
// bounded size. So a handler that panics half way can still be answered with a
// problem, a client that is gone is nobody's error, and one that polls with
// If-None-Match can be told that nothing has changed (RFC 9110 section 13.1.2).
type recorder struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the status.
func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

// Write keeps b.
func (w *recorder) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}

// reset forgets the answer, so that another can be given.
func (w *recorder) reset() {
	w.status = 0
	w.body.Reset()
}

// finish sends the answer.
func (w *recorder) finish(r *http.Request) {
	w.WriteHeader(http.StatusOK)
	if w.status == http.StatusOK && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		if w.Header().Get("Cache-Control") == "no-store" {
			w.Header().Set("Cache-Control", "private, no-cache")
		}
		sum := sha256.Sum256(w.body.Bytes())
		tag := `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`
		w.Header().Set("ETag", tag)
		if matches(r.Header.Get("If-None-Match"), tag) {
			w.status = http.StatusNotModified
			w.Header().Del("Content-Type")
			w.body.Reset()
		}
	}
	w.ResponseWriter.WriteHeader(w.status)
	if r.Method != http.MethodHead {
		_, _ = w.ResponseWriter.Write(w.body.Bytes()) // the client is gone: nobody to tell
	}
}

// matches compares weakly, as If-None-Match asks for.
func matches(header, tag string) bool {
	for one := range strings.SplitSeq(header, ",") {
		one = strings.TrimSpace(one)
		if one == "*" || strings.TrimPrefix(one, "W/") == tag {
			return true
		}
	}
	return false
}

// discard is a ResponseWriter that goes nowhere.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// validKey is what an Idempotency-Key may be: 1–128 visible ASCII characters.
func validKey(key string) bool {
	return len(key) >= 1 && len(key) <= 128 && !strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c > '~' })
}

var errBadKey = chat.Refuse(chat.CodeInvalid, "An Idempotency-Key is 1–128 visible ASCII characters; a UUID is best.")
