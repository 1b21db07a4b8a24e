package listener_test

import (
	"bytes"
	"io"
	"net"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"mynah/broker/listener"
	"mynah/internal/waitfor"
)

// BenchmarkRead compares reading from a guarded connection with reading from
// the socket that it wraps, both in Mochi's 2 KiB, with publishes of 128 bytes.
func BenchmarkRead(b *testing.B) {
	for name, reader := range map[string]func(c *listener.Conn) io.Reader{
		"socket":  func(c *listener.Conn) io.Reader { return c.Conn },
		"guarded": func(c *listener.Conn) io.Reader { return c },
	} {
		b.Run(name, func(b *testing.B) {
			benchmarkRead(b, reader, func(b *testing.B, g listener.Guard) io.Writer {
				b.Helper()
				l := startTCP(b, listener.TCPConfig{Guard: g})
				conn, err := (&net.Dialer{}).DialContext(b.Context(), "tcp", l.Addr().String())
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { _ = conn.Close() })
				return conn
			})
		})
	}
	b.Run("websocket", func(b *testing.B) {
		benchmarkRead(b, func(c *listener.Conn) io.Reader { return c }, func(b *testing.B, g listener.Guard) io.Writer {
			b.Helper()
			_, url := startWS(b, listener.WSConfig{Guard: g})
			return wsWriter{dialWS(b, url, nil)}
		})
	})
}

type wsWriter struct{ *websocket.Conn }

func (w wsWriter) Write(p []byte) (int, error) {
	return len(p), w.WriteMessage(websocket.BinaryMessage, p)
}

func benchmarkRead(b *testing.B, reader func(*listener.Conn) io.Reader, dial func(*testing.B, listener.Guard) io.Writer) {
	b.Helper()
	packet := publish("group/lobby", make([]byte, 113))
	batch := bytes.Repeat(packet, 64)
	first := connect(4, "abc", 0)
	done := make(chan error, 1)
	total := 0
	w := dial(b, listener.Guard{Handler: func(_ string, c *listener.Conn) error {
		if _, err := io.ReadFull(c, make([]byte, len(first))); err != nil {
			return err
		}
		r := reader(c)
		p := make([]byte, 2048)
		for total < b.N*len(packet) {
			n, err := r.Read(p)
			if total += n; err != nil {
				done <- err
				return err
			}
		}
		done <- nil
		return nil
	}})
	mustWrite(b, w, first)
	b.SetBytes(int64(len(packet)))
	b.ResetTimer()
	for sent := 0; sent < b.N; sent += 64 {
		if _, err := w.Write(batch); err != nil {
			break // the reader has enough
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWriteWS writes 16 KiB of packets in one call over WebSocket.
func BenchmarkWriteWS(b *testing.B) {
	p := make([]byte, 16<<10)
	done := make(chan error, 1)
	_, url := startWS(b, listener.WSConfig{Guard: listener.Guard{Handler: func(_ string, c *listener.Conn) error {
		b.ReportAllocs()
		b.SetBytes(int64(len(p)))
		b.ResetTimer()
		for range b.N {
			if _, err := c.Write(p); err != nil {
				done <- err
				return err
			}
		}
		done <- nil
		_, err := c.Read(p)
		return err
	}}})
	c := dialWS(b, url, nil)
	sendWS(b, c, connect(4, "abc", 0))
	go func() { _, _ = io.Copy(io.Discard, c.UnderlyingConn()) }()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// BenchmarkIdle reports the memory of an idle connection in KiB, its goroutine's
// stack included, for this package and net alone: the handler only waits in Read
// with a buffer of a byte. The clients are bare sockets without memory in Go.
func BenchmarkIdle(b *testing.B) {
	const conns = 2000
	guard := func() listener.Guard {
		return listener.Guard{
			Metrics: listener.NewMetrics(), FirstPacketTimeout: time.Minute,
			Handler: func(_ string, c *listener.Conn) error {
				c.ForgetToken()
				p := make([]byte, 1)
				for {
					if _, err := c.Read(p); err != nil {
						return err
					}
				}
			},
		}
	}
	run := func(b *testing.B, addr net.Addr, g listener.Guard, hello []byte) {
		b.Helper()
		first := connect(4, "some-client-id", 0)
		answer := make([]byte, 512)
		before := memory()
		for range conns {
			fd := bareDial(b, addr)
			if hello != nil {
				bareWrite(b, fd, hello)
				if n, err := unix.Read(fd, answer); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 101")) {
					b.Fatalf("%s %v", answer[:max(n, 0)], err)
				}
				bareWrite(b, fd, append([]byte{0x82, 0x80 | byte(len(first)), 0, 0, 0, 0}, first...))
			} else {
				bareWrite(b, fd, first)
			}
		}
		waitfor.MustHold(b, "all are served", func() bool { return count(b, g.Metrics, "accepted_total") == conns })
		after := memory()
		b.ReportMetric(float64(after-before)/conns/1024, "KiB/conn")
		b.ReportMetric(0, "ns/op")
	}
	b.Run("tcp", func(b *testing.B) {
		g := guard()
		run(b, startTCP(b, listener.TCPConfig{Guard: g}).Addr(), g, nil)
	})
	b.Run("websocket", func(b *testing.B) {
		g := guard()
		ws, err := listener.NewWebSocket(listener.WSConfig{Guard: g})
		if err != nil {
			b.Fatal(err)
		}
		srv := httptest.NewServer(ws)
		b.Cleanup(func() {
			mustStop(b, ws)
			srv.Close()
		})
		run(b, srv.Listener.Addr(), g, []byte("GET /?access_token="+strings.Repeat("t", 700)+" HTTP/1.1\r\nHost: x\r\n"+
			"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
			"Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"))
	})
}

func bareDial(b *testing.B, addr net.Addr) int {
	b.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = unix.Close(fd) })
	to := &unix.SockaddrInet4{Port: addr.(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Connect(fd, to); err != nil {
		b.Fatal(err)
	}
	return fd
}

func bareWrite(b *testing.B, fd int, p []byte) {
	b.Helper()
	if n, err := unix.Write(fd, p); n != len(p) || err != nil {
		b.Fatal(n, err)
	}
}

// memory returns what the heap and the stacks use after a collection.
func memory() int64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc + s.StackInuse)
}
