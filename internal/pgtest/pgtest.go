// Package pgtest gives tests a real PostgreSQL without anything started by hand.
//
// New returns a fresh, migrated database of one's own on a server that all test
// processes of a run share. The first to need it starts it; a keeper process stops
// it and removes its files when the run is over, however it ended. NewServer gives
// a server of one's own, to be killed and started again.
//
// The servers run with fsync off: they outlive the death of any process, not that
// of the machine.
package pgtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mynah/internal/postgres"
	"mynah/schema"

	"github.com/jackc/pgx/v5"
)

// patience bounds every step; the machine may be busy with other tests.
const patience = 60 * time.Second

// New returns the address of a fresh database with all migrations. It is dropped
// when the test ends, whoever is still connected.
func New(tb testing.TB) string {
	tb.Helper()
	name, err := migrated()
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	return create(tb, name)
}

// NewEmpty returns the address of a fresh database without any migration. It is
// dropped when the test ends, whoever is still connected.
func NewEmpty(tb testing.TB) string {
	tb.Helper()
	return create(tb, "template1")
}

var created atomic.Int64

func create(tb testing.TB, template string) string {
	tb.Helper()
	name := fmt.Sprintf("test_%d_%d", os.Getpid(), created.Add(1))
	create := "CREATE DATABASE " + name + " TEMPLATE " + template
	if err := admin(create); err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	tb.Cleanup(func() {
		if err := admin("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			tb.Errorf("pgtest: %v", err)
		}
	})
	address, err := shared()
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	return withDatabase(address, name)
}

// withDatabase puts another database's name into an address of the server.
func withDatabase(address, name string) string {
	return strings.Replace(address, "/"+postgres.Database+"?", "/"+name+"?", 1)
}

// admin runs a statement on the shared server, outside any test's database.
func admin(statement string) error {
	address, err := shared()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // the statement's own error is what matters
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// migrated returns the name of the template database with all migrations, which
// it makes if no process of this run has. The name holds a hash of the
// migrations, so that runs of different trees can share the server.
var migrated = sync.OnceValues(func() (string, error) {
	address, err := shared()
	if err != nil {
		return "", err
	}
	hash, err := migrationsHash()
	if err != nil {
		return "", err
	}
	name := "migrated_" + hash

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(ctx) }() // releases the lock too
	// One process makes it; the others wait.
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock(hashtext($1))`, name); err != nil {
		return "", err
	}
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name).Scan(&exists); err != nil || exists {
		return name, err
	}
	// Under another name until it is whole: its maker may be killed.
	unfinished := fmt.Sprintf("%s_%d", name, os.Getpid())
	if _, err := conn.Exec(ctx, `CREATE DATABASE `+unfinished); err != nil {
		return "", err
	}
	if err := schema.Migrate(ctx, withDatabase(address, unfinished)); err != nil {
		return "", err
	}
	// A connection that was closed may take a moment to be gone.
	for {
		_, err := conn.Exec(ctx, `ALTER DATABASE `+unfinished+` RENAME TO `+name)
		if err == nil {
			return name, nil
		}
		if ctx.Err() != nil {
			return "", err
		}
	}
})

// migrationsHash names a state of the migrations.
func migrationsHash() (string, error) {
	hash := sha256.New()
	err := fs.WalkDir(schema.Migrations(), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(schema.Migrations(), path)
		fmt.Fprintf(hash, "%s %d\n%s", path, len(text), text)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read the migrations: %w", err)
	}
	return hex.EncodeToString(hash.Sum(nil)[:8]), nil
}

// settings are what the servers of tests run with: fast, and with room for many
// parallel tests.
func settings() map[string]string {
	return map[string]string{
		"fsync":            "off", // synchronous_commit stays on: the server may be killed
		"full_page_writes": "off",
		"autovacuum":       "off", // no surprise, and no connection to a template
		"max_connections":  "300",
		"shared_buffers":   "64MB",
	}
}

// Server is a PostgreSQL server of one test's own.
type Server struct {
	tb     testing.TB
	server *postgres.Server
}

// NewServer starts a server with a migrated database. Settings ("fsync=on") are
// put over the package's. It is stopped and removed when the test ends.
func NewServer(tb testing.TB, overrides ...string) *Server {
	tb.Helper()
	if _, err := shared(); err != nil { // its keeper cleans up after us if we are killed
		tb.Fatalf("pgtest: %v", err)
	}
	all := settings()
	for _, override := range overrides {
		name, value, _ := strings.Cut(override, "=")
		all[name] = value
	}
	dir, err := os.MkdirTemp(home(), "private-")
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("pgtest: %v", err)
		}
	})
	if err := copyMigrated(dir); err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	s := &Server{tb: tb, server: postgres.New(postgres.Config{Dir: filepath.Join(dir, "pg"), Settings: all, NoRestart: true})}
	s.Start()
	tb.Cleanup(func() { s.Stop(syscall.SIGQUIT) })
	return s
}

// copyMigrated makes dir/pg a migrated server's folder. Such a folder is made once
// a run, which takes ten times as long as to copy it.
func copyMigrated(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	hash, err := migrationsHash()
	if err != nil {
		return err
	}
	made := filepath.Join(home(), "made-"+hash)
	mutex, err := lock("mutex", syscall.LOCK_EX) // one process makes it, the others wait
	if err != nil {
		return err
	}
	defer func() { _ = mutex.Close() }()
	if _, err := os.Stat(made); err != nil {
		unfinished, err := os.MkdirTemp(home(), "private-")
		if err != nil {
			return err
		}
		server := postgres.New(postgres.Config{Dir: filepath.Join(unfinished, "pg"), Settings: settings()})
		if err := server.Start(ctx); err != nil {
			return err
		}
		if err := errors.Join(schema.Migrate(ctx, server.URL()), server.Stop(ctx)); err != nil {
			return err
		}
		if err := os.Rename(unfinished, made); err != nil {
			return err
		}
	}
	// cp keeps the owner, who may not be us.
	return exec.CommandContext(ctx, "cp", "-a", filepath.Join(made, "pg"), dir).Run()
}

// URL returns the address of the server's database. It stays the same.
func (s *Server) URL() string { return s.server.URL() }

// Start starts the server after Kill or Stop and returns when it answers.
func (s *Server) Start() {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.server.Start(ctx); err != nil {
		s.tb.Fatalf("pgtest: %v", err)
	}
}

// Kill ends the server by SIGKILL and returns when it is gone.
func (s *Server) Kill() {
	s.tb.Helper()
	s.Stop(syscall.SIGKILL)
}

// Stop ends the server by a signal and returns when it is gone: SIGINT is
// PostgreSQL's fast mode, SIGQUIT its immediate mode. It does nothing if the
// server is not running.
func (s *Server) Stop(sig syscall.Signal) {
	s.tb.Helper()
	exited := s.server.Exited()
	select {
	case <-exited:
	default:
		if err := s.server.Signal(sig); err != nil {
			s.tb.Fatalf("pgtest: %v", err)
		}
		<-exited
	}
	if err := s.server.Stop(context.Background()); err != nil {
		s.tb.Fatalf("pgtest: %v", err)
	}
}

// Admit lets everybody from a network in, without a password, where the server listens
// on an address of it.
func (s *Server) Admit(network string) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		s.tb.Fatalf("pgtest: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }() // the statements' own error is what matters
	for _, sql := range []string{
		`COPY (SELECT 'host all all ` + network + ` trust') TO PROGRAM 'cat >>pg_hba.conf'`, // its folder is the cluster
		`SELECT pg_reload_conf()`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			s.tb.Fatalf("pgtest: %s: %v", sql, err)
		}
	}
}
