package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// webServer is an HTTP server on a listener that is open before anything else
// starts, so that a port in use is told at once and by its flag.
type webServer struct {
	server   *http.Server
	listener net.Listener
	done     chan struct{}
	log      *slog.Logger
}

// listenWeb opens the address of the flag for the door of the name, which may have
// extra connections open when the doors together have all that they may.
func (s *server) listenWeb(ctx context.Context, door, flag, addr string, extra int) (*webServer, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, listenError(flag, addr, err)
	}
	return &webServer{
		listener: s.files.shared.Listener(listener, door, extra),
		done:     make(chan struct{}),
		log:      s.log,
		server: &http.Server{
			// A client that is slow with its request's head holds one
			// goroutine for so long, and no longer.
			ReadHeaderTimeout: 10 * time.Second,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    32 << 10,
			ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		},
	}, nil
}

// serve answers with the handler until stop.
func (w *webServer) serve(handler http.Handler) {
	w.server.Handler = handler
	go func() {
		defer close(w.done)
		if err := w.server.Serve(w.listener); !errors.Is(err, http.ErrServerClosed) {
			w.log.Error("HTTP server ended", "err", err)
		}
	}()
}

// stop closes the listener and lets requests that are being answered finish until
// the context ends. It is harmless to repeat. WebSockets are the broker's.
func (w *webServer) stop(ctx context.Context) error {
	if w.server.Handler == nil { // never served
		_ = w.listener.Close() // nothing came in, so nothing can be lost
		return nil
	}
	if err := w.server.Shutdown(ctx); err != nil {
		// They had their time.
		return errors.Join(fmt.Errorf("stop HTTP: %w", err), w.server.Close())
	}
	<-w.done
	return nil
}

// listenError says which flag's address cannot be had, and what to do.
func listenError(flag, addr string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return refuse(flag, "%s is in use by another process; stop it or give another address, such as --%s=:0 for any free port", addr, flag)
	case errors.Is(err, syscall.EACCES):
		return refuse(flag, "%s may be opened by root only; give a port above 1023", addr)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return refuse(flag, "%s is not an address of this machine; leave the host out for all of them", addr)
	}
	return refuse(flag, "cannot listen on %s: %w", addr, err)
}

// metricsRoutes is the operators' door: figures, health and profiles. It is
// never served where clients come in.
func metricsRoutes(registry *prometheus.Registry, health *health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", func(w http.ResponseWriter, _ *http.Request) {
		// The command line may hold the secret.
		http.Error(w, "not served", http.StatusNotFound)
	})
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	health.routes(mux)
	return mux
}
