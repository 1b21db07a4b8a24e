package outreach_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/authhook"
	"mynah/broker"
	"mynah/internal/mqttest"
	"mynah/internal/netcut"
	"mynah/internal/pgtest"
	"mynah/outreach"
)

// These make this test binary a process that runs a relay until its input ends.
const (
	childDatabase = "MYNAH_NOTICE_TEST_DATABASE"
	childBroker   = "MYNAH_NOTICE_TEST_BROKER"
	childToken    = "MYNAH_NOTICE_TEST_TOKEN"
)

// runChild is that process.
func runChild() error {
	r, err := outreach.New(outreach.Config{
		DatabaseURL: os.Getenv(childDatabase), BrokerURL: "tcp://" + os.Getenv(childBroker),
		Token:  func(context.Context) (string, error) { return os.Getenv(childToken), nil },
		Logger: slog.New(slog.NewTextHandler(os.Stdout, nil)),
	})
	if err != nil {
		return err
	}
	if err := r.Start(context.Background()); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// within is how long notices may stand still after a silent loss.
const within = 30 * time.Second

// mustNotice has a notice published and returns how long that took.
func mustNotice(t *testing.T, pool *pgxpool.Pool, all *mqttest.Client, n int) time.Duration {
	t.Helper()
	began := time.Now()
	_, err := pool.Exec(context.Background(), `WITH told AS (SELECT pg_notify('mynah_outbox', '')) INSERT INTO outbox (topic, type, body) SELECT 'group/g', 'notice.test', $1 FROM told`, fmt.Sprintf(`{"n":%d}`, n))
	must(t, err)
	for count(t, pool, `SELECT count(*) FROM outbox`) > 0 {
		if time.Since(began) > 2*within {
			t.Fatalf("after %v the notice is not published", 2*within)
		}
		time.Sleep(20 * time.Millisecond)
	}
	took := time.Since(began)
	m := all.ReceiveAcked()
	if want := fmt.Sprint(map[string]any{"n": n}); fmt.Sprint(m.Body) != want {
		t.Errorf("received %v, want %s", m.Body, want)
	}
	return took
}

// Guards against notices that stand still for a quarter of an hour, without a line in the
// log: a firewall had forgotten the relay's connection to PostgreSQL, whose session went
// on holding the lock.
func TestSilentLossOfTheDatabase(t *testing.T) {
	t.Parallel()
	network := netcut.New(t)
	server := pgtest.NewServer(t, "listen_addresses="+network.Outside)
	server.AllowNetwork(network.Mask)
	pool, err := pgxpool.New(context.Background(), server.URL())
	must(t, err)
	t.Cleanup(pool.Close)
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: secret})
	must(t, err)
	b, err := broker.New(broker.Config{DataDir: t.TempDir(), MQTTAddr: network.Outside + ":0", Verifier: verifier})
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
		defer cancel()
		must(t, b.Stop(ctx))
		verifier.Close()
	})
	must(t, b.Start(context.Background()))
	all := mqttest.Dial(t, b.MQTTAddr().String(), mqttest.Options{Version: 5, ClientID: "all", Token: mint(t, "reader", authhook.RoleService)})
	all.Subscribe(1, "group/#")

	program, err := os.Executable()
	must(t, err)
	child := network.Command(context.Background(), program) // until its input ends
	child.Env = append(os.Environ(), childDatabase+"=postgres://mynah@"+network.Outside+"/mynah?sslmode=disable",
		childBroker+"="+b.MQTTAddr().String(), childToken+"="+mint(t, outreach.Subject, authhook.RoleService))
	input, err := child.StdinPipe()
	must(t, err)
	output, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	var mu sync.Mutex
	var log strings.Builder
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(output); lines.Scan(); {
			mu.Lock()
			fmt.Fprintln(&log, lines.Text())
			mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = input.Close()
		<-read
		must(t, child.Wait())
		if t.Failed() {
			t.Log(log.String())
		}
	})
	mustNotice(t, pool, all, 1)
	if n := network.DropConnections("5432"); n != 1 {
		t.Fatalf("%d connections were cut", n)
	}
	if took := mustNotice(t, pool, all, 2); took > within {
		t.Errorf("the notice came after %v, want %v", took, within)
	}
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(log.String(), "notices wait; trying again") {
		t.Errorf("the log does not say that notices wait:\n%s", log.String())
	}
}

// Guards against a relay that waits for its turn without a word, as it does while
// PostgreSQL believes in a session that is gone.
func TestWaitingForTheLockIsTold(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool, err := pgxpool.New(context.Background(), db+"&application_name=somebody-else")
	must(t, err)
	t.Cleanup(pool.Close)
	holder, err := pool.Acquire(context.Background())
	must(t, err)
	_, err = holder.Exec(context.Background(), `SELECT pg_advisory_lock($1)`, int64(0x6e6f74696365))
	must(t, err)
	b := startBroker(t)
	reader, writer := io.Pipe()
	r, err := outreach.New(outreach.Config{
		DatabaseURL: db, BrokerURL: "tcp://" + b.MQTTAddr().String(),
		Token:  func(context.Context) (string, error) { return mint(t, outreach.Subject, authhook.RoleService), nil },
		Logger: slog.New(slog.NewTextHandler(writer, nil)),
	})
	must(t, err)
	must(t, r.Start(context.Background()))
	lines := bufio.NewScanner(reader)
	timer := time.AfterFunc(within, func() { _ = writer.Close() })
	if !lines.Scan() {
		t.Error("nothing was logged")
	}
	timer.Stop()
	for _, want := range []string{"waiting to take its place", "somebody-else", "connected since 2", "idle since 2"} {
		if !strings.Contains(lines.Text(), want) {
			t.Errorf("the log says %q, want %q in it", lines.Text(), want)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, reader) }() // until the writer ends
	ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
	defer cancel()
	must(t, r.Stop(ctx))
	_ = writer.Close()
	holder.Conn().Close(context.Background()) //nolint:errcheck // it gives the lock back
	holder.Release()
}

// Guards against the same where something in between acknowledges for a relay that is
// gone, as proxies and poolers of connections do: no keepalive sees that.
func TestSilentLossBehindAProxy(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	pool, err := pgxpool.New(context.Background(), server.URL())
	must(t, err)
	t.Cleanup(pool.Close)
	b := startBroker(t)
	all := mqttest.Dial(t, b.MQTTAddr().String(), mqttest.Options{Version: 5, ClientID: "all", Token: mint(t, "reader", authhook.RoleService)})
	all.Subscribe(1, "group/#")
	hole := newHole(t, server.URL())
	startRelay(t, hole.url, b.MQTTAddr().String())
	mustNotice(t, pool, all, 1)
	hole.swallow()
	if took := mustNotice(t, pool, all, 2); took > within {
		t.Errorf("the notice came after %v, want %v", took, within)
	}
}

// hole is a proxy before PostgreSQL that can swallow what comes through it, in both
// directions, without closing anything.
type hole struct {
	url   string
	mu    sync.Mutex
	deaf  map[net.Conn]bool
	conns []net.Conn
}

func newHole(tb testing.TB, target string) *hole {
	tb.Helper()
	config, err := pgxpool.ParseConfig(target)
	must(tb, err)
	socket := filepath.Join(config.ConnConfig.Host, ".s.PGSQL.5432")
	dir, err := os.MkdirTemp("", "hole-") // short enough for a socket
	must(tb, err)
	listener, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	must(tb, err)
	h := &hole{url: "postgres://mynah@/mynah?host=" + dir, deaf: map[net.Conn]bool{}}
	var tasks sync.WaitGroup
	pass := func(to, from net.Conn) {
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if h.isDeaf(from) {
				if err != nil {
					return // the other side is not told
				}
				continue
			}
			if err == nil {
				_, err = to.Write(buf[:n])
			}
			if err != nil {
				_ = to.Close()
				return
			}
		}
	}
	tasks.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", socket)
			if err != nil {
				_ = in.Close()
				continue
			}
			h.mu.Lock()
			h.conns = append(h.conns, in, out)
			h.mu.Unlock()
			tasks.Go(func() { pass(out, in) })
			tasks.Go(func() { pass(in, out) })
		}
	})
	tb.Cleanup(func() {
		_ = listener.Close()
		h.mu.Lock()
		for _, c := range h.conns {
			_ = c.Close()
		}
		h.mu.Unlock()
		tasks.Wait()
		_ = os.RemoveAll(dir)
	})
	return h
}

func (h *hole) isDeaf(c net.Conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.deaf[c]
}

// swallow swallows what comes through the connections that are open.
func (h *hole) swallow() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		h.deaf[c] = true
	}
}
