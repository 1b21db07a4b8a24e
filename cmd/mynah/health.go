package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// check is one condition of readiness.
type check struct {
	name string
	// fails returns nil if the condition holds.
	fails func(ctx context.Context) error
	// soft is set for a condition that is reported but does not make the
	// process unready, because chat goes on without it.
	soft bool
}

// checkTimeout bounds one condition's look.
const checkTimeout = 2 * time.Second

// healthRoutes adds /healthz (the process answers) and /readyz (it can do its
// work) to the mux.
func healthRoutes(mux *http.ServeMux, checks []check) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeHealth(w, http.StatusOK, map[string]string{})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
		defer cancel()
		status, results := http.StatusOK, map[string]string{}
		for _, c := range checks {
			switch err := c.fails(ctx); {
			case err == nil:
				results[c.name] = "ok"
			case c.soft:
				results[c.name] = "degraded"
			default:
				// The reason is in the log; this door is open to everybody.
				results[c.name] = "failed"
				status = http.StatusServiceUnavailable
			}
		}
		writeHealth(w, status, results)
	})
}

func writeHealth(w http.ResponseWriter, status int, checks map[string]string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	word := "ok"
	if status != http.StatusOK {
		word = "unavailable"
	}
	// A failing write means that the asker has gone.
	_ = json.NewEncoder(w).Encode(map[string]any{"status": word, "checks": checks})
}

type healthCmd struct {
	Metrics
}

// Run asks the /readyz of the process that listens at --metrics-addr.
func (c *healthCmd) Run(ctx context.Context, p *process) error {
	if err := c.Validate(); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(c.MetricsAddr)
	if err != nil {
		return refuse("metrics-addr", "is %s; health needs it to be an address", c.MetricsAddr)
	}
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("ask for readiness: %w", err)
	}
	defer response.Body.Close() //nolint:errcheck // only read
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("ask for readiness: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", strings.TrimSpace(string(body)))
	}
	_, err = p.stdout.Write(body)
	return err
}
