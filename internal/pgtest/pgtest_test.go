package pgtest_test

import (
	"context"
	"syscall"
	"testing"

	"mynah/internal/leak"
	"mynah/internal/pgtest"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) { leak.Main(m) }

func connect(t *testing.T, address string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Guards against two tests that share a database.
func TestNewIsFresh(t *testing.T) {
	t.Parallel()
	first, second := connect(t, pgtest.New(t)), connect(t, pgtest.New(t))
	if _, err := first.Exec(t.Context(), `INSERT INTO messages VALUES (1, 'user/b', 'dm/a/b', 'a', now(), 'text', NULL, '{}')`); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := second.QueryRow(t.Context(), `SELECT count(*) FROM messages`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	if n != 0 {
		t.Errorf("a fresh database has %d messages", n)
	}
}

func TestNewEmptyHasNoTables(t *testing.T) {
	t.Parallel()
	var n int
	err := connect(t, pgtest.NewEmpty(t)).QueryRow(t.Context(),
		`SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace`).Scan(&n)
	if err != nil || n != 0 {
		t.Errorf("an empty database has %d tables (%v)", n, err)
	}
}

// Guards against a private server that loses what was committed when it is killed
// and started again, or that changes its address.
func TestServerSurvivesKill(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	address := server.URL()
	if _, err := connect(t, address).Exec(t.Context(), `CREATE TABLE kept AS SELECT 1 AS n`); err != nil {
		t.Fatal(err)
	}
	for _, end := range []func(){server.Kill, func() { server.Stop(syscall.SIGINT) }, func() { server.Stop(syscall.SIGQUIT) }} {
		end()
		if conn, err := pgx.Connect(t.Context(), address); err == nil {
			_ = conn.Close(t.Context())
			t.Fatal("the server answers after its end")
		}
		server.Start()
		if server.URL() != address {
			t.Fatalf("address is %s, was %s", server.URL(), address)
		}
		var n int
		if err := connect(t, address).QueryRow(t.Context(), `SELECT n FROM kept`).Scan(&n); err != nil || n != 1 {
			t.Fatalf("after a restart: %d, %v", n, err)
		}
	}
}
