package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"mynah/api"
	"mynah/api/accounts"
	"mynah/api/directory"
	"mynah/archiver"
	"mynah/authhook"
	"mynah/broker"
	"mynah/broker/msglog"
	"mynah/chat"
	"mynah/internal/postgres"
	"mynah/schema"
)

// connectPatience is how long a database may take to answer at start.
const connectPatience = 10 * time.Second

// keysPause is between two attempts of a broker to read the API's keys.
const keysPause = 2 * time.Second

// roomPause is between two looks at a disk that is full.
const roomPause = time.Second

// ownTokenTTL is how long a token lives that a part of ours signs for itself. At
// its end the broker closes the connection and the part comes back with a new one.
const ownTokenTTL = 24 * time.Hour

// brokerFolder is the broker's part of the data directory, and keysFile has the API's
// public keys for a broker that starts while the database is away.
const (
	brokerFolder = "broker"
	keysFile     = "signing-keys.json"
)

// server is a long-running mynah: the settings and what has been started so far.
type server struct {
	cfg      Config
	log      *slog.Logger
	registry *prometheus.Registry
	health   *health
	stops    stops

	metrics   *webServer // nil if switched off
	web       *webServer // nil in commands without HTTP
	pool      *pgxpool.Pool
	keys      *accounts.Keys
	verifier  *authhook.Verifier
	broker    *broker.Broker
	directory *directory.Directory // nil without a database
	api       *api.API
	failed    bool // the broker has, and wait has told
}

func newServer(cfg Config, p *process) *server {
	s := &server{cfg: cfg, log: cfg.logger(p.stderr), registry: prometheus.NewRegistry(), health: &health{}}
	s.stops.log = s.log
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "mynah_info", Help: "Always 1; the label says the version.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	s.registry.MustRegister(info)
	limitMemory(p.getenv, s.log)
	return s
}

// openMetrics serves the operators' door. It is the first to open and the last to
// close, so that a start or a stop that takes its time can be watched.
func (s *server) openMetrics(ctx context.Context) error {
	if s.cfg.MetricsAddr == off {
		return nil
	}
	var err error
	if s.metrics, err = listenWeb(ctx, "metrics-addr", s.cfg.MetricsAddr, s.log); err != nil {
		return err
	}
	s.stops.push("metrics", s.metrics.stop)
	s.metrics.serve(metricsRoutes(s.registry, s.health))
	return nil
}

// openHTTP takes the HTTP port. Requests wait until serveHTTP.
func (s *server) openHTTP(ctx context.Context) error {
	var err error
	if s.web, err = listenWeb(ctx, "http-addr", s.cfg.HTTPAddr, s.log); err != nil {
		return err
	}
	s.stops.push("HTTP listener", s.web.stop)
	return nil
}

// openDatabase sees that the database can be used. A database that goes away
// later is waited for; one that was never there is most likely a wrong address.
func (s *server) openDatabase(ctx context.Context, migrate bool) error {
	address := s.cfg.DatabaseURL
	patience, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	conn, err := pgx.Connect(patience, address.Reveal())
	if err != nil {
		return databaseError(address, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // nothing is pending on it
	if migrate {
		if err := schema.Migrate(ctx, address.Reveal()); err != nil {
			return databaseError(address, err)
		}
		return nil
	}
	if err := schema.Check(patience, conn); err != nil {
		return databaseError(address, err)
	}
	return nil
}

// startPostgres starts the private PostgreSQL and makes it the database.
func (s *server) startPostgres(ctx context.Context) error {
	server := postgres.New(postgres.Config{
		Dir:    filepath.Join(s.cfg.DataDir, "postgres"),
		Logger: s.log.With("part", "postgres"),
	})
	if err := server.Start(ctx); err != nil {
		switch {
		case errors.Is(err, postgres.ErrInUse):
			return refuse("data-dir", "%s is in use by another mynah; stop it or give another directory (%w)", s.cfg.DataDir, err)
		case errors.Is(err, postgres.ErrNotInstalled):
			return refuse("database-url", "is not set, and no PostgreSQL is installed to start a private one; give the address of one, or install it (on Debian: apt-get install postgresql)")
		}
		if errors.Is(err, fs.ErrPermission) {
			return s.noPermission(err)
		}
		return fmt.Errorf("--database-url: is not set, and a private PostgreSQL does not start below --data-dir: %w", err)
	}
	s.stops.push("private PostgreSQL", server.Stop)
	s.cfg.DatabaseURL = SecretURL(server.URL())
	return nil
}

// openPool connects to the database for as long as the process runs, and makes it
// part of what /readyz says. Chat goes on without it, so a broker stays ready.
func (s *server) openPool(soft bool) error {
	config, err := pgxpool.ParseConfig(s.cfg.DatabaseURL.Reveal())
	if err != nil {
		return databaseError(s.cfg.DatabaseURL, err)
	}
	// It outlives the context of the start, until its stop.
	if s.pool, err = pgxpool.NewWithConfig(context.Background(), config); err != nil {
		return databaseError(s.cfg.DatabaseURL, err)
	}
	s.stops.push("database connections", func(context.Context) error { s.pool.Close(); return nil })
	s.health.add(check{name: "database", soft: soft, fails: s.pool.Ping})
	return nil
}

// newKeys returns the API's own signing keys, which the secret seals in the database.
// The public ones are kept in the file, if one is named.
func (s *server) newKeys(secret Secret, file string) *accounts.Keys {
	return accounts.NewKeys(s.pool, accounts.KeysConfig{
		Secret: []byte(secret.Reveal()), Issuer: s.cfg.PublicURL, File: file, Log: s.log.With("part", "keys"),
	})
}

// startKeys reads the signing keys, making one at the first start.
func (s *server) startKeys(ctx context.Context, secret Secret) error {
	s.keys = s.newKeys(secret, "")
	if err := s.keys.Start(ctx); err != nil {
		if errors.Is(err, accounts.ErrKeySecret) {
			return refuse("jwt-secret", "%w", err)
		}
		return fmt.Errorf("read the signing keys: %w", err)
	}
	s.stops.push("signing keys", s.keys.Stop)
	return nil
}

// followKeys reads the API's signing keys for a broker, which goes on without the
// database: it tries until it has them. Until then it verifies with the public keys that
// it has kept from the last time.
func (s *server) followKeys(ctx context.Context, secret Secret) error {
	file := filepath.Join(s.cfg.DataDir, keysFile)
	s.keys = s.newKeys(secret, file)
	s.stops.push("signing keys", s.keys.Stop)
	err := s.keys.Start(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, accounts.ErrKeySecret):
		return refuse("jwt-secret", "%w", err)
	}
	kept, unread := s.keys.Recall()
	if unread != nil {
		s.log.Warn("the kept signing keys are of no use", "err", unread)
	}
	if kept > 0 {
		s.log.Warn("the database does not answer; tokens of the API are verified with the keys kept from the last time until it does",
			"keys", kept, "file", file, "err", err)
	} else {
		s.log.Warn("tokens of the API are refused until the database answers", "err", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		told := false
		for {
			err := s.keys.Start(ctx)
			if err == nil {
				break
			}
			if errors.Is(err, accounts.ErrKeySecret) && !told {
				// With the database there this is refused at start.
				s.log.Error("--jwt-secret: the next start will be refused", "err", err)
				told = true
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(keysPause):
			}
		}
		s.log.Info("tokens of the API are accepted; its keys have been read from the database")
	}()
	s.stops.push("wait for signing keys", func(context.Context) error { cancel(); <-done; return nil })
	return nil
}

// openVerifier decides whose tokens are believed: those of the secret, of the
// configured key sets, and of the API's own keys if there are any.
func (s *server) openVerifier(secret Secret) error {
	cfg := authhook.VerifierConfig{
		Secret: []byte(secret.Reveal()), JWKS: s.cfg.JWKS, Issuer: s.cfg.Issuer, Audience: s.cfg.Audience,
		Log: s.log.With("part", "tokens"),
	}
	if s.keys != nil {
		cfg.LocalKeys = s.keys
	}
	verifier, err := authhook.NewVerifier(cfg)
	if err != nil {
		return refuse("jwks", "%w", err)
	}
	s.stops.push("verifier", func(context.Context) error { verifier.Close(); return nil })
	s.verifier = verifier
	return nil
}

// startAPI makes the HTTP API, which serveHTTP mounts.
func (s *server) startAPI(ctx context.Context, dev bool) error {
	log := s.log.With("part", "api")
	people, err := s.cfg.accounts(dev, log)
	if err != nil {
		return err
	}
	proxies, err := s.cfg.proxies()
	if err != nil {
		return err
	}
	a, err := api.New(api.Config{
		DB: s.pool, Verifier: s.verifier, Keys: s.keys, Accounts: people, Social: s.cfg.social(),
		Origins: s.cfg.AllowOrigin, TrustedProxies: proxies, PublicURL: s.cfg.PublicURL, Log: log,
	})
	if err != nil {
		return err
	}
	if err := a.Start(ctx); err != nil {
		return err
	}
	s.stops.push("API", a.Stop)
	s.api = a
	return nil
}

// startBroker opens the message log and then the doors for MQTT.
func (s *server) startBroker(ctx context.Context) error {
	proxies, err := s.cfg.proxies()
	if err != nil {
		return err
	}
	tcp, tls := s.cfg.MQTTAddr, ""
	if tcp == off {
		tcp = ""
	}
	if s.cfg.TLSCert != "" && s.cfg.MQTTSAddr != off {
		tls = s.cfg.MQTTSAddr
	}
	var rights authhook.Directory // nil without a database
	if s.directory != nil {
		rights = s.directory
	}
	cfg := broker.Config{
		Version:        version,
		Directory:      rights,
		DataDir:        filepath.Join(s.cfg.DataDir, brokerFolder),
		MQTTAddr:       tcp,
		MQTTSAddr:      tls,
		TLSCert:        s.cfg.TLSCert,
		TLSKey:         s.cfg.TLSKey,
		Verifier:       s.verifier,
		Limiter:        authhook.NewLimiter(authhook.LimiterConfig{PublishRate: s.cfg.PublishRate}),
		ProxyProtocol:  s.cfg.ProxyProtocol,
		TrustedProxies: proxies,
		AllowedOrigins: s.cfg.AllowOrigin,
		MaxConns:       s.cfg.MaxConnections,
		NoArchive:      s.cfg.NoArchive,
		Limits:         chat.Limits{Payload: s.cfg.MaxPayload, Depth: s.cfg.MaxDepth, Rendered: s.cfg.MaxMessage},
		Retention:      msglog.Retention{MaxAge: s.cfg.RetainAge, MaxBytes: uint64(max(s.cfg.RetainSize, 0))},
		SessionExpiry:  s.cfg.SessionExpiry,
		Logger:         s.log.With("part", "broker"),
		Registry:       s.registry,
	}
	b, err := s.openBroker(ctx, cfg)
	if err != nil {
		return s.brokerError(err)
	}
	s.stops.push("broker", func(ctx context.Context) error {
		err := b.Stop(ctx)
		if s.failed && errors.Is(err, msglog.ErrFailed) {
			return nil // wait has told
		}
		return err
	})
	if err := b.Start(ctx); err != nil {
		return s.brokerError(err)
	}
	s.broker = b
	s.health.add(check{name: "broker", fails: func(context.Context) error { return b.Ready() }})
	return nil
}

// errStopped ends a start that was still waiting when a stop was asked for.
var errStopped = errors.New("stopped before the broker had been started")

// openBroker opens the message log. On a disk that is full it waits for room, however
// long that takes: to end would only mean to be started again, and to be given up by a
// supervisor that has seen it end a few times.
func (s *server) openBroker(ctx context.Context, cfg broker.Config) (*broker.Broker, error) {
	told := false
	for {
		b, err := broker.New(cfg)
		if !errors.Is(err, msglog.ErrFull) {
			return b, err
		}
		if !told {
			s.log.Error("--data-dir: the disk is full; the broker starts when there is room", "err", err)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, errStopped
		case <-time.After(roomPause):
		}
	}
}

// brokerError names the flag that is to blame.
func (s *server) brokerError(err error) error {
	var listen *net.OpError
	switch {
	case errors.Is(err, msglog.ErrInUse):
		return refuse("data-dir", "%s is in use by another mynah; stop it or give another directory", s.cfg.DataDir)
	case errors.Is(err, msglog.ErrNewer):
		return refuse("data-dir", "%s: %w; start that version or a newer one", s.cfg.DataDir, err)
	case errors.As(err, &listen) && listen.Op == "listen":
		flag, addr := "mqtt-addr", s.cfg.MQTTAddr
		if listen.Addr != nil && s.cfg.MQTTSAddr != "" && samePort(listen.Addr.String(), s.cfg.MQTTSAddr) {
			flag, addr = "mqtts-addr", s.cfg.MQTTSAddr
		}
		return listenError(flag, addr, err)
	case errors.Is(err, fs.ErrPermission):
		return s.noPermission(err)
	}
	return fmt.Errorf("start the broker: %w", err)
}

// noPermission says whose the data directory should be.
func (s *server) noPermission(err error) error {
	return refuse("data-dir", "%s may not be made or written to by this user; make it and give it to the user, or name another (%w)", s.cfg.DataDir, err)
}

func samePort(a, b string) bool {
	_, portA, errA := net.SplitHostPort(a)
	_, portB, errB := net.SplitHostPort(b)
	return errA == nil && errB == nil && portA == portB
}

// ownDoor returns the address by which parts in this process reach the broker. That
// is the door for everybody where it is open to them; where there is none, or where
// it expects a load balancer's header, it is a WebSocket on a free port of the
// loopback interface.
func (s *server) ownDoor(ctx context.Context) (string, error) {
	if s.cfg.MQTTAddr != off && !s.cfg.ProxyProtocol {
		return "tcp://" + loopback(s.broker.MQTTAddr()), nil
	}
	door, err := listenWeb(ctx, "mqtt-addr", "127.0.0.1:0", s.log)
	if err != nil {
		return "", err
	}
	s.stops.push("own door", door.stop)
	door.serve(s.broker.WebSocketHandler())
	return "ws://" + door.listener.Addr().String() + "/mqtt", nil
}

// startArchiver connects the archive to the broker. It tries until it succeeds, so
// neither side need be there yet.
func (s *server) startArchiver(ctx context.Context, brokerURL string, token func(context.Context) (string, error)) (*archiver.Archiver, error) {
	trust, err := s.cfg.brokerTLS()
	if err != nil {
		return nil, err
	}
	a, err := archiver.New(archiver.Config{
		BrokerURL:   brokerURL,
		TLS:         trust,
		Token:       token,
		DatabaseURL: s.cfg.DatabaseURL.Reveal(),
		Logger:      s.log.With("part", "archiver"),
	})
	if err != nil {
		return nil, err
	}
	s.registry.MustRegister(a.Collector())
	if err := a.Start(ctx); err != nil {
		return nil, err
	}
	// It commits and acknowledges what it has received.
	s.stops.push("archiver", a.Stop)
	return a, nil
}

// ownToken returns the token source of a part of ours.
func (s *server) ownToken(secret Secret, subject string, role authhook.Role) func(context.Context) (string, error) {
	return selfSigned(secret, authhook.TokenClaims{
		Subject: subject, Role: role, TTL: ownTokenTTL, Issuer: s.cfg.Issuer, Audience: s.cfg.Audience,
	})
}

// serveHTTP answers on the HTTP port, from now on.
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
	s.stops.push("HTTP", s.web.stop)
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
		case <-time.After(roomPause):
		}
	}
}

// loopback returns an address that a listener answers on from this machine.
func loopback(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

func addrString(addr net.Addr) string {
	if addr == nil {
		return ""
	}
	return addr.String()
}

// brokerURL returns --broker-url in the words that the client library knows.
func (u *Upstream) brokerURL() string {
	parsed, err := url.Parse(u.BrokerURL)
	if err != nil {
		return u.BrokerURL // validate has refused it
	}
	if parsed.Port() == "" && parsed.Host != "" {
		port := map[string]string{"mqtt": "1883", "tcp": "1883", "mqtts": "8883", "ssl": "8883", "tls": "8883"}[parsed.Scheme]
		if port != "" {
			parsed.Host = net.JoinHostPort(parsed.Hostname(), port)
		}
	}
	if parsed.Path == "" && (parsed.Scheme == "ws" || parsed.Scheme == "wss") {
		parsed.Path = "/mqtt"
	}
	return parsed.String()
}
