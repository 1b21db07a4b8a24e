// Package pgtest gives tests a real PostgreSQL; nothing has to be started by
// hand.
//
// New returns the address of a new, migrated database on a server that all test
// processes of a run share. The first process that needs the server starts it. A
// keeper process stops it and removes its files when the run is over, however it
// ended. NewServer starts a server for one test, which may kill and restart it.
//
// The servers run with fsync off. Their data survives the end of any process, but
// not a crash of the machine.
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

// stepTimeout bounds every step. It is long, since the machine may be busy
// with other tests.
const stepTimeout = 60 * time.Second

// New returns the address of a new database with all migrations. It is dropped
// when the test ends, even if clients are still connected.
func New(tb testing.TB) string {
	tb.Helper()
	name, err := migratedTemplate()
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	return create(tb, name)
}

// NewEmpty returns the address of a new database without any migration. It is
// dropped when the test ends, even if clients are still connected.
func NewEmpty(tb testing.TB) string {
	tb.Helper()
	return create(tb, "template1")
}

var databaseCount atomic.Int64

func create(tb testing.TB, template string) string {
	tb.Helper()
	name := fmt.Sprintf("test_%d_%d", os.Getpid(), databaseCount.Add(1))
	create := "CREATE DATABASE " + name + " TEMPLATE " + template
	if err := execOnShared(create); err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	tb.Cleanup(func() {
		if err := execOnShared("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			tb.Errorf("pgtest: %v", err)
		}
	})
	address, err := sharedAddress()
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	return withDatabase(address, name)
}

// withDatabase returns the address with another database's name.
func withDatabase(address, name string) string {
	return strings.Replace(address, "/"+postgres.Database+"?", "/"+name+"?", 1)
}

// execOnShared runs a statement on the shared server, outside any test's
// database.
func execOnShared(statement string) error {
	address, err := sharedAddress()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // only the statement's error matters
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// migratedTemplate returns the name of the template database with all
// migrations, and makes it if no process has. The name contains a hash of the
// migrations, so that runs of different work trees can share the server.
var migratedTemplate = sync.OnceValues(func() (string, error) {
	address, err := sharedAddress()
	if err != nil {
		return "", err
	}
	hash, err := migrationsHash()
	if err != nil {
		return "", err
	}
	name := "migrated_" + hash

	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(ctx) }() // releases the lock too
	// One process makes the template; the others wait.
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock(hashtext($1))`, name); err != nil {
		return "", err
	}
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name).Scan(&exists); err != nil || exists {
		return name, err
	}
	// It has another name until it is complete, since this process may be
	// killed.
	unfinished := fmt.Sprintf("%s_%d", name, os.Getpid())
	if _, err := conn.Exec(ctx, `CREATE DATABASE `+unfinished); err != nil {
		return "", err
	}
	if err := schema.Migrate(ctx, withDatabase(address, unfinished)); err != nil {
		return "", err
	}
	// The server may take a moment to end a closed connection.
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

// migrationsHash returns a hash of all migrations.
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

// settings are the settings of the test servers: fast, and with room for many
// parallel tests.
func settings() map[string]string {
	return map[string]string{
		"fsync":            "off", // synchronous_commit stays on: the server may be killed
		"full_page_writes": "off",
		"autovacuum":       "off", // autovacuum would disturb tests, and connect to the template
		"max_connections":  "300",
		"shared_buffers":   "64MB",
	}
}

// Server is a PostgreSQL server for one test.
type Server struct {
	tb     testing.TB
	server *postgres.Server
}

// NewServer starts a server with a migrated database. overrides, such as
// "fsync=on", replace the package's settings. The server is stopped and removed
// when the test ends.
func NewServer(tb testing.TB, overrides ...string) *Server {
	tb.Helper()
	if _, err := sharedAddress(); err != nil { // the keeper cleans up if this process is killed
		tb.Fatalf("pgtest: %v", err)
	}
	all := settings()
	for _, override := range overrides {
		name, value, _ := strings.Cut(override, "=")
		all[name] = value
	}
	dir, err := os.MkdirTemp(sharedDir(), "private-")
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

// copyMigrated copies the folder of a migrated server to dir/pg. The original is
// made once a run, since that takes ten times as long as the copy.
func copyMigrated(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	hash, err := migrationsHash()
	if err != nil {
		return err
	}
	made := filepath.Join(sharedDir(), "made-"+hash)
	mutex, err := lock("mutex", syscall.LOCK_EX) // one process makes it, the others wait
	if err != nil {
		return err
	}
	defer func() { _ = mutex.Close() }()
	if _, err := os.Stat(made); err != nil {
		unfinished, err := os.MkdirTemp(sharedDir(), "private-")
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
	// cp -a keeps the owner, which may be another user.
	return exec.CommandContext(ctx, "cp", "-a", filepath.Join(made, "pg"), dir).Run()
}

// URL returns the address of the server's database. It stays the same.
func (s *Server) URL() string { return s.server.URL() }

// Start starts the server after Kill or Stop and returns when it answers.
func (s *Server) Start() {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
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

// AllowNetwork allows connections from a network, without a password. The server must
// listen on an address of that network.
func (s *Server) AllowNetwork(network string) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		s.tb.Fatalf("pgtest: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }() // only the statements' error matters
	for _, sql := range []string{
		`COPY (SELECT 'host all all ` + network + ` trust') TO PROGRAM 'cat >>pg_hba.conf'`, // its folder is the cluster
		`SELECT pg_reload_conf()`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			s.tb.Fatalf("pgtest: %s: %v", sql, err)
		}
	}
}
