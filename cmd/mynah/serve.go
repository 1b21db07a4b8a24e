package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"mynah/archiver"
	"mynah/authhook"
	"mynah/outreach"
)

type serveCmd struct {
	Dev            bool `help:"For trying it out: makes a secret in the data directory if none is set, has demo people, and prints commands to paste."`
	Logging        `group:"logging"`
	Storage        `group:"storage"`
	Retention      `group:"storage"`
	Listeners      `group:"listeners"`
	Web            `group:"listeners"`
	Clients        `group:"clients"`
	Identity       `group:"tokens"`
	Database       `group:"database"`
	Archive        `group:"database"`
	People         `group:"people"`
	Rights         `group:"rights"`
	Metrics        `group:"metrics"`
	BrokerLimits   `group:"limits"`
	TokenLimits    `group:"limits"`
	ArchiverLimits `group:"limits"`
}

// Run serves until it is asked to stop.
func (c *serveCmd) Run(ctx context.Context, p *process) error {
	return anew(ctx, c.logger(p.stderr), func() error { return c.serve(ctx, p) })
}

// serve is the whole of Mynah in one process. The order of the start is that of who
// needs whom; the stop goes backwards, see shutdownStack.
func (c *serveCmd) serve(ctx context.Context, p *process) (err error) {
	cfg := Config{
		Logging: c.Logging, Storage: c.Storage, Retention: c.Retention, Web: c.Web, Listeners: c.Listeners, Clients: c.Clients,
		Identity: c.Identity, Database: c.Database, Archive: c.Archive, People: c.People, Rights: c.Rights, Metrics: c.Metrics,
		BrokerLimits: c.BrokerLimits, TokenLimits: c.TokenLimits, ArchiverLimits: c.ArchiverLimits,
	}
	if err := cfg.validate(); err != nil {
		return err
	}
	// Whose tokens are believed must have been decided by somebody.
	secret := cfg.JWTSecret
	switch {
	case secret != "":
	case c.Dev:
		if secret, err = cfg.makeDevSecret(); err != nil {
			return err
		}
	case len(cfg.JWKS) > 0:
		// Our own parts need a token too. This secret never leaves the process.
		secret = Secret(rand.Text() + rand.Text())
	default:
		return refuse("jwt-secret", "is not set, nor is --jwks, so no token could be believed; give one of them, or try it out with serve --dev")
	}

	s := newServer(cfg, p)
	defer func() { err = errors.Join(err, s.shutdown.all(ctx)) }()

	// The ports first: that one is taken should be told before anything has been
	// started or migrated.
	if err := s.openMetrics(ctx); err != nil {
		return err
	}
	if err := s.openHTTP(ctx); err != nil {
		return err
	}

	// The database next, since the archive and the API are of no use without. Later
	// it may come and go.
	if cfg.DatabaseURL == "" {
		if err := s.startPostgres(ctx); err != nil {
			return err
		}
	}
	if err := s.openDatabase(ctx, true); err != nil {
		return err
	}
	if err := s.openPool(true); err != nil {
		return err
	}
	if err := s.startKeys(ctx, cfg.JWTSecret, cfg.DatabaseURL == ""); err != nil {
		return err
	}
	if err := s.openVerifier(secret); err != nil {
		return err
	}

	// Who is in which group, before anybody asks.
	if err := s.startDirectory(ctx); err != nil {
		return err
	}

	// From here clients come in by TCP. The archiver is one of them, so it stops
	// before the broker and has committed what it was given; what comes in after
	// it waits in the log for the next start.
	if err := s.startBroker(ctx); err != nil {
		return err
	}
	address, err := s.internalBrokerURL(ctx)
	if err != nil {
		return err
	}
	token := s.ownToken(secret, authhook.SubjectArchiver, authhook.RoleArchiver)
	if !cfg.NoArchive {
		if _, err := s.startArchiver(ctx, address, token); err != nil {
			return err
		}
	}
	if err := s.startNotices(ctx, address, s.ownToken(secret, outreach.Subject, authhook.RoleService)); err != nil {
		return err
	}

	if err := s.startAPI(ctx, c.Dev); err != nil {
		return err
	}

	// WebSockets and requests last: they find everything in place. It is the first
	// to stop, so that no new connection comes in while the rest is being stopped.
	s.serveHTTP()
	s.ready(ctx)
	if c.Dev {
		// The crib's tokens work without them, for example where registration is
		// closed.
		if err := s.makeDemoPeople(ctx, secret); err != nil {
			s.log.Warn("no demo people", "err", err)
		}
		if err := s.printCrib(p, secret); err != nil {
			return err
		}
	}
	return s.wait(ctx)
}

type brokerCmd struct {
	Logging      `group:"logging"`
	Storage      `group:"storage"`
	Retention    `group:"storage"`
	Listeners    `group:"listeners"`
	Web          `group:"listeners"`
	Clients      `group:"clients"`
	Identity     `group:"tokens"`
	Database     `group:"database"`
	Rights       `group:"rights"`
	Metrics      `group:"metrics"`
	BrokerLimits `group:"limits"`
	TokenLimits  `group:"limits"`
}

// Run serves until it is asked to stop.
func (c *brokerCmd) Run(ctx context.Context, p *process) error {
	return anew(ctx, c.logger(p.stderr), func() error { return c.serve(ctx, p) })
}

// serve is the broker alone. With a database it knows accounts, groups and blocks.
func (c *brokerCmd) serve(ctx context.Context, p *process) (err error) {
	cfg := Config{
		Logging: c.Logging, Storage: c.Storage, Retention: c.Retention, Web: c.Web, Listeners: c.Listeners, Clients: c.Clients,
		Identity: c.Identity, Database: c.Database, Rights: c.Rights, Metrics: c.Metrics,
		BrokerLimits: c.BrokerLimits, TokenLimits: c.TokenLimits,
	}
	if err := cfg.validate(); err != nil {
		return err
	}
	if cfg.JWTSecret == "" && len(cfg.JWKS) == 0 && cfg.DatabaseURL == "" {
		return refuse("jwt-secret", "is not set, nor is --jwks, so no token could be believed; give one of them")
	}
	s := newServer(cfg, p)
	defer func() { err = errors.Join(err, s.shutdown.all(ctx)) }()
	if err := s.openMetrics(ctx); err != nil {
		return err
	}
	if err := s.openHTTP(ctx); err != nil {
		return err
	}
	// A broker starts without its database: it has kept the rights that it knew.
	if cfg.DatabaseURL != "" {
		if err := s.openPool(true); err != nil {
			return err
		}
		if err := s.followKeys(ctx, cfg.JWTSecret); err != nil {
			return err
		}
		if err := s.startDirectory(ctx); err != nil {
			return err
		}
	}
	if err := s.openVerifier(cfg.JWTSecret); err != nil {
		return err
	}
	if err := s.startBroker(ctx); err != nil {
		return err
	}
	s.serveHTTP()
	s.ready(ctx)
	return s.wait(ctx)
}

type apiCmd struct {
	RotateKeys   bool `help:"Make a new signing key, say which, and end. Tokens signed before stay valid until they expire."`
	DistrustKeys bool `help:"With --rotate-keys: refuse at once all tokens signed before, for a key that may have been stolen."`
	Logging      `group:"logging"`
	DataDir      string `group:"storage" placeholder:"DIR" help:"Where the secret of serve --dev is, to be used as --jwt-secret if neither that nor --jwks is given. Default: none is looked for, since whoever knows the secret could sign tokens."`
	Web          `group:"listeners"`
	Identity     `group:"tokens"`
	Database     `group:"database"`
	Upstream     `group:"upstream"`
	People       `group:"people"`
	Rights       `group:"rights"`
	Metrics      `group:"metrics"`
	TokenLimits  `group:"limits"`
}

// Run is the API alone.
func (c *apiCmd) Run(ctx context.Context, p *process) (err error) {
	cfg := Config{
		Logging: c.Logging, Identity: c.Identity, Database: c.Database, Upstream: c.Upstream, People: c.People,
		Rights: c.Rights, Metrics: c.Metrics,
		Web: c.Web, TokenLimits: c.TokenLimits,
		Storage: Storage{DataDir: c.DataDir},
	}
	if err := cfg.validate(); err != nil {
		return err
	}
	if cfg.DatabaseURL == "" {
		return errNoDatabase
	}
	if c.DataDir != "" && cfg.JWTSecret == "" && len(cfg.JWKS) == 0 {
		secret, err := cfg.devSecret()
		// Without one the API believes its own tokens alone, which will do if it has
		// another for its notices.
		if err != nil && (cfg.TokenFile == "" || !errors.Is(err, errNoDevSecret)) {
			return err
		}
		cfg.JWTSecret = secret
	}
	s := newServer(cfg, p)
	defer func() { err = errors.Join(err, s.shutdown.all(ctx)) }()
	if c.RotateKeys {
		return s.rotateKeys(ctx, p, c.DistrustKeys)
	}
	token, err := s.noticesToken()
	if err != nil {
		return err
	}
	if err := s.openMetrics(ctx); err != nil {
		return err
	}
	if err := s.openHTTP(ctx); err != nil {
		return err
	}
	if err := s.openDatabase(ctx, false); err != nil {
		return err
	}
	if err := s.openPool(false); err != nil {
		return err
	}
	if err := s.startKeys(ctx, cfg.JWTSecret, false); err != nil {
		return err
	}
	if err := s.openVerifier(cfg.JWTSecret); err != nil {
		return err
	}
	if err := s.startNotices(ctx, cfg.brokerURL(), token); err != nil {
		return err
	}
	if err := s.startAPI(ctx, false); err != nil {
		return err
	}
	s.serveHTTP()
	s.ready(ctx)
	return s.wait(ctx)
}

// rotateKeys makes a new signing key. It may be done while servers run.
func (s *server) rotateKeys(ctx context.Context, p *process, distrust bool) error {
	if err := s.openDatabase(ctx, false); err != nil {
		return err
	}
	if err := s.openPool(false); err != nil {
		return err
	}
	kid, err := s.newKeys(s.cfg.JWTSecret, "", false).Rotate(ctx, distrust)
	if err != nil {
		return fmt.Errorf("rotate the signing keys: %w", err)
	}
	fmt.Fprintf(p.stdout, "the API signs with key %s from now on; running servers follow within 30 seconds\n", kid)
	return nil
}

// errNoDatabase is what a command says that is of no use without one.
var errNoDatabase = refuse("database-url", "is needed; write postgres://user:password@host:5432/database")

type archiverCmd struct {
	RetryDeadLetters bool `help:"Try once more to store what PostgreSQL refused, say how many, and end."`
	Logging          `group:"logging"`
	DataDir          string `group:"storage" default:"./data" placeholder:"DIR" help:"Where the secret of serve --dev is, to sign a token with if neither --token-file nor --jwt-secret is given."`
	Database         `group:"database"`
	Archive          `group:"database"`
	Upstream         `group:"upstream"`
	JWTSecret        Secret `group:"tokens" name:"jwt-secret" placeholder:"SECRET" help:"The broker's secret, to sign a token with."`
	Issuer           string `group:"tokens" name:"jwt-issuer" placeholder:"ISS" help:"The token's iss."`
	Audience         string `group:"tokens" name:"jwt-audience" placeholder:"AUD" help:"The token's aud."`
	Metrics          `group:"metrics"`
	ArchiverLimits   `group:"limits"`
}

// Run is the archiver alone.
func (c *archiverCmd) Run(ctx context.Context, p *process) (err error) {
	cfg := Config{
		Logging: c.Logging, Database: c.Database, Archive: c.Archive, Upstream: c.Upstream, Metrics: c.Metrics, Storage: Storage{DataDir: c.DataDir},
		ArchiverLimits: c.ArchiverLimits,
		Identity:       Identity{JWTSecret: c.JWTSecret, Issuer: c.Issuer, Audience: c.Audience},
	}
	if err := cfg.validate(); err != nil {
		return err
	}
	if cfg.DatabaseURL == "" {
		return errNoDatabase
	}
	s := newServer(cfg, p)
	defer func() { err = errors.Join(err, s.shutdown.all(ctx)) }()
	if c.RetryDeadLetters {
		return s.retryDeadLetters(ctx, p)
	}

	var token func(context.Context) (string, error)
	switch {
	case cfg.TokenFile != "":
		token = fromFile(cfg.TokenFile)
	case cfg.JWTSecret != "":
		token = s.ownToken(cfg.JWTSecret, authhook.SubjectArchiver, authhook.RoleArchiver)
	default:
		secret, err := (&Storage{DataDir: c.DataDir}).devSecret()
		if errors.Is(err, errNoDevSecret) {
			return refuse("token-file", "is not set, nor is --jwt-secret, and there is no secret of serve --dev in --data-dir %s; the broker wants a token of role archiver: give one of them", c.DataDir)
		}
		if err != nil {
			return err
		}
		token = s.ownToken(secret, authhook.SubjectArchiver, authhook.RoleArchiver)
	}
	if err := s.openMetrics(ctx); err != nil {
		return err
	}
	// Its schema is brought up to date by serve or migrate, not behind their back.
	if err := s.openDatabase(ctx, false); err != nil {
		return err
	}
	if err := s.openPool(false); err != nil {
		return err
	}
	a, err := s.startArchiver(ctx, cfg.brokerURL(), token)
	if err != nil {
		return err
	}
	s.health.add(check{name: "broker", fails: func(context.Context) error {
		if !a.Lag().Connected {
			return errNotServing
		}
		return nil
	}})
	// What it is there for is done from here on. Until then its log says what is in the
	// way, and it goes on trying: the broker may be started later, a token be renewed.
	told := s.tellWaiting(ctx, "the broker at --broker-url to let the archiver in")
	connected := a.AwaitConnected(ctx)
	told()
	if connected {
		s.ready(ctx)
	}
	return s.wait(ctx)
}

// retryDeadLetters tries once more what could not be stored. It needs no broker and
// may run beside an archiver.
func (s *server) retryDeadLetters(ctx context.Context, p *process) error {
	if err := s.openDatabase(ctx, false); err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, firstConnectTimeout)
	defer cancel()
	conn, err := s.connect(patience)
	if err != nil {
		return databaseError(s.cfg.DatabaseURL, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // everything was committed page by page
	retried, stored, failed, err := archiver.RetryDeadLetters(ctx, conn)
	fmt.Fprintf(p.stdout, "%d dead letters tried: %d stored, %d refused again (table dead_letters has the reasons)\n", retried, stored, failed)
	return err
}
