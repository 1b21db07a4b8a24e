package listener_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/prometheus/client_golang/prometheus"

	"mynah/broker/listener"
	"mynah/internal/leak"
	"mynah/internal/mqttwire"
)

// wait bounds every wait of a test. It is long, since a wait costs nothing when the
// event comes.
const wait = 30 * time.Second

// peerDeadline is a deadline that a peer must keep, or that must pass while it does
// nothing. It is longer than a busy machine may suspend the process.
const peerDeadline = 4 * time.Second

// parallel is how many tests run at once where the command line does not say: they mostly
// wait for time to pass.
const parallel = "8"

func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", parallel); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	leak.Main(m)
}

// connect returns a CONNECT of the given level with a clean session.
func connect(level byte, clientID string, keepAlive uint16) []byte {
	c := mqttwire.Connect{Version: level, ClientID: clientID, Clean: true, KeepAlive: keepAlive}
	return c.Append(nil)
}

// header returns a fixed header.
func header(kind byte, remaining int) []byte {
	h := []byte{kind}
	for {
		b := byte(remaining & 0x7f)
		if remaining >>= 7; remaining == 0 {
			return append(h, b)
		}
		h = append(h, b|0x80)
	}
}

func publish(topic string, payload []byte) []byte {
	p := mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: topic, Payload: payload}
	return p.Append(nil, mqttwire.V311)
}

func publish5(topic string, payload []byte) []byte {
	p := mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: topic, Payload: payload}
	return p.Append(nil, mqttwire.V5)
}

func subscribe5(topic string) []byte {
	p := mqttwire.Packet{Type: mqttwire.SUBSCRIBE, ID: 9, Filters: []mqttwire.Filter{{Topic: topic}}}
	return p.Append(nil, mqttwire.V5)
}

var (
	pingreq     = []byte{0xc0, 0}
	pingresp    = []byte{0xd0, 0}
	connack     = []byte{0x20, 2, 0, 0}
	disconnect  = []byte{0xe0, 0}
	overlong    = []byte{0xc0, 0x80, 0x80, 0x80, 0x80, 0x80, 0} // a PINGREQ with a length of six bytes
	panicPacket = []byte{0x82, 6, 0, 1, 0, 0, 1, 'a'}           // a truncated MQTT 5 SUBSCRIBE
)

// echo is a Handler that sends back what it reads, including the CONNECT.
func echo(_ string, c *listener.Conn) error {
	_, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	return err
}

// newMochi starts a Mochi server that lets everybody in, without listeners.
func newMochi(tb testing.TB) *mqtt.Server {
	tb.Helper()
	s := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
	if err := s.AddHook(new(auth.AllowHook), nil); err != nil {
		tb.Fatal(err)
	}
	if err := s.Serve(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

func mochiHandler(s *mqtt.Server) listener.Handler {
	return func(id string, c *listener.Conn) error { return s.EstablishConnection(id, c) }
}

// startTCP starts a TCP listener on a free port and stops it after the test.
func startTCP(tb testing.TB, cfg listener.TCPConfig) *listener.TCP {
	tb.Helper()
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	l, err := listener.NewTCP(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	if err := l.Start(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { mustStop(tb, l) })
	return l
}

type stopper interface{ Stop(context.Context) error }

func mustStop(tb testing.TB, s stopper) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		tb.Error(err)
	}
}

// dial connects to addr; every read and write has a deadline.
func dial(tb testing.TB, addr net.Addr) *net.TCPConn {
	tb.Helper()
	return dialFrom(tb, addr, "127.0.0.1")
}

func dialFrom(tb testing.TB, addr net.Addr, local string) *net.TCPConn {
	tb.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(local), 0))}
	conn, err := d.DialContext(tb.Context(), "tcp", addr.String())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(wait))
	return conn.(*net.TCPConn)
}

func mustWrite(tb testing.TB, w io.Writer, p []byte) {
	tb.Helper()
	if _, err := w.Write(p); err != nil {
		tb.Fatalf("write: %v", err)
	}
}

func mustRead(tb testing.TB, r io.Reader, want []byte) {
	tb.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	if err != nil || !bytes.Equal(got, want) {
		tb.Fatalf("read %x, %v; want %x", got[:n], err, want)
	}
}

// mustEnd fails the test unless the peer closes without sending anything more.
func mustEnd(tb testing.TB, r io.Reader) {
	tb.Helper()
	got, err := io.ReadAll(r)
	if len(got) > 0 || isTimeout(err) {
		tb.Fatalf("want the connection closed, got %x, %v", got, err)
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error) //nolint:errorlint // straight from the socket
	return ok && ne.Timeout()
}

// count returns the sum of a metric over all series whose labels include the
// given values.
func count(tb testing.TB, m *listener.Metrics, name string, labels ...string) int {
	tb.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(m)
	families, err := reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != "mynah_listener_"+name {
			continue
		}
	series:
		for _, s := range f.GetMetric() {
			for _, want := range labels {
				found := false
				for _, l := range s.GetLabel() {
					found = found || l.GetValue() == want
				}
				if !found {
					continue series
				}
			}
			sum += s.GetCounter().GetValue() + s.GetGauge().GetValue()
		}
	}
	return int(sum)
}

// logBuffer is a slog destination that may be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// syncBuffer is a buffer that a server logs into while a test reads it.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
