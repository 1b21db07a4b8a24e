package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/internal/pgdial"
	"mynah/internal/postgres"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// application is what PostgreSQL shows of the sessions of this process that are no
// particular part's.
const application = "mynah"

// firstConnectTimeout is how long a database may take to answer at start.
const firstConnectTimeout = 10 * time.Second

// How long a connection of the pool may take to answer before a request, and a new one
// to be made: so a call is told that the database is away in seconds.
const (
	pingTimeout    = time.Second
	connectTimeout = 3 * time.Second
)

// postgresStopTimeout is how long the private PostgreSQL may take to stop.
const postgresStopTimeout = 15 * time.Second

// openDatabase sees that the database can be used. A database that goes away
// later is waited for; one that was never there is most likely a wrong address.
func (s *server) openDatabase(ctx context.Context, migrate bool) error {
	address := s.cfg.DatabaseURL
	patience, cancel := context.WithTimeout(ctx, firstConnectTimeout)
	defer cancel()
	told := s.tellWaiting(ctx, "PostgreSQL at --database-url to answer")
	conn, err := s.connect(patience)
	told()
	if err != nil {
		return databaseError(address, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // nothing is pending on it
	if migrate {
		// Of what is migrated the log is told nothing, so a long migration would look
		// like a start that hangs.
		defer s.tellWaiting(ctx, "the database to be brought to this version")()
		waiting := func(holder string) {
			s.log.WarnContext(ctx, "waiting for another migration of the database to end", "holder", holder)
		}
		if err := schema.Migrate(ctx, address.Reveal(), waiting); err != nil {
			return databaseError(address, err)
		}
		return nil
	}
	if err := schema.Check(patience, conn); err != nil {
		return databaseError(address, err)
	}
	return nil
}

// connect makes a connection of this process's own.
func (s *server) connect(ctx context.Context) (*pgx.Conn, error) {
	config, err := pgdial.Parse(s.cfg.DatabaseURL.Reveal(), application)
	if err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, config)
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
	s.shutdown.pushSlow("private PostgreSQL", postgresStopTimeout, server.Stop)
	s.cfg.DatabaseURL = SecretURL(server.URL())
	return nil
}

// openPool connects to the database for as long as the process runs, and makes it
// part of what /readyz says. Chat goes on without it, so a broker stays ready.
func (s *server) openPool(soft bool) error {
	config, err := pgdial.ParsePool(s.cfg.DatabaseURL.Reveal(), application)
	if err != nil {
		return databaseError(s.cfg.DatabaseURL, err)
	}
	// One that accepts and does not answer, as behind a dead firewall, is away as well.
	config.PingTimeout = pingTimeout
	if own := &config.ConnConfig.ConnectTimeout; *own <= 0 || *own > connectTimeout {
		*own = connectTimeout
	}
	// It outlives the context of the start, until its stop.
	if s.pool, err = pgdial.NewPool(context.Background(), config); err != nil {
		return databaseError(s.cfg.DatabaseURL, err)
	}
	s.shutdown.push("database connections", func(ctx context.Context) error {
		pgtx.Close(ctx, s.pool)
		return nil
	})
	s.health.add(check{name: "database", soft: soft, fails: s.checkDatabase})
	return nil
}

// checkDatabase returns nil if the database answers and takes writes. Where it does not
// take them, the pool's connections are not used again: another server may have taken its
// place.
func (s *server) checkDatabase(ctx context.Context) error {
	err := pgdial.CheckWritable(ctx, s.pool)
	if errors.Is(err, pgdial.ErrReadOnly) {
		s.pool.Reset()
	}
	return err
}
