package api

import (
	"net/http"
	"time"
)

// limits are the rates of what can be tried from outside, by address. What
// concerns one target (an account, a phone number) is counted in accounts.
type limits struct {
	signIn, register, codes, refresh *limiter
}

func newLimits(now func() time.Time) limits {
	return limits{
		signIn:   newLimiter(60, 15*time.Minute, now),
		register: newLimiter(20, time.Hour, now),
		codes:    newLimiter(20, time.Hour, now),
		refresh:  newLimiter(600, 15*time.Minute, now), // an office behind one address
	}
}

// routes is the table of everything that the API answers.
func (a *API) routes() {
	a.accountRoutes()
	a.socialRoutes()
	a.mux.HandleFunc("GET /.well-known/jwks.json", a.jwks)
}

func (a *API) accountRoutes() {
}

func (a *API) socialRoutes() {
}

func (a *API) jwks(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "public, max-age=60")
	_, _ = w.Write(a.accounts.JWKS())
}
