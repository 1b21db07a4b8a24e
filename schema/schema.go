// Package schema is the database: its migrations and every query that the
// archive asks.
//
// Migrate brings a database to the version of this binary. It is safe to repeat,
// and safe when several processes do it at once: they queue on an advisory lock
// and the later ones find nothing left to do. A database that a newer version has
// migrated is refused and left as it is. There are no down migrations: what has
// shipped is changed by the next migration only.
//
// Numbers are reserved by subject, so that work on one does not wait for work on
// another; a database gets whatever it lacks, in the order of the numbers:
//
//	00001 …  the archive
//	00010 …  accounts
//	00020 …  contacts, groups, conversations
//	00100 …  whatever comes after the first release
package schema

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"mynah/internal/pgdial"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

var (
	// ErrNewer is returned when the database has been migrated by a newer
	// version of mynah than this one.
	ErrNewer = errors.New("the database was migrated by a newer version of mynah: start that version, or restore a backup made before the upgrade")
	// ErrEncoding is returned when the database cannot hold what people write.
	ErrEncoding = errors.New("the database is not UTF-8, so it could not hold what people write: make one with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0")
	// ErrOutdated is returned by Check when the database lacks migrations.
	ErrOutdated = errors.New("the database is not at this version's schema: run mynah migrate")
)

// versionTable is where goose keeps what has been applied. It has our name, so
// that it does not meet a goose of the user's own in the same database.
const versionTable = "mynah_migrations"

// lockID is the advisory lock that migrations queue on ("mynah" in ASCII).
const lockID = 0x6d796e6168

// undefinedTable is PostgreSQL's code for a table that does not exist.
const undefinedTable = "42P01"

// lockNotAvailable is its code for having waited too long for somebody else's lock.
const lockNotAvailable = "55P03"

//go:embed migrations/*.sql
var embedded embed.FS

// Migrations returns the embedded migrations as files NNNNN_name.sql.
func Migrations() fs.FS {
	sub, err := fs.Sub(embedded, "migrations")
	if err != nil {
		panic(err) // the folder is part of the binary
	}
	return sub
}

// Version returns the number of the newest migration of this binary.
func Version() int64 {
	versions := versions()
	return versions[len(versions)-1]
}

// Migrate applies what the database lacks. It waits while another process
// migrates the same database, until ctx ends or lockLimit has passed, and tells
// waiting, after five seconds and again twice a minute, which session it waits for.
// ErrNewer is returned if the database has a migration that this binary does not know;
// nothing is changed then. databaseURL is a PostgreSQL URL or key-value string.
func Migrate(ctx context.Context, databaseURL string, waiting ...func(holder string)) error {
	config, err := pgdial.Parse(databaseURL, "mynah migrate")
	if err != nil {
		return fmt.Errorf("migrate: read the database address: %w", err)
	}
	db := stdlib.OpenDB(*config)
	defer func() { _ = db.Close() }() // nothing is pending: every migration was committed or rolled back
	if err := db.PingContext(ctx); err != nil {
		return fmt.Errorf("migrate: connect to the database: %w", err)
	}
	var encoding string
	if err := db.QueryRowContext(ctx, selectEncoding).Scan(&encoding); err != nil {
		return fmt.Errorf("migrate: read the database's encoding: %w", err)
	}
	if encoding != utf8 {
		return fmt.Errorf("migrate: %w (it is %s)", ErrEncoding, encoding)
	}
	return migrate(ctx, db, Migrations(), waiting...)
}

func migrate(ctx context.Context, db *sql.DB, files fs.FS, waiting ...func(holder string)) error {
	locker := &advisoryLocker{waiting: waiting}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(versionTable),
		goose.WithSessionLocker(locker),
		goose.WithAllowOutofOrder(true), // numbers are reserved by subject, see above
		goose.WithDisableGlobalRegistry(true),
		goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("migrate: read the embedded migrations: %w", err)
	}
	for _, source := range provider.ListSources() {
		locker.known = append(locker.known, source.Version)
	}
	// The locker looks again under the lock, but goose takes it only if
	// something of ours is missing.
	if err := locker.refuseNewer(ctx, db); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	_, err = provider.Up(ctx)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == lockNotAvailable {
		return fmt.Errorf("migrate: another session has had a table locked for more than %s: see pg_locks and pg_stat_activity, end it, then try again: %w", tableLimit, err)
	}
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

// Check returns nil if the database has exactly this binary's migrations,
// ErrOutdated if it lacks some, ErrNewer if it has more and ErrEncoding if it is not
// UTF-8.
func Check(ctx context.Context, db Querier) error {
	rows, err := db.Query(ctx, selectEncoding)
	if err != nil {
		return fmt.Errorf("check the database's encoding: %w", err)
	}
	encoding, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("check the database's encoding: %w", err)
	}
	if encoding != utf8 {
		return fmt.Errorf("%w (it is %s)", ErrEncoding, encoding)
	}
	var applied []int64
	rows, err = db.Query(ctx, selectApplied)
	if err == nil {
		applied, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == undefinedTable {
		return ErrOutdated
	}
	if err != nil {
		return fmt.Errorf("check the database's version: %w", err)
	}
	known := versions()
	if err := notNewer(applied, known); err != nil {
		return err
	}
	if len(applied) < len(known) {
		return ErrOutdated
	}
	return nil
}

// Querier is what Check needs: a *pgx.Conn, a *pgxpool.Pool or a pgx.Tx.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// utf8 is PostgreSQL's name for the encoding that a database must have.
const utf8 = "UTF8"

const selectEncoding = `SELECT current_setting('server_encoding')`

const selectApplied = `SELECT version_id FROM ` + versionTable + ` WHERE version_id > 0 AND is_applied ORDER BY version_id`

// versions returns the numbers of the embedded migrations, ascending.
func versions() []int64 {
	entries, err := fs.ReadDir(Migrations(), ".")
	if err != nil {
		panic(err) // the folder is part of the binary
	}
	var all []int64
	for _, entry := range entries {
		version, err := goose.NumericComponent(entry.Name())
		if err != nil {
			panic(err) // a file of ours without a number
		}
		all = append(all, version)
	}
	slices.Sort(all)
	return all
}

func notNewer(applied, known []int64) error {
	for _, version := range applied {
		if !slices.Contains(known, version) {
			return fmt.Errorf("%w (it has migration %d, this version knows none after %d)",
				ErrNewer, version, known[len(known)-1])
		}
	}
	return nil
}

// How long a migration waits for what others have.
const (
	lockLimit  = 15 * time.Minute // for another migration
	tableLimit = "2min"           // for a table, unless the address or the role says otherwise
	askEvery   = 100 * time.Millisecond
	tellAfter  = 5 * time.Second
	tellEvery  = 30 * time.Second
)

// advisoryLocker is goose's session lock by an advisory lock, which PostgreSQL releases
// when the connection ends. It asks again and again, so that it can say who has it. Under
// the lock, and before goose touches anything, it refuses a newer database.
type advisoryLocker struct {
	known   []int64
	waiting []func(holder string)
}

func (l *advisoryLocker) SessionLock(ctx context.Context, conn *sql.Conn) error {
	began := time.Now()
	tell := began.Add(tellAfter)
	for {
		var ours bool
		if err := conn.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, int64(lockID)).Scan(&ours); err != nil {
			return fmt.Errorf("wait for the migration lock: %w", err)
		}
		if ours {
			break
		}
		if now := time.Now(); now.After(tell) {
			tell = now.Add(tellEvery)
			holder := "a session that has just ended"
			if err := conn.QueryRowContext(ctx, pgdial.SelectLockHolder, int64(lockID)).Scan(&holder); err != nil && !errors.Is(err, sql.ErrNoRows) {
				return fmt.Errorf("look who has the migration lock: %w", err)
			}
			for _, waiting := range l.waiting {
				waiting(holder)
			}
			if now.Sub(began) > lockLimit {
				return fmt.Errorf("another migration has not ended for %v (%s): see whether it still works; pg_terminate_backend ends it", lockLimit, holder)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the migration lock: %w", ctx.Err())
		case <-time.After(askEvery):
		}
	}
	if _, err := conn.ExecContext(ctx, `SELECT set_config('lock_timeout', $1, false) WHERE current_setting('lock_timeout') = '0'`, tableLimit); err != nil {
		return errors.Join(fmt.Errorf("limit the wait for tables: %w", err), l.SessionUnlock(context.WithoutCancel(ctx), conn))
	}
	if err := l.refuseNewer(ctx, conn); err != nil {
		return errors.Join(err, l.SessionUnlock(context.WithoutCancel(ctx), conn))
	}
	return nil
}

func (l *advisoryLocker) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_unlock($1)`, int64(lockID)); err != nil {
		return fmt.Errorf("release the migration lock: %w", err)
	}
	return nil
}

// sqlQuerier is a *sql.DB or a *sql.Conn.
type sqlQuerier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func (l *advisoryLocker) refuseNewer(ctx context.Context, conn sqlQuerier) error {
	var exists bool
	if err := conn.QueryRowContext(ctx, `SELECT to_regclass($1) IS NOT NULL`, versionTable).Scan(&exists); err != nil {
		return fmt.Errorf("look for table %s: %w", versionTable, err)
	}
	if !exists {
		return nil
	}
	rows, err := conn.QueryContext(ctx, selectApplied)
	if err != nil {
		return fmt.Errorf("read table %s: %w", versionTable, err)
	}
	defer func() { _ = rows.Close() }()
	var applied []int64
	for rows.Next() {
		var version int64
		if err := rows.Scan(&version); err != nil {
			return fmt.Errorf("read table %s: %w", versionTable, err)
		}
		applied = append(applied, version)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read table %s: %w", versionTable, err)
	}
	return notNewer(applied, l.known)
}
