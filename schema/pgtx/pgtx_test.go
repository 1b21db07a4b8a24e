package pgtx_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/internal/leak"
	"mynah/internal/pgtest"
	"mynah/schema/pgtx"
)

func TestMain(m *testing.M) { leak.Main(m) }

func open(tb testing.TB) *pgtx.DB {
	tb.Helper()
	pool, err := pgxpool.New(tb.Context(), pgtest.New(tb))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(pool.Close)
	return pgtx.New(pool)
}

func insert(ctx context.Context, db *pgtx.DB, id string) error {
	_, err := db.Q(ctx).Exec(ctx, `INSERT INTO accounts (id) VALUES ($1)`, id)
	return err
}

func count(tb testing.TB, db *pgtx.DB) (n int) {
	tb.Helper()
	if err := db.Pool().QueryRow(tb.Context(), `SELECT count(*) FROM accounts`).Scan(&n); err != nil {
		tb.Fatal(err)
	}
	return n
}

// An inner Tx is part of the outer one: both are committed, or neither.
func TestTxJoins(t *testing.T) {
	t.Parallel()
	db := open(t)
	fail := errors.New("fail")
	for _, c := range []struct {
		name string
		err  error
		rows int
	}{{"fails", fail, 0}, {"commits", nil, 2}} {
		err := db.Tx(t.Context(), func(ctx context.Context) error {
			if err := insert(ctx, db, "a"); err != nil {
				return err
			}
			if err := db.Tx(ctx, func(ctx context.Context) error { return insert(ctx, db, "b") }); err != nil {
				return err
			}
			if count(t, db) != 0 {
				t.Error("seen before the commit")
			}
			return c.err
		})
		if !errors.Is(err, c.err) || count(t, db) != c.rows {
			t.Errorf("%s: %v, %d rows", c.name, err, count(t, db))
		}
	}
	err := insert(t.Context(), db, "a")
	if !pgtx.Violates(err, "accounts_pkey") || pgtx.Unreachable(err) {
		t.Errorf("a second time: %v", err)
	}
}

// Guards against a connection that stays in a transaction for ever.
func TestPanicRollsBack(t *testing.T) {
	t.Parallel()
	db := open(t)
	func() {
		defer func() { _ = recover() }()
		_ = db.Tx(t.Context(), func(ctx context.Context) error {
			if err := insert(ctx, db, "a"); err != nil {
				t.Error(err)
			}
			panic("a bug")
		})
	}()
	if n := count(t, db); n != 0 {
		t.Errorf("%d rows", n)
	}
	if n := db.Pool().Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections kept", n)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	db := pgtx.New(pool)
	if err := insert(t.Context(), db, "a"); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	// A broken connection first, then none. The postmaster is dead; a backend may
	// answer once more before it notices.
	for failed := 0; failed < 3; {
		err := db.Tx(t.Context(), func(ctx context.Context) error { return insert(ctx, db, "b") })
		if err == nil || pgtx.Violates(err, "accounts_pkey") {
			continue
		}
		if failed++; !pgtx.Unreachable(err) {
			t.Errorf("not recognised: %v", err)
		}
	}
	for state, away := range map[string]bool{
		"25006": true, "55P03": true, "57P01": true, "40P01": true, // read-only, lock timeout, shutdown, deadlock
		"23505": false, "42601": false, "42501": false, "22003": false,
	} {
		if err := fmt.Errorf("ask: %w", &pgconn.PgError{Code: state}); pgtx.Unreachable(err) != away {
			t.Errorf("%s: Unreachable is %v", state, !away)
		}
	}
	if pgtx.Unreachable(nil) || pgtx.Unreachable(errors.New("a bug")) {
		t.Error("everything is taken for an outage")
	}
}
