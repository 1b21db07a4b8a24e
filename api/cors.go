package api

import (
	"log/slog"
	"net/http"
	"time"

	"mynah/internal/origin"
)

// How many pages whose scripts may not read answers are logged: any page can cause as many
// as it likes.
const (
	originsAtOnce = 10
	originsEvery  = time.Minute
)

// cors lets pages of the configured origins call the API. Tokens travel in a
// header, so no credentials mode is needed. It reports whether it answered.
func (a *API) cors(w http.ResponseWriter, r *http.Request, req *request) bool {
	from := r.Header.Get("Origin")
	if from == "" {
		return false
	}
	w.Header().Add("Vary", "Origin")
	switch {
	case a.origins.Any():
		w.Header().Set("Access-Control-Allow-Origin", "*")
	case a.origins.Allow(from):
		w.Header().Set("Access-Control-Allow-Origin", from)
	default:
		// A page of our own host needs no leave.
		if host := a.source.Host(r); !origin.SameHost(from, host) {
			a.logOtherOrigin(r, req, host)
		}
		return false
	}
	w.Header().Set("Access-Control-Expose-Headers", "ETag, Location, Retry-After, X-Request-Id")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	w.Header().Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE")
	w.Header().Set("Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key, If-None-Match")
	w.Header().Set("Access-Control-Max-Age", "3600")
	w.WriteHeader(http.StatusNoContent)
	return true
}

// logOtherOrigin tells the operator, who has forgotten an origin more often than a page has
// no business here. The browser, which withholds the answer, tells the page's author little.
func (a *API) logOtherOrigin(r *http.Request, req *request, host string) {
	leftOut, ok := a.otherOrigins.Allow()
	if !ok {
		return
	}
	attrs := []slog.Attr{
		slog.String("request", req.id), slog.String("origin", origin.Printable(r.Header.Values("Origin"))),
		slog.String("host", origin.Printable([]string{host})), slog.String("address", req.address.String()),
	}
	if leftOut > 0 {
		attrs = append(attrs, slog.Int64("left_out", leftOut))
	}
	a.log.LogAttrs(r.Context(), slog.LevelWarn, "a page of an origin that is not allowed calls the API and cannot read the answer; if it is yours, name the origin in --allow-origin", attrs...)
}
