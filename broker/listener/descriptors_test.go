package listener_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"mynah/broker/listener"
	"mynah/internal/waitfor"
)

func TestMaxConnections(t *testing.T) {
	t.Parallel()
	for limit, want := range map[int]int{
		0: 0, 1: 1, 300: 150, 512: 256, 1024: 768, 4096: 3687, 20_000: 18_000, 1 << 20: 1<<20 - 104_857,
	} {
		if got := listener.MaxConnections(limit); got != want {
			t.Errorf("of %d: %d for connections, want %d", limit, got, want)
		}
	}
}

// descriptor returns a metric of d.
func descriptor(tb testing.TB, d *listener.Descriptors, name string) int {
	tb.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(d)
	families, err := reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "mynah_descriptors_"+name {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return int(sum)
}

// Guards against connections that take the last file descriptors, from which the
// message log does not recover. Silent MQTT connections, idle HTTP connections and
// WebSockets count together. Open connections are served, operators can still
// connect, and each closed connection makes room for exactly one.
func TestDescriptorsAreShared(t *testing.T) {
	t.Parallel()
	const most = 4
	var logs logBuffer
	d := listener.NewDescriptors(most, slog.New(slog.NewTextHandler(&logs, nil)))
	open := func(want int) {
		t.Helper()
		waitfor.MustHold(t, "the count of open connections", func() bool { return descriptor(t, d, "open") == want })
	}
	tcp := startTCP(t, listener.TCPConfig{Guard: listener.Guard{Handler: echo}, Descriptors: d})
	var web net.Addr
	_, url := startWSOn(t, listener.WSConfig{Guard: listener.Guard{Handler: echo}}, func(s *httptest.Server) {
		web = s.Listener.Addr()
		s.Listener = d.Listener(s.Listener, "http", 0)
		s.Start()
	})
	operators := httptest.NewUnstartedServer(http.NotFoundHandler())
	operators.Listener = d.Listener(operators.Listener, "metrics", 1)
	operators.Start()
	t.Cleanup(operators.Close)

	first := connect(4, "", 60)
	enter := func() *net.TCPConn {
		t.Helper()
		conn := dial(t, tcp.Addr())
		mustWrite(t, conn, first)
		mustRead(t, conn, first)
		return conn
	}
	there := enter()
	ws := dialWS(t, url, nil)
	sendWS(t, ws, first)
	readWS(t, ws, first)
	silent := dial(t, tcp.Addr())
	idle := dial(t, web)
	open(most)

	for _, addr := range []net.Addr{tcp.Addr(), web, tcp.Addr()} {
		// The refusal is a reset, which may come before the dial has ended.
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr.String())
		if err != nil {
			continue
		}
		_ = conn.SetDeadline(time.Now().Add(wait))
		mustEnd(t, conn)
		_ = conn.Close()
	}
	waitfor.MustHold(t, "the refusals are counted", func() bool { return descriptor(t, d, "refused_total") == 3 })
	if n := strings.Count(logs.String(), "ulimit"); n != 1 {
		t.Errorf("logged %d times, want once a minute:\n%s", n, logs.String())
	}
	mustWrite(t, there, pingreq)
	mustRead(t, there, pingreq)
	sendWS(t, ws, pingreq)
	readWS(t, ws, pingreq)

	operator := dial(t, operators.Listener.Addr())
	mustWrite(t, operator, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	mustRead(t, operator, []byte("HTTP/1.1 404"))
	_ = operator.Close()
	open(most)

	for i, leave := range []func() error{silent.Close, idle.Close, ws.UnderlyingConn().Close, there.Close} {
		if err := leave(); err != nil {
			t.Fatal(err)
		}
		open(most - 1)
		enter()
		open(most)
		if n := descriptor(t, d, "refused_total"); n != 3 {
			t.Fatalf("after %d had gone, %d refused", i+1, n-3)
		}
	}
	mustStop(t, tcp)
	open(0)
}

// Guards against an HTTP server that ends at a failed Accept. net/http itself
// continues after too many open files, but not when the kernel is out of memory.
func TestHTTPSurvivesAccept(t *testing.T) {
	t.Parallel()
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		t.Run(errno.Error(), func(t *testing.T) {
			t.Parallel()
			inner, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			d := listener.NewDescriptors(10, nil)
			srv := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: wait, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
			ended := make(chan error, 1)
			go func() {
				ended <- srv.Serve(d.Listener(&failingListener{Listener: inner, errno: errno, fails: 3}, "http", 0))
			}()
			conn := dial(t, inner.Addr())
			mustWrite(t, conn, []byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
			if answer, err := io.ReadAll(conn); !strings.HasPrefix(string(answer), "HTTP/1.1 404") {
				t.Errorf("got %q, %v", answer, err)
			}
			if err := srv.Shutdown(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
			if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("the server ended: %v", err)
			}
		})
	}
}

// failingListener fails to accept a few times; one goroutine accepts.
type failingListener struct {
	net.Listener
	errno syscall.Errno
	fails int
}

func (f *failingListener) Accept() (net.Conn, error) {
	if f.fails > 0 {
		f.fails--
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", f.errno)}
	}
	return f.Listener.Accept()
}
