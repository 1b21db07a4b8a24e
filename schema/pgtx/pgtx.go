// Package pgtx carries a PostgreSQL transaction in the context, so that several
// stores take part in one transaction without knowing of each other: a call that
// creates something, the notice about it and the answer kept for its
// Idempotency-Key are committed together or not at all.
package pgtx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Querier is what stores ask: a transaction or the pool.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// DB is a pool whose transactions travel in the context.
type DB struct {
	pool *pgxpool.Pool
}

// New returns a DB on the pool, which stays the caller's to close.
func New(pool *pgxpool.Pool) *DB { return &DB{pool: pool} }

// Pool returns the pool itself, for what must not be part of a transaction (a
// count of failed tries survives the failure) and for LISTEN.
func (db *DB) Pool() *pgxpool.Pool { return db.pool }

type key struct{}

// Q returns the context's transaction, or the pool outside of one.
func (db *DB) Q(ctx context.Context) Querier {
	if tx, ok := ctx.Value(key{}).(pgx.Tx); ok {
		return tx
	}
	return db.pool
}

// Tx runs fn in a transaction and commits it if fn returns nil. Inside another
// Tx it joins that one: an error then undoes the whole. fn's error is returned
// as it is. The error of a failed commit leaves open whether the transaction
// happened, as always with networks.
func (db *DB) Tx(ctx context.Context, fn func(context.Context) error) error {
	if _, ok := ctx.Value(key{}).(pgx.Tx); ok {
		return fn(ctx)
	}
	tx, err := db.pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	if err := runOrRollBack(context.WithValue(ctx, key{}, tx), tx, fn); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit transaction: %w", err)
	}
	return nil
}

// Exec runs a statement in the context's transaction, if there is one, and returns how
// many rows it affected. doing begins the error.
func (db *DB) Exec(ctx context.Context, doing, statement string, args ...any) (int64, error) {
	tag, err := db.Q(ctx).Exec(ctx, statement, args...)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", doing, err)
	}
	return tag.RowsAffected(), nil
}

// Count runs a query that gives one number, as Exec does.
func (db *DB) Count(ctx context.Context, query string, args ...any) (n int, err error) {
	if err = db.Q(ctx).QueryRow(ctx, query, args...).Scan(&n); err != nil {
		return 0, fmt.Errorf("count: %w", err)
	}
	return n, nil
}

// List collects the rows of a query, as Exec does.
func List[T any](ctx context.Context, db *DB, doing string, scan pgx.RowToFunc[T], query string, args ...any) ([]T, error) {
	rows, err := db.Q(ctx).Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	all, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return all, nil
}

// runOrRollBack runs fn and rolls the transaction back if it fails or panics. The
// rollback must happen although ctx may have ended: else the connection would
// be thrown away.
func runOrRollBack(ctx context.Context, tx pgx.Tx, fn func(context.Context) error) error {
	done := false
	defer func() {
		if !done {
			_ = tx.Rollback(context.WithoutCancel(ctx)) // it failed already; fn's error says why
		}
	}()
	if err := fn(ctx); err != nil {
		return err
	}
	done = true
	return nil
}

// closeTimeout is how long Close waits for PostgreSQL.
const closeTimeout = time.Second

// Close closes the pool. It does not wait for a PostgreSQL that does not answer, nor
// longer than until ctx ends: then what is open is closed by the system at the end of
// the process.
func Close(ctx context.Context, pool *pgxpool.Pool) {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		pool.Close()
	}()
	timeout := time.NewTimer(closeTimeout)
	defer timeout.Stop()
	select {
	case <-closed:
	case <-timeout.C:
	case <-ctx.Done():
	}
}

// Violates reports whether err is PostgreSQL's refusal by the named constraint
// or unique index.
func Violates(err error, constraint string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.ConstraintName == constraint
}

// OutOfRange reports whether err is PostgreSQL's refusal of a value that its types
// cannot hold (class 22), or by the named constraint.
func OutOfRange(err error, constraint string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.ConstraintName == constraint || strings.HasPrefix(pg.Code, "22"))
}

// Unreachable reports whether err says that PostgreSQL could not be asked, or
// not in time, rather than that it refused: the caller may try again.
func Unreachable(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pg.Code[:2] {
		case "08", "53", "57", "40": // connection, resources, operator (shutdown), rollback (a deadlock)
			return true
		}
		// A standby, or a server that is being switched over; a lock, or a
		// transaction, that took longer than the server allows.
		return slices.Contains([]string{"25006", "55P03", "25P03", "25P04"}, pg.Code)
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, pgx.ErrTxClosed) || pgconn.SafeToRetry(err)
}
