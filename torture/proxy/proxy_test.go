package proxy_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
	"time"

	"mynah/torture/proxy"
)

// echo sends back what it receives.
func echo(t *testing.T) int {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return lis.Addr().(*net.TCPAddr).Port
}

func link(t *testing.T) (*proxy.Link, net.Conn) {
	t.Helper()
	l, err := proxy.Listen("test", echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	var d net.Dialer
	c, err := d.DialContext(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(l.Port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return l, c
}

func exchange(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(b))
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("got %q, %v; want %q", got, err, b)
	}
}

func silent(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatalf("%d bytes came through", n)
	}
}

// Guards against a proxy that lets held-back bytes through. Then torture could
// damage messages whose acknowledgement had reached a client.
func TestHoldKeepsWhatTheServerSays(t *testing.T) {
	t.Parallel()
	l, c := link(t)
	exchange(t, c, []byte("before"))
	release := l.HoldReplies()
	if _, err := c.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	silent(t, c)
	release()
	got := make([]byte, 4)
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "held" {
		t.Fatalf("after the release %q, %v", got, err)
	}
	release = l.HoldReplies()
	defer release()
	if _, err := c.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	silent(t, c)
	if n := l.Reset(); n != 1 {
		t.Errorf("Reset ended %d connections, want 1", n)
	}
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); len(b) > 0 {
		t.Errorf("%q, %v came after the end of a held connection", b, err)
	}
}

func TestStallDelayAndCut(t *testing.T) {
	t.Parallel()
	l, c := link(t)
	release := l.Stall()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	silent(t, c)
	release()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	l.Delay(30 * time.Millisecond)
	began := time.Now()
	exchange(t, c, []byte("late"))
	if took := time.Since(began); took < 60*time.Millisecond {
		t.Errorf("there and back took %s with 30 ms delay each way", took)
	}
	l.Delay(0)
	if n := l.Cut(rand.New(rand.NewPCG(1, 1)), 1); n != 1 || l.Cuts() != 1 { //nolint:gosec // repeatable
		t.Errorf("Cut ended %d connections, Cuts says %d", n, l.Cuts())
	}
	_, _ = c.Write(make([]byte, 100)) // at the latest after half a second it has ended
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(c); len(b) >= 100 {
		t.Errorf("all %d bytes came through a connection that was cut", len(b))
	}
}
