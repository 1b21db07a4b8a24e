package listener_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"mynah/broker/listener"
	"mynah/internal/leak"
	"mynah/internal/waitfor"
)

// replayed puts bytes that were read back in front of a connection.
type replayed struct {
	net.Conn
	first []byte
}

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

func TestLimits(t *testing.T) {
	t.Parallel()
	// Guards against more connections than configured, and against slots that
	// are never released.
	for name, c := range map[string]struct {
		limiter   *listener.Limiter
		from      [3]string // two that are let in, one that is not
		reason    string
		alsoFirst string // another address that is let in beside the two
	}{
		"overall":     {listener.NewLimiter(2, 0), [3]string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}, "full", ""},
		"per address": {listener.NewLimiter(0, 2), [3]string{"127.0.0.1", "127.0.0.1", "127.0.0.1"}, "address_full", "127.0.0.2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := listener.NewMetrics()
			l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: echo, Limiter: c.limiter, Metrics: m}})
			enter := func(from string) *net.TCPConn {
				conn := dialFrom(t, l.Addr(), from)
				mustWrite(t, conn, connect(4, "", 60))
				mustRead(t, conn, connect(4, "", 60))
				return conn
			}
			first := enter(c.from[0])
			enter(c.from[1])
			if c.alsoFirst != "" {
				enter(c.alsoFirst)
			}
			// The refusal is a reset, which may come before the dial has ended.
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(c.from[2])}}
			if conn, err := d.DialContext(t.Context(), "tcp", l.Addr().String()); err == nil {
				_ = conn.SetDeadline(time.Now().Add(wait))
				mustEnd(t, conn)
				_ = conn.Close()
			}
			waitfor.MustHold(t, "the refusal is counted", func() bool { return count(t, m, "refused_total", c.reason) == 1 })
			before := count(t, m, "open")
			_ = first.Close()
			waitfor.MustHold(t, "a place is free", func() bool { return count(t, m, "open") == before-1 })
			enter(c.from[2])
		})
	}
}

// Guards against a listener that closes silently when there are too many open
// files, as Mochi's own does.
func TestAcceptIsRetried(t *testing.T) {
	t.Parallel()
	var logs logBuffer
	inner, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := listener.NewMetrics()
	l := startTCP(t, listener.TCPConfig{
		Listener: &failingListener{Listener: inner, errno: syscall.EMFILE, fails: 4},
		Guard:    listener.Guard{Handler: echo, Metrics: m, Logger: slog.New(slog.NewTextHandler(&logs, nil))},
	})
	conn := dial(t, l.Addr())
	mustWrite(t, conn, connect(4, "abc", 60))
	mustRead(t, conn, connect(4, "abc", 60))
	if n := count(t, m, "accept_errors_total"); n != 4 {
		t.Errorf("%d failures counted, want 4", n)
	}
	if n := strings.Count(logs.String(), "cannot accept"); n != 1 {
		t.Errorf("logged %d times, want once in ten seconds:\n%s", n, logs.String())
	}
}

// Guards against a Stop that waits for the next retry.
func TestStopEndsTheRetry(t *testing.T) {
	t.Parallel()
	inner, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := listener.NewMetrics()
	l := startTCP(t, listener.TCPConfig{
		Listener: &failingListener{Listener: inner, errno: syscall.EMFILE, fails: 1 << 30},
		Guard:    listener.Guard{Handler: echo, Metrics: m},
	})
	waitfor.MustHold(t, "the first failure", func() bool { return count(t, m, "accept_errors_total") > 0 })
	mustStop(t, l)
}

// deafListener is one whose Accept does not end when it is closed, until released.
type deafListener struct {
	net.Listener
	released chan struct{}
}

func (l deafListener) Accept() (net.Conn, error) {
	<-l.released
	return nil, net.ErrClosed
}

// Stop obeys its context also while it waits for the accept loop. It waited for that for ever.
func TestStopObeysItsContext(t *testing.T) {
	t.Parallel()
	inner, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deaf := deafListener{inner, make(chan struct{})}
	l := startTCP(t, listener.TCPConfig{Listener: deaf, Guard: listener.Guard{Handler: echo}})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- l.Stop(ended) }()
	select {
	case err := <-stopped:
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "gave up on waiting until it accepts nothing more") {
			t.Errorf("Stop: %v, want what it gave up on", err)
		}
	case <-time.After(waitfor.Timeout):
		t.Error("Stop waits for the accept loop")
	}
	close(deaf.released)
	mustStop(t, l) // waits again
}

// Guards against connections or goroutines that outlive Stop, in whichever
// state they are.
func TestStopLeavesNothing(t *testing.T) {
	mochi := newMochi(t)
	before := goleak.IgnoreCurrent()
	m := listener.NewMetrics()
	l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: mochiHandler(mochi), Metrics: m}})
	silent := dial(t, l.Addr())
	half := dial(t, l.Addr())
	mustWrite(t, half, connect(4, "half", 0)[:7])
	ready := dial(t, l.Addr())
	mustWrite(t, ready, connect(4, "ready", 0))
	mustRead(t, ready, connack)
	waitfor.MustHold(t, "three connections", func() bool { return count(t, m, "open") == 3 })

	// StopAccepting leaves the connections alone.
	l.StopAccepting()
	if _, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String()); err == nil {
		t.Error("a connection was accepted after StopAccepting")
	}
	mustWrite(t, ready, pingreq)
	mustRead(t, ready, pingresp)

	mustStop(t, l)
	mustStop(t, l)
	for _, conn := range []net.Conn{silent, half, ready} {
		mustEnd(t, conn)
	}
	if n := count(t, m, "open"); n != 0 {
		t.Errorf("%d connections counted as open", n)
	}
	if err := l.Start(t.Context()); !errors.Is(err, listener.ErrStopped) {
		t.Errorf("Start after Stop: %v, want ErrStopped", err)
	}
	if err := leak.Find(before); err != nil {
		t.Error(err)
	}
}

// Guards against a Stop that never returns because a handler does not.
func TestStopTellsOfAStuckHandler(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	m := listener.NewMetrics()
	l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{
		Handler: func(string, *listener.Conn) error { <-release; return nil }, Metrics: m,
	}})
	conn := dial(t, l.Addr())
	mustWrite(t, conn, connect(4, "abc", 60))
	waitfor.MustHold(t, "the handler runs", func() bool { return count(t, m, "accepted_total") == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.Stop(ctx); err == nil || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 connections") {
		t.Errorf("Stop: %v, want how many are still served", err)
	}
	close(release)
}

func TestStartIsRepeatable(t *testing.T) {
	t.Parallel()
	l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: echo}})
	addr := l.Addr()
	if err := l.Start(t.Context()); err != nil || l.Addr() != addr {
		t.Errorf("second Start: %v", err)
	}
	// The error for a port in use has the address.
	second, err := listener.NewTCP(listener.TCPConfig{Addr: addr.String(), Guard: listener.Guard{Handler: echo}})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Start(t.Context()); err == nil || !strings.Contains(err.Error(), addr.String()) {
		t.Errorf("Start on a port in use: %v, want an error with the address", err)
	}
	// A listener that never opened stops as well.
	mustStop(t, second)
}

func TestConfigurationIsChecked(t *testing.T) {
	t.Parallel()
	if _, err := listener.NewTCP(listener.TCPConfig{}); err == nil {
		t.Error("a door without a Handler was made")
	}
	if _, err := listener.NewTCP(listener.TCPConfig{Guard: listener.Guard{Handler: echo}, ProxyProtocol: true}); err == nil {
		t.Error("the PROXY protocol without trusted proxies was allowed: anybody could say who they are")
	}
}

// Guards against acknowledgements that wait for Nagle's timer, and machines that
// vanish unnoticed.
func TestSocketOptions(t *testing.T) {
	t.Parallel()
	options := make(chan [2]int, 1)
	l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: func(_ string, c *listener.Conn) error {
		raw, err := c.Conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(fd uintptr) {
			noDelay, _ := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY)
			alive, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			options <- [2]int{noDelay, alive}
		})
	}}})
	conn := dial(t, l.Addr())
	mustWrite(t, conn, connect(4, "abc", 60))
	if got := <-options; got[0] == 0 || got[1] == 0 {
		t.Errorf("TCP_NODELAY %d, SO_KEEPALIVE %d; want both on", got[0], got[1])
	}
}

func TestConnTells(t *testing.T) {
	t.Parallel()
	told := make(chan string, 1)
	l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: func(id string, c *listener.Conn) error {
		if c.WebSocket() || c.Token() != "" || c.ProtocolLevel() != 5 || id != "mqtt" || !c.ClientIP().IsLoopback() {
			t.Errorf("door %s, WebSocket %v, level %d, address %v", id, c.WebSocket(), c.ProtocolLevel(), c.ClientIP())
		}
		told <- c.RemoteAddr().String()
		return nil
	}}})
	conn := dial(t, l.Addr())
	mustWrite(t, conn, connect(5, "abc", 60))
	if got := <-told; got != conn.LocalAddr().String() {
		t.Errorf("RemoteAddr %s, want %s", got, conn.LocalAddr())
	}
}

// Guards against a peer that is gone silently: Mochi's keep-alive sets the
// socket's deadline through the Conn.
func TestHalfOpenEndsByKeepAlive(t *testing.T) {
	t.Parallel()
	l := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: mochiHandler(newMochi(t))}})
	conn := dial(t, l.Addr())
	mustWrite(t, conn, connect(4, "abc", 1))
	mustRead(t, conn, connack)
	mustEnd(t, conn)
}
