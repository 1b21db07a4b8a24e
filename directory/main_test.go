package directory_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker"
	"mynah/directory"
	"mynah/internal/leak"
	"mynah/internal/mqttest"
	"mynah/internal/pgtest"
	"mynah/internal/stopwatch"
)

func TestMain(m *testing.M) { leak.Main(m) }

var secret = []byte("a secret for tests, 32 bytes or more")

// world is a database, a directory on it and a broker that asks the directory.
type world struct {
	tb     testing.TB
	url    string
	db     *pgxpool.Pool
	dir    *directory.Directory
	broker *broker.Broker
	addr   string
	watch  *stopwatch.Stopwatch
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// newWorld starts all on the database at the address.
func newWorld(tb testing.TB, url string, configure ...func(*directory.Config)) *world {
	tb.Helper()
	w := &world{tb: tb, url: url, watch: stopwatch.New(tb)}
	w.db = mustPool(tb, url)
	w.dir = startDirectory(tb, url, configure...)
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: secret})
	must(tb, err)
	w.broker, err = broker.New(broker.Config{
		DataDir: tb.TempDir(), MQTTAddr: "127.0.0.1:0", Verifier: verifier, Directory: w.dir, PresenceSettle: -1,
		Logger: slog.New(slog.NewTextHandler(writer{tb}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	must(tb, err)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
		defer cancel()
		must(tb, w.broker.Stop(ctx))
		verifier.Close()
	})
	must(tb, w.broker.Start(context.Background()))
	w.addr = w.broker.MQTTAddr().String()
	return w
}

// mustPool returns a pool that is closed with the test.
func mustPool(tb testing.TB, url string) *pgxpool.Pool {
	tb.Helper()
	pool, err := pgxpool.New(context.Background(), url)
	must(tb, err)
	tb.Cleanup(pool.Close)
	return pool
}

// startDirectory starts a directory that is stopped with the test.
func startDirectory(tb testing.TB, url string, configure ...func(*directory.Config)) *directory.Directory {
	tb.Helper()
	cfg := directory.Config{
		DatabaseURL: url,
		Logger:      slog.New(slog.NewTextHandler(writer{tb}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for _, c := range configure {
		c(&cfg)
	}
	d, err := directory.New(cfg)
	must(tb, err)
	must(tb, d.Start(context.Background()))
	tb.Cleanup(func() { stop(tb, d) })
	return d
}

func stop(tb testing.TB, d *directory.Directory) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
	defer cancel()
	must(tb, d.Stop(ctx))
}

type writer struct{ tb testing.TB }

func (w writer) Write(p []byte) (int, error) {
	w.tb.Logf("%s", p)
	return len(p), nil
}

// fresh starts all on a database of its own.
func fresh(tb testing.TB, configure ...func(*directory.Config)) *world {
	tb.Helper()
	return newWorld(tb, pgtest.New(tb), configure...)
}

// exec runs SQL.
func (w *world) exec(sql string, args ...any) {
	w.tb.Helper()
	_, err := w.db.Exec(context.Background(), sql, args...)
	must(w.tb, err)
}

// group makes a group with the members.
func (w *world) group(id, join string, members ...string) {
	w.tb.Helper()
	w.exec(`INSERT INTO groups (id, join_policy) VALUES ($1, $2)`, id, join)
	w.exec(`INSERT INTO members (grp, account) SELECT $1, m FROM unnest($2::text[]) m`, id, members)
}

// connect connects somebody with a token. Like any client it comes again if it is told that
// it cannot be checked right now, as when the machine is too busy to ask PostgreSQL in time.
func (w *world) connect(id string, change ...func(*authhook.TokenClaims)) *mqttest.Client {
	w.tb.Helper()
	claims := authhook.TokenClaims{Subject: id, TTL: time.Hour}
	for _, c := range change {
		c(&claims)
	}
	token, err := authhook.Mint(secret, claims)
	must(w.tb, err)
	for end := time.Now().Add(mqttest.Timeout); ; {
		c := mqttest.Dial(w.tb, w.addr, mqttest.Options{Version: 5, ClientID: "c", Token: token})
		if c.Connack.ReasonCode != packets.ErrServerUnavailable.Code || time.Now().After(end) {
			return c
		}
	}
}

// listen connects somebody who is subscribed to the filters.
func (w *world) listen(id string, filters ...string) *mqttest.Client {
	w.tb.Helper()
	c := w.connect(id)
	if len(filters) > 0 {
		c.Subscribe(1, filters...)
	}
	return c
}

// operator connects a service, which may publish anywhere.
func (w *world) operator() *mqttest.Client {
	w.tb.Helper()
	return w.connect("ops", func(c *authhook.TokenClaims) { c.Role = authhook.RoleService })
}
