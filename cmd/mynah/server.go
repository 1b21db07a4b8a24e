package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"mynah/api"
	"mynah/authhook"
	"mynah/broker"
	"mynah/broker/listener"
	"mynah/broker/msglog"
	"mynah/directory"
	"mynah/people"
)

// diskFullPause is the pause between two checks of a full disk.
const diskFullPause = time.Second

// server is a long-running mynah: the settings and what has been started so far.
type server struct {
	cfg      Config
	log      *slog.Logger
	registry *prometheus.Registry
	health   *health
	shutdown shutdownStack
	files    descriptors
	timeouts webTimeouts // of all HTTP listeners

	metrics   *webServer // nil if switched off
	web       *webServer // nil in commands without HTTP
	webTLS    *webServer // nil if switched off
	pool      *pgxpool.Pool
	keys      *people.Keys
	verifier  *authhook.Verifier
	broker    *broker.Broker
	directory *directory.Directory // nil without a database
	api       *api.API
	failed    bool // the broker has, and wait has told
}

func newServer(cfg Config, p *process) *server {
	s := &server{cfg: cfg, log: cfg.logger(p.stderr), registry: prometheus.NewRegistry(), health: &health{}, timeouts: p.timeouts}
	s.shutdown.log = s.log
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.files = newDescriptors(s.log)
	s.registry.MustRegister(s.files.shared)
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "mynah_info", Help: "Always 1; the label says the version.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	s.registry.MustRegister(info)
	limitMemory(p.getenv, s.log)
	return s
}

// openMetrics serves the operators' listener. It opens first and closes last, so
// that a long start or stop can be watched.
func (s *server) openMetrics(ctx context.Context) error {
	if s.cfg.MetricsAddr == off {
		return nil
	}
	var err error
	if s.metrics, err = s.listenWeb(ctx, "metrics", "metrics-addr", s.cfg.MetricsAddr, operatorsExtra); err != nil {
		return err
	}
	s.shutdown.push("metrics", s.metrics.stop)
	s.metrics.serve(metricsRoutes(s.registry, s.health))
	return nil
}

// openHTTP takes the HTTP ports. Requests wait until serveHTTP.
func (s *server) openHTTP(ctx context.Context) error {
	s.files.warn(s.cfg.MaxConnections, s.log)
	var err error
	if s.web, err = s.listenWeb(ctx, "http", "http-addr", s.cfg.HTTPAddr, 0); err != nil {
		return err
	}
	s.shutdown.push("HTTP listener", s.web.stop)
	if s.cfg.HTTPSAddr == "" || s.cfg.HTTPSAddr == off {
		return nil
	}
	certificates, err := listener.NewCertReloader(s.cfg.TLSCert, s.cfg.TLSKey, s.log.With("part", "https"))
	if err != nil {
		return refuse("tls-cert", "cannot be used: %w", err)
	}
	if s.webTLS, err = s.listenWeb(ctx, "https", "https-addr", s.cfg.HTTPSAddr, 0); err != nil {
		return err
	}
	s.webTLS.server.TLSConfig = certificates.TLSConfig()
	s.shutdown.push("HTTPS listener", s.webTLS.stop)
	return nil
}

// serveHTTP answers on the HTTP ports, from now on.
func (s *server) serveHTTP() {
	mux := http.NewServeMux()
	if s.broker != nil {
		mux.Handle("/mqtt", s.broker.WebSocketHandler())
	}
	if s.api != nil {
		for _, path := range api.Paths() {
			mux.Handle(path, s.api.Handler())
		}
	}
	s.health.routes(mux)
	s.web.serve(mux)
	s.shutdown.push("HTTP", s.web.stop)
	if s.webTLS != nil {
		s.webTLS.serve(mux)
		s.shutdown.push("HTTPS", s.webTLS.stop)
	}
}

// waitTellAfter is how long a step of the start may take before it is said what it waits
// for, waitTellEvery how often that is repeated.
const (
	waitTellAfter = 5 * time.Second
	waitTellEvery = 30 * time.Second
)

// tellWaiting says what the start waits for if that takes its time, until stop.
func (s *server) tellWaiting(ctx context.Context, what string) (stop func()) {
	began, done := time.Now(), make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		for pause := waitTellAfter; ; pause = waitTellEvery {
			select {
			case <-done:
				return
			case <-time.After(pause):
			}
			s.log.WarnContext(ctx, "the start is still waiting", "for", what, "since", time.Since(began).Round(time.Second))
		}
	})
	return func() {
		close(done)
		telling.Wait()
	}
}

// ready says that everything is there, and where.
func (s *server) ready(ctx context.Context) {
	attrs := []slog.Attr{slog.String("version", version)}
	add := func(name, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(name, value))
		}
	}
	if s.broker != nil {
		add("mqtt", addrString(s.broker.MQTTAddr()))
		add("mqtts", addrString(s.broker.MQTTSAddr()))
	}
	if s.web != nil {
		add("http", s.web.listener.Addr().String())
	}
	if s.webTLS != nil {
		add("https", s.webTLS.listener.Addr().String())
	}
	if s.metrics != nil {
		add("metrics", s.metrics.listener.Addr().String())
	}
	add("database", s.cfg.DatabaseURL.String())
	s.health.setServing(true)
	s.log.LogAttrs(ctx, slog.LevelInfo, "ready", attrs...)
}

// wait returns nil when a stop is asked for, and an error when a part cannot go on:
// anew, or whoever runs us, starts us again.
func (s *server) wait(ctx context.Context) error {
	var broken <-chan error
	if s.broker != nil {
		broken = s.broker.Failed()
	}
	var err error
	select {
	case <-ctx.Done():
		s.log.Info("stopping")
	case err = <-broken:
		s.failed = true
		s.log.Error("stopping", "err", err)
		if !msglog.OutOfRoom(err) {
			err = refuse("data-dir", "%s cannot be written to any more; nothing that was acknowledged is lost. See that its disk works, then start again (%w)", s.cfg.DataDir, err)
		}
	}
	s.health.setServing(false)
	return err
}

// anew runs a server, and runs it once more when its message log has failed because the
// disk was full, so that nobody need be there when there is room again. Everything is
// stopped in between: what the log has on disk decides where each session goes on.
// Another failure of the disk is not survived like that.
func anew(ctx context.Context, log *slog.Logger, serve func() error) error {
	for {
		err := serve()
		if errors.Is(err, errStopped) {
			return nil // as asked; nothing had been started that could fail to stop
		}
		if ctx.Err() != nil || !errors.Is(err, msglog.ErrFailed) || !msglog.OutOfRoom(err) {
			return err
		}
		log.Error("the disk of --data-dir is full, to the last byte; nothing that was acknowledged is lost, and the server starts anew")
		select {
		case <-ctx.Done():
			return err
		case <-time.After(diskFullPause):
		}
	}
}
