package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// webTimeouts bound how long a client may keep a connection. Every request is answered or
// its connection closed within read or write, whichever its client holds up: the handshake
// of TLS, the request's head, its body, which also those may announce whose address or
// method is unknown, or the taking of the answer. A handler that may take longer says so to
// its connection (takesLong).
type webTimeouts struct {
	// read is from the connection, or the first byte of a later request, to the end of
	// the request's body. A handler that is still at work then finds its context ended.
	read time.Duration
	// write is from the end of the request's head to that of the answer.
	write time.Duration
	// idle is how long a connection is kept for another request.
	idle time.Duration
}

// defaultWebTimeouts keep a request below 10 s.
var defaultWebTimeouts = webTimeouts{read: 9 * time.Second, write: 9500 * time.Millisecond, idle: 2 * time.Minute}

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
	protocols := new(http.Protocols)
	// HTTP/2 would need bounds of its own for frames that never end, and MQTT over
	// WebSocket is HTTP/1.1.
	protocols.SetHTTP1(true)
	return &webServer{
		listener: s.files.shared.Listener(listener, door, extra),
		done:     make(chan struct{}),
		log:      s.log,
		server: &http.Server{
			Protocols:         protocols,
			ReadHeaderTimeout: s.timeouts.read,
			ReadTimeout:       s.timeouts.read,
			WriteTimeout:      s.timeouts.write,
			IdleTimeout:       s.timeouts.idle,
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
		serve := func() error { return w.server.Serve(w.listener) }
		if w.server.TLSConfig != nil {
			serve = func() error { return w.server.ServeTLS(w.listener, "", "") }
		}
		if err := serve(); !errors.Is(err, http.ErrServerClosed) {
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

// maxProfile is the longest profile, in seconds.
const maxProfile = 300

// takesLong lets a handler take as long as the request says in its parameter seconds, and
// what is left of a request's time after that. Of what it does not say, it is the default.
func takesLong(otherwise float64, handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		seconds := otherwise
		if text := r.URL.Query().Get("seconds"); text != "" {
			var err error
			if seconds, err = strconv.ParseFloat(text, 64); err != nil || !(seconds >= 0 && seconds <= maxProfile) { // NaN is neither
				http.Error(w, fmt.Sprintf("seconds: give a number from 0 to %d", maxProfile), http.StatusBadRequest)
				return
			}
		}
		server, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
		if ok {
			// pprof does so with the time for writing. Without a new time for
			// reading the handler's context would end with the old one.
			deadline := time.Now().Add(time.Duration(seconds*float64(time.Second)) + server.ReadTimeout)
			if err := http.NewResponseController(w).SetReadDeadline(deadline); err != nil {
				http.Error(w, "this connection cannot be kept for so long", http.StatusInternalServerError)
				return
			}
		}
		handler(w, r)
	}
}

// metricsRoutes is the operators' door: figures, health and profiles. It is
// never served where clients come in.
func metricsRoutes(registry *prometheus.Registry, health *health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry}))
	mux.HandleFunc("/debug/pprof/", takesLong(0, pprof.Index)) // the difference of a profile after seconds
	mux.HandleFunc("/debug/pprof/cmdline", func(w http.ResponseWriter, _ *http.Request) {
		// The command line may hold the secret.
		http.Error(w, "not served", http.StatusNotFound)
	})
	mux.HandleFunc("/debug/pprof/profile", takesLong(30, pprof.Profile))
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", takesLong(1, pprof.Trace))
	health.routes(mux)
	return mux
}
