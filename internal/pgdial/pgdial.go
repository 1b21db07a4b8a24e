// Package pgdial makes the settings of every connection of ours to PostgreSQL, so that
// one that is dead is noticed by both sides within seconds and not after the hours of
// the system's defaults.
//
// What it guarantees for each connection, unless the address says otherwise:
//
//   - Both sides look after a silence whether the other is there (TCP keepalive) and
//     give up what is not acknowledged in time (TCP_USER_TIMEOUT, where the system has
//     it). A firewall that forgets a connection without a word costs [DeadAfter], and
//     twice that in the worst case; then the server lets go of the session's locks.
//   - A transaction whose client says nothing more is ended by the server.
//   - A connection that has said that its server is stopping, lost or read-only is not
//     used again. In a pool, neither are the others that are open then.
//
// The address wins: tcp_keepalives_idle, tcp_keepalives_interval, tcp_keepalives_count
// and tcp_user_timeout in it (or in its options) are for both sides; keepalives,
// keepalives_idle, keepalives_interval and keepalives_count, as libpq has them, for ours
// alone. Who sets a keepalive and no tcp_user_timeout gets one that does not cut the
// keepalive short.
package pgdial

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DeadAfter is the silence after which a connection is taken for dead.
const DeadAfter = 12 * time.Second

// PostgreSQL's names of the settings, which are ours as well.
const (
	idle        = "tcp_keepalives_idle"
	interval    = "tcp_keepalives_interval"
	count       = "tcp_keepalives_count"
	userTimeout = "tcp_user_timeout"
	idleInTx    = "idle_in_transaction_session_timeout"
)

// defaults are in the units that PostgreSQL has for them: seconds, seconds, a count,
// milliseconds.
var defaults = map[string]int64{
	idle:        5,
	interval:    3,
	count:       3,
	userTimeout: DeadAfter.Milliseconds(),
}

// idleInTxTimeout ends a transaction in which nothing happens, also where a proxy
// between us and the server acknowledges for a client that is gone. Ours take
// milliseconds.
const idleInTxTimeout = "60s"

// resetPause is between two resets of a pool: a server that is read-only for good
// refuses every write.
const resetPause = time.Second

// ErrReadOnly is returned by TakesWrites.
var ErrReadOnly = errors.New("PostgreSQL is read-only: it is a standby, or default_transaction_read_only is on")

// Parse returns the settings of a connection to the address, a URL or key-value string.
// The application is its application_name if the address has none. The error may quote
// the address with its password.
func Parse(address, application string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(address)
	if err != nil {
		return nil, err
	}
	apply(config, application)
	return config, nil
}

// ParsePool is Parse for a pool, which NewPool makes.
func ParsePool(address, application string) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(address)
	if err != nil {
		return nil, err
	}
	apply(config.ConnConfig, application)
	return config, nil
}

// NewPool returns a pool with settings of ParsePool. When one of its connections says
// that its server is stopping, lost or read-only, the others are not used again either:
// they lead to the same server, and the address may lead to another by now.
func NewPool(ctx context.Context, config *pgxpool.Config) (*pgxpool.Pool, error) {
	var pool atomic.Pointer[pgxpool.Pool]
	var last atomic.Int64 // when it was reset, in nanoseconds
	inner := config.ConnConfig.OnPgError
	config.ConnConfig.OnPgError = func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		if p := pool.Load(); p != nil && useless(err) {
			now, before := time.Now().UnixNano(), last.Load()
			if now-before > resetPause.Nanoseconds() && last.CompareAndSwap(before, now) {
				p.Reset()
			}
		}
		return inner(conn, err)
	}
	made, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	pool.Store(made)
	return made, nil
}

// Querier is a *pgx.Conn, a *pgxpool.Pool or a pgx.Tx.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// TakesWrites returns ErrReadOnly if the server that the connection leads to does not
// take writes, and the error of asking it otherwise.
func TakesWrites(ctx context.Context, db Querier) error {
	var readOnly bool
	// It is on in recovery as well.
	if err := db.QueryRow(ctx, `SELECT current_setting('transaction_read_only')::boolean`).Scan(&readOnly); err != nil {
		return err
	}
	if readOnly {
		return ErrReadOnly
	}
	return nil
}

// Limit sets limits of the session that nobody but this package has decided: neither the
// address, nor the role, nor the database, nor the server's configuration. Those that the
// server does not know are left out.
func Limit(ctx context.Context, conn *pgx.Conn, limits map[string]string) error {
	names := slices.Sorted(maps.Keys(limits))
	values := make([]string, len(names))
	for i, name := range names {
		values[i] = limits[name]
	}
	_, err := conn.Exec(ctx, `SELECT set_config(s.name, l.value, false) FROM unnest($1::text[], $2::text[]) AS l (name, value) JOIN pg_settings s USING (name) WHERE s.source IN ('default', 'session')`, names, values)
	return err
}

// SelectLockHolder describes the session that has the advisory lock $1 (one of 64 bits)
// of this database, for the log: which process of PostgreSQL, whose, and since when. What
// this role may not see is left out.
const SelectLockHolder = `
SELECT concat('process ', l.pid, ' of PostgreSQL',
	', ' || nullif(a.application_name, ''),
	', from ' || host(a.client_addr),
	', connected since ' || to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
	', ' || a.state || ' since ' || to_char(a.state_change AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
FROM pg_locks l
LEFT JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
	AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
	AND l.classid = ($1::bigint >> 32)::oid AND l.objid = ($1::bigint & 4294967295)::oid
LIMIT 1`

// useless reports whether an error says that the connection leads to a server that will
// not do: it is a standby or read-only (25006), is stopping (57P01) or has lost a process
// and starts again (57P02), or the connection itself is broken (class 08).
func useless(err *pgconn.PgError) bool {
	return slices.Contains([]string{"25006", "57P01", "57P02"}, err.Code) || strings.HasPrefix(err.Code, "08")
}

// apply puts our settings into the configuration, where the address has none.
func apply(config *pgx.ConnConfig, application string) {
	params := config.RuntimeParams
	if params["application_name"] == "" && application != "" {
		params["application_name"] = application
	}
	theirs := maps.Clone(params)
	for name, value := range parseOptions(params["options"]) {
		if _, ok := theirs[name]; !ok {
			theirs[name] = value
		}
	}
	ours := settle(theirs, "")
	client := settle(theirs, "tcp_")
	dialer := &net.Dialer{Timeout: config.ConnectTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true,
		// A negative value leaves the system's, which 0 means in PostgreSQL's settings.
		Idle:     orSystem(time.Duration(client[idle]) * time.Second),
		Interval: orSystem(time.Duration(client[interval]) * time.Second),
		Count:    int(orSystem(time.Duration(client[count]))),
	}}
	if theirs["keepalives"] == "0" {
		dialer.KeepAlive, dialer.KeepAliveConfig = -1, net.KeepAliveConfig{}
	}
	dialer.Control = giveUpAfter(time.Duration(client[userTimeout]) * time.Millisecond)
	config.DialFunc = dialer.DialContext
	// PostgreSQL does not know them.
	for _, name := range []string{"keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"} {
		delete(params, name)
	}

	var wanted []string
	for _, name := range []string{idle, interval, count, userTimeout} {
		if _, given := theirs[name]; !given {
			wanted = append(wanted, fmt.Sprintf("set_config('%s', '%d', false)", name, ours[name]))
		}
	}
	// One that the database or the role has is somebody's decision as well.
	sql := fmt.Sprintf("SELECT set_config(name, '%s', false) FROM pg_settings WHERE name = '%s' AND source = 'default'", idleInTxTimeout, idleInTx)
	if len(wanted) > 0 {
		sql += "; SELECT " + strings.Join(wanted, ", ")
	}
	// Not as parameters of the start: PgBouncer refuses a start with some that it
	// does not know.
	config.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		_, err := conn.Exec(ctx, sql).ReadAll()
		if _, refused := errors.AsType[*pgconn.PgError](err); refused && !conn.IsClosed() {
			return nil // whatever stands in between does not want it; the connection works
		}
		return err
	}
	inner := config.OnPgError
	config.OnPgError = func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		return !useless(err) && inner(conn, err)
	}
}

// settle returns the four values for one side: those of the address, else the defaults.
// With a prefix a name without it goes first: libpq's keepalives_idle for our side alone.
// A value that cannot be understood is 0 here, the system's; PostgreSQL refuses it.
func settle(theirs map[string]string, prefix string) map[string]int64 {
	values := maps.Clone(defaults)
	set := map[string]bool{}
	for _, name := range []string{idle, interval, count, userTimeout} {
		text, given := theirs[name]
		if prefix != "" && name != userTimeout {
			if own, ok := theirs[strings.TrimPrefix(name, prefix)]; ok {
				text, given = own, true
			}
		}
		if !given {
			continue
		}
		unit := time.Second
		if name == userTimeout {
			unit = time.Millisecond
		}
		set[name], values[name] = true, parseValue(text, unit)
	}
	if !set[userTimeout] && (set[idle] || set[interval] || set[count]) {
		// It decides before the keepalive does, so it must not be shorter.
		whole := 1000 * (values[idle] + values[interval]*values[count])
		if values[idle] == 0 || values[interval] == 0 || values[count] == 0 {
			whole = 0 // the system's, which we do not know
		} else {
			whole = max(whole, values[userTimeout])
		}
		values[userTimeout] = whole
	}
	return values
}

func orSystem(value time.Duration) time.Duration {
	if value <= 0 {
		return -1
	}
	return value
}
