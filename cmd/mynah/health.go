package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"mynah/internal/pgdial"
)

// check is one condition of /readyz.
type check struct {
	name string
	// fails returns nil if the condition holds.
	fails func(ctx context.Context) error
	// soft is set for a condition that is reported but does not make the
	// process unready, because chat goes on without it.
	soft bool
}

// checkTimeout bounds all checks of one request.
const checkTimeout = 2 * time.Second

// health answers whether the process is alive and whether it can do its work.
type health struct {
	mu      sync.Mutex // guards what follows
	checks  []check
	serving bool
}

// add adds a condition.
func (h *health) add(c check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks = append(h.checks, c)
}

// setServing tells that start-up is over, or that the stop has begun.
func (h *health) setServing(serving bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.serving = serving
}

var errNotServing = errors.New("starting or stopping")

// runChecks returns the result of each condition and whether the process is
// ready.
func (h *health) runChecks(ctx context.Context) (results map[string]string, ready bool) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	h.mu.Lock()
	checks, serving := h.checks, h.serving
	h.mu.Unlock()
	results, ready = map[string]string{}, true
	serves := check{name: "serving", fails: func(context.Context) error {
		if !serving {
			return errNotServing
		}
		return nil
	}}
	for _, c := range append([]check{serves}, checks...) {
		// The cause is in the log only, since everybody can read this answer.
		switch err := c.fails(ctx); {
		case err == nil:
			results[c.name] = "ok"
		case errors.Is(err, pgdial.ErrReadOnly):
			// It answers, so what is only read works; the cause is not here.
			results[c.name] = "read-only"
			ready = ready && c.soft
		case c.soft:
			results[c.name] = "degraded"
		default:
			results[c.name] = "failed"
			ready = false
		}
	}
	return results, ready
}

// routes adds /healthz (the process answers) and /readyz (it can do its work).
func (h *health) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeHealth(w, true, nil)
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		results, ready := h.runChecks(r.Context())
		writeHealth(w, ready, results)
	})
}

func writeHealth(w http.ResponseWriter, ok bool, checks map[string]string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	status := "ok"
	if !ok {
		status = "unavailable"
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	// A failing write means that the asker has gone.
	_ = json.NewEncoder(w).Encode(struct {
		Status string            `json:"status"`
		Checks map[string]string `json:"checks,omitempty"`
	}{status, checks})
}

type healthCmd struct {
	Metrics
}

// Run asks the /readyz of the process that listens at --metrics-addr.
func (c *healthCmd) Run(ctx context.Context, p *process) error {
	if err := c.validate(); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(c.MetricsAddr)
	if err != nil {
		return refuse("metrics-addr", "is %s; health needs an address", c.MetricsAddr)
	}
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", http.NoBody)
	if err != nil {
		return fmt.Errorf("ask for readiness: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("ask for readiness: %w", err)
	}
	defer func() { _ = response.Body.Close() }() // only read
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("ask for readiness: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", strings.TrimSpace(string(body)))
	}
	fmt.Fprint(p.stdout, string(body))
	return nil
}
