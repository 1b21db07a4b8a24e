// Package pgdial configures every connection to PostgreSQL, so that both sides notice
// a dead connection within seconds; with the system's defaults it takes hours.
//
// Unless the address says otherwise, it guarantees for each connection:
//
//   - Both sides probe a silent connection (TCP keepalive), and end it if data is not
//     acknowledged in time (TCP_USER_TIMEOUT, where the system has it). A connection
//     that a firewall has dropped silently ends after [DeadAfter], in the worst case
//     after twice that. The server then releases the session's locks.
//   - The server ends a transaction whose client is idle for a minute.
//   - A connection is not used again after an error that says that its server is
//     stopping, crashed or read-only. In a pool, neither are the other connections
//     that are open at that time.
//
// The address wins: tcp_keepalives_idle, tcp_keepalives_interval, tcp_keepalives_count
// and tcp_user_timeout in it (or in its options) apply to both sides. libpq's
// keepalives, keepalives_idle, keepalives_interval and keepalives_count apply to our
// side only. An address with a keepalive and without tcp_user_timeout gets a
// tcp_user_timeout that is no shorter than the keepalive.
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

// PostgreSQL's names of the settings. Our side uses the same names.
const (
	idle        = "tcp_keepalives_idle"
	interval    = "tcp_keepalives_interval"
	count       = "tcp_keepalives_count"
	userTimeout = "tcp_user_timeout"
	idleInTx    = "idle_in_transaction_session_timeout"
)

// defaults are in PostgreSQL's units: seconds, seconds, a count, milliseconds.
var defaults = map[string]int64{
	idle:        5,
	interval:    3,
	count:       3,
	userTimeout: DeadAfter.Milliseconds(),
}

// idleInTxTimeout ends a transaction in which nothing happens. It also works
// where a proxy acknowledges for a client that is gone. Our transactions take
// milliseconds.
const idleInTxTimeout = "60s"

// minResetInterval is the shortest time between two resets of a pool, since a
// server that stays read-only refuses every write.
const minResetInterval = time.Second

// ErrReadOnly is returned by CheckWritable for a server that does not accept
// writes.
var ErrReadOnly = errors.New("PostgreSQL is read-only: it is a standby, or default_transaction_read_only is on")

// Parse returns the settings of a connection to the address, a URL or key-value string.
// application is the application_name unless the address has one. The error may quote
// the address with its password.
func Parse(address, application string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(address)
	if err != nil {
		return nil, err
	}
	applySettings(config, application)
	return config, nil
}

// ParsePool is Parse for a pool, which NewPool makes.
func ParsePool(address, application string) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(address)
	if err != nil {
		return nil, err
	}
	applySettings(config.ConnConfig, application)
	return config, nil
}

// NewPool returns a pool with the settings of ParsePool. When one of its connections
// reports that its server is stopping, crashed or read-only, the pool is reset: the
// other connections lead to the same server, while the address may lead to another one
// by now.
func NewPool(ctx context.Context, config *pgxpool.Config) (*pgxpool.Pool, error) {
	var pool atomic.Pointer[pgxpool.Pool]
	var last atomic.Int64 // when it was reset, in nanoseconds
	inner := config.ConnConfig.OnPgError
	config.ConnConfig.OnPgError = func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		if p := pool.Load(); p != nil && isUnusable(err) {
			now, before := time.Now().UnixNano(), last.Load()
			if now-before > minResetInterval.Nanoseconds() && last.CompareAndSwap(before, now) {
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

// Querier is what CheckWritable needs: a *pgx.Conn, a *pgxpool.Pool or a
// pgx.Tx.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// CheckWritable returns ErrReadOnly if the connection's server does not accept
// writes, and the query's error if it cannot be asked.
func CheckWritable(ctx context.Context, db Querier) error {
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

// SetDefaultLimits sets those limits of the session that have PostgreSQL's default, which
// neither the address, the role, the database nor the server's configuration has set. It
// ignores limits that the server does not know.
func SetDefaultLimits(ctx context.Context, conn *pgx.Conn, limits map[string]string) error {
	names := slices.Sorted(maps.Keys(limits))
	values := make([]string, len(names))
	for i, name := range names {
		values[i] = limits[name]
	}
	_, err := conn.Exec(ctx, `SELECT set_config(s.name, l.value, false) FROM unnest($1::text[], $2::text[]) AS l (name, value) JOIN pg_settings s USING (name) WHERE s.source IN ('default', 'session')`, names, values)
	return err
}

// SelectLockHolder describes the session that has the advisory lock $1 (one of 64 bits)
// of this database, for the log: the process of PostgreSQL, its user and its start.
// Columns that this role may not see are left out.
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

// isUnusable reports whether an error means that the connection must not be used again:
// its server is a standby or read-only (25006), is stopping (57P01) or restarts after a
// crash (57P02), or the connection is broken (class 08).
func isUnusable(err *pgconn.PgError) bool {
	return slices.Contains([]string{"25006", "57P01", "57P02"}, err.Code) || strings.HasPrefix(err.Code, "08")
}

// applySettings puts our settings into the configuration, where the address
// has none.
func applySettings(config *pgx.ConnConfig, application string) {
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
	ours := keepaliveValues(theirs, "")
	client := keepaliveValues(theirs, "tcp_")
	dialer := &net.Dialer{Timeout: config.ConnectTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true,
		// A negative value means the system's default in Go; in PostgreSQL that is 0.
		Idle:     systemIfZero(time.Duration(client[idle]) * time.Second),
		Interval: systemIfZero(time.Duration(client[interval]) * time.Second),
		Count:    int(systemIfZero(time.Duration(client[count]))),
	}}
	if theirs["keepalives"] == "0" {
		dialer.KeepAlive, dialer.KeepAliveConfig = -1, net.KeepAliveConfig{}
	}
	dialer.Control = setUserTimeout(time.Duration(client[userTimeout]) * time.Millisecond)
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
	// A value of the database or the role is the operator's decision, and
	// stays.
	sql := fmt.Sprintf("SELECT set_config(name, '%s', false) FROM pg_settings WHERE name = '%s' AND source = 'default'", idleInTxTimeout, idleInTx)
	if len(wanted) > 0 {
		sql += "; SELECT " + strings.Join(wanted, ", ")
	}
	// Not as startup parameters: PgBouncer refuses a connection with parameters
	// that it does not know.
	config.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		_, err := conn.Exec(ctx, sql).ReadAll()
		if _, refused := errors.AsType[*pgconn.PgError](err); refused && !conn.IsClosed() {
			return nil // a proxy in between refuses the settings; the connection itself works
		}
		return err
	}
	inner := config.OnPgError
	config.OnPgError = func(conn *pgconn.PgConn, err *pgconn.PgError) bool {
		return !isUnusable(err) && inner(conn, err)
	}
}

// keepaliveValues returns the four values for one side: those of the address, else the
// defaults. With a prefix, the name without the prefix has precedence: libpq's
// keepalives_idle is for our side only. An invalid value becomes 0, the system's default;
// PostgreSQL itself refuses it.
func keepaliveValues(theirs map[string]string, prefix string) map[string]int64 {
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
		// TCP_USER_TIMEOUT also ends an idle connection, so it must not be
		// shorter than the keepalive.
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

func systemIfZero(value time.Duration) time.Duration {
	if value <= 0 {
		return -1
	}
	return value
}
