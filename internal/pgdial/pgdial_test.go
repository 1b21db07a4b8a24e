package pgdial_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"mynah/internal/leak"
	"mynah/internal/netcut"
	"mynah/internal/pgdial"
	"mynah/internal/pgtest"
	"mynah/internal/waitfor"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// childEnv makes this test binary a process that takes a lock in the database that it
// names and then waits for a notification, which never comes.
const childEnv = "MYNAH_PGDIAL_TEST_CHILD"

// lockID is the lock of the child.
const lockID = 1<<40 + 7

// bound is the time within which both sides must notice a connection that was
// dropped silently.
const bound = 30 * time.Second

func TestMain(m *testing.M) {
	if address := os.Getenv(childEnv); address != "" {
		fmt.Println(wait(address))
		return
	}
	leak.Main(m)
}

func wait(address string) error {
	ctx := context.Background()
	config, err := pgdial.Parse(address, "the child")
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, int64(lockID)); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, `LISTEN never`); err != nil {
		return err
	}
	fmt.Println("waiting")
	began := time.Now()
	_, err = conn.WaitForNotification(ctx)
	return fmt.Errorf("after %v: %w", time.Since(began), err)
}

// Guards against a connection that a firewall has forgotten: the server held its locks
// for hours, and we waited on it for as long. Both sides are idle, so nothing but the
// keepalive can tell.
func TestSilentLossIsNoticedByBothSides(t *testing.T) {
	t.Parallel()
	network := netcut.New(t)
	server := pgtest.NewServer(t, "listen_addresses="+network.Outside)
	server.AllowNetwork(network.Mask)
	program, err := os.Executable()
	must(t, err)
	child := network.Command(t.Context(), program)
	child.Env = append(os.Environ(), childEnv+"=postgres://mynah@"+network.Outside+"/mynah?sslmode=disable")
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "waiting" {
		t.Fatalf("the child says %q", lines.Text())
	}
	conn := mustConnect(t, server.URL())
	var holder string
	must(t, conn.QueryRow(t.Context(), pgdial.SelectLockHolder, int64(lockID)).Scan(&holder))
	for _, want := range []string{"process ", "the child", "from " + network.Inside, "connected since 2", "idle since 2"} {
		if !strings.Contains(holder, want) {
			t.Errorf("the holder of the lock is %q, want %q in it", holder, want)
		}
	}

	if n := network.DropConnections("5432"); n != 1 {
		t.Fatalf("%d connections were cut", n)
	}
	ended := make(chan string, 1)
	go func() {
		lines.Scan()
		ended <- lines.Text()
	}()
	late := time.After(bound)
	for free := false; !free; {
		must(t, conn.QueryRow(t.Context(), `SELECT pg_try_advisory_lock($1)`, int64(lockID)).Scan(&free))
		select {
		case <-late:
			t.Fatalf("after %v the server still holds the lock of a client that is gone", bound)
		case <-time.After(50 * time.Millisecond):
		}
	}
	select {
	case text := <-ended:
		if !strings.Contains(text, "timed out") {
			t.Errorf("the client says %q, want a timeout", text)
		}
	case <-late:
		t.Errorf("after %v the client still waits on a connection that is gone", bound)
		must(t, child.Process.Kill())
	}
	_ = child.Wait() // killed, perhaps
}

// The values of both sides, and that the address has precedence.
func TestAddressWins(t *testing.T) {
	t.Parallel()
	network := netcut.New(t) // a Unix socket has no such settings
	server := pgtest.NewServer(t, "listen_addresses="+network.Outside)
	server.AllowNetwork("127.0.0.1/32")
	server.AllowNetwork(network.Outside + "/32")
	base := "postgres://mynah@" + network.Outside + "/mynah?sslmode=disable"
	for _, test := range []struct {
		address string
		want    []string // idle, interval, count, tcp_user_timeout, idle in transaction
	}{
		{base, []string{"5", "3", "3", "12000", "1min"}},
		{base + "&tcp_keepalives_idle=60", []string{"60", "3", "3", "69000", "1min"}},
		{base + "&options=-c%20tcp_keepalives_idle%3D60%20-c%20idle_in_transaction_session_timeout%3D2h", []string{"60", "3", "3", "69000", "2h"}},
		{base + "&tcp_keepalives_interval=1min&tcp_user_timeout=90s", []string{"5", "60", "3", "90000", "1min"}},
		{base + "&tcp_user_timeout=0&idle_in_transaction_session_timeout=0", []string{"5", "3", "3", "0", "0"}},
		{base + "&keepalives=0&keepalives_idle=9&keepalives_interval=8&keepalives_count=7", []string{"5", "3", "3", "12000", "1min"}},
		{server.URL(), []string{"0", "0", "0", "0", "1min"}}, // a Unix socket works, and has no such settings
	} {
		config, err := pgdial.Parse(test.address, "the test")
		must(t, err)
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Errorf("%s: %v", test.address, err)
			continue
		}
		var got []string
		for _, name := range []string{"tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout", "idle_in_transaction_session_timeout"} {
			var value string
			must(t, conn.QueryRow(t.Context(), `SELECT setting FROM pg_settings WHERE name = $1`, name).Scan(&value))
			if name == "idle_in_transaction_session_timeout" {
				must(t, conn.QueryRow(t.Context(), `SELECT current_setting($1)`, name).Scan(&value))
			}
			got = append(got, value)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.address, diff)
		}
		must(t, conn.Close(t.Context()))
	}
}

// Guards against a pool that keeps its connections to a server that has become read-only
// while the address leads to another by now: one call fails, the next one works.
func TestPoolLeavesReadOnlyServer(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	admin := mustConnect(t, server.URL())
	ctx := t.Context()
	config, err := pgdial.ParsePool(server.URL(), "the pool")
	must(t, err)
	config.MinIdleConns = 4
	pool, err := pgdial.NewPool(ctx, config)
	must(t, err)
	t.Cleanup(pool.Close)
	_, err = pool.Exec(ctx, `CREATE TABLE written (n int)`)
	must(t, err)
	pids := func() (all []int32) {
		for _, c := range pool.AcquireAllIdle(ctx) {
			all = append(all, int32(c.Conn().PgConn().PID()))
			c.Release()
		}
		return all
	}
	waitfor.MustSucceed(t, "the pool is full", func() error {
		if n := pool.Stat().IdleConns(); n < 4 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	must(t, pgdial.CheckWritable(ctx, pool))

	// These sessions have become those of a standby; new ones lead elsewhere.
	old := pids()
	for _, c := range pool.AcquireAllIdle(ctx) {
		_, err := c.Exec(ctx, `SET default_transaction_read_only = on`)
		must(t, err)
		c.Release()
	}
	if err := pgdial.CheckWritable(ctx, pool); !errors.Is(err, pgdial.ErrReadOnly) {
		t.Errorf("a read-only server takes writes: %v", err)
	}
	if _, err := pool.Exec(ctx, `INSERT INTO written VALUES (1)`); err == nil {
		t.Fatal("a read-only session took a write")
	}
	for range 2 * len(old) {
		if _, err := pool.Exec(ctx, `INSERT INTO written VALUES (2)`); err != nil {
			t.Fatalf("after one refusal: %v", err)
		}
	}
	waitfor.MustSucceed(t, "the old connections are closed", func() error {
		var left int
		err := admin.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)`, old).Scan(&left)
		if err == nil && left > 0 {
			err = fmt.Errorf("%d are left", left)
		}
		return err
	})

	// The server as a whole, and back.
	for _, mode := range []string{"on", "off"} {
		_, err := admin.Exec(ctx, `ALTER SYSTEM SET default_transaction_read_only = `+mode)
		must(t, err)
		_, err = admin.Exec(ctx, `SELECT pg_reload_conf()`)
		must(t, err)
		_, err = admin.Exec(ctx, `SET default_transaction_read_only = off`)
		must(t, err)
		waitfor.MustSucceed(t, "the pool knows", func() error {
			if err := pgdial.CheckWritable(ctx, pool); (err == nil) != (mode == "off") {
				return fmt.Errorf("read-only %s: %w", mode, err)
			}
			return nil
		})
		if _, err := pool.Exec(ctx, `INSERT INTO written VALUES (3)`); (err == nil) != (mode == "off") {
			t.Errorf("read-only %s: a write ended with %v", mode, err)
		}
	}
}

// Guards against a pool that goes on with connections of a server that is stopping.
func TestPoolLeavesStoppingServer(t *testing.T) {
	t.Parallel()
	config, err := pgdial.ParsePool(pgtest.New(t), "the pool")
	must(t, err)
	pool, err := pgdial.NewPool(t.Context(), config)
	must(t, err)
	t.Cleanup(pool.Close)
	for _, code := range []string{"08006", "25006", "57P01", "57P02"} {
		// An error of the same code at level ERROR, after which a connection
		// usually stays open.
		first, err := pool.Acquire(t.Context())
		must(t, err)
		pid := first.Conn().PgConn().PID()
		if _, err := first.Exec(t.Context(), `DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '`+code+`'; END $$`); err == nil {
			t.Fatal("nothing was raised")
		}
		first.Release()
		must(t, pool.AcquireFunc(t.Context(), func(c *pgxpool.Conn) error {
			if c.Conn().PgConn().PID() == pid {
				t.Errorf("after %s the same connection is used again", code)
			}
			return nil
		}))
	}
}

func mustConnect(t *testing.T, address string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
