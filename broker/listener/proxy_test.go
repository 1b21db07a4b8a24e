package listener_test

import (
	"bytes"
	"crypto/tls"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"mynah/broker/listener"
	"mynah/internal/waitfor"
)

func proxyHeader(tb testing.TB, version byte, source string) []byte {
	tb.Helper()
	addr := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source))
	to := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:1883"))
	if addr.IP.To4() == nil {
		to.IP = net.ParseIP("2001:db8::1")
	}
	p, err := proxyproto.HeaderProxyFromAddrs(version, addr, to).Format()
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// Guards against a client that chooses its own address, and against a proxy
// whose clients all have the proxy's address.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	local := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"), connect(4, "abc", 60)...)
	v1 := append(proxyHeader(t, 1, "203.0.113.7:4711"), connect(4, "abc", 60)...)
	v2 := append(proxyHeader(t, 2, "[2001:db8:1::9]:4712"), connect(5, "abc", 60)...)
	cases := map[string]struct {
		from   string
		send   []byte
		remote string // "" for the peer's own
		reason string // of a refusal
	}{
		"v1":                  {"127.0.0.2", v1, "203.0.113.7:4711", ""},
		"v2":                  {"127.0.0.2", v2, "[2001:db8:1::9]:4712", ""},
		"v2 local":            {"127.0.0.2", local, "", ""},
		"v1 unknown":          {"127.0.0.2", append([]byte("PROXY UNKNOWN\r\n"), connect(4, "abc", 60)...), "", ""},
		"direct":              {"127.0.0.1", connect(4, "abc", 60), "", ""},
		"v1 from anybody":     {"127.0.0.1", v1, "", "not_connect"},
		"v2 from anybody":     {"127.0.0.1", v2, "", "not_connect"},
		"missing from proxy":  {"127.0.0.2", connect(4, "abc", 60), "", "proxy_header"},
		"rubbish from proxy":  {"127.0.0.2", []byte("PROXY TCP4 nobody 1.2.3.4 1 2\r\n"), "", "proxy_header"},
		"too long from proxy": {"127.0.0.2", append([]byte("PROXY "), bytes.Repeat([]byte("x"), 1000)...), "", "proxy_header"},
		"stops in the header": {"127.0.0.2", v2[:14], "", "timeout"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := listener.NewMetrics()
			remote := make(chan string, 1)
			timeout := wait
			if c.reason == "timeout" {
				timeout = 200 * time.Millisecond
			}
			l := startTCP(t, listener.TCPConfig{
				ProxyProtocol: true, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")},
				Guard: listener.Guard{
					Metrics: m, FirstPacketTimeout: timeout,
					Handler: func(id string, c *listener.Conn) error { remote <- c.RemoteAddr().String(); return echo(id, c) },
				},
			})
			conn := dialFrom(t, l.Addr(), c.from)
			mustWrite(t, conn, c.send)
			if c.reason != "" {
				_, _ = conn.Read(make([]byte, 1))
				waitfor.MustHold(t, "the refusal is counted", func() bool { return count(t, m, "refused_total", c.reason) == 1 })
				return
			}
			want := c.remote
			if want == "" {
				want = conn.LocalAddr().String()
			}
			mustWrite(t, conn, pingreq)
			if got := <-remote; got != want {
				t.Errorf("remote address %s, want %s", got, want)
			}
			at := bytes.IndexByte(c.send, 0x10) // the CONNECT behind the header
			if c.remote != "" && c.send[0] != 'P' {
				at = len(proxyHeader(t, 2, c.remote))
			}
			mustRead(t, conn, append(bytes.Clone(c.send[at:]), pingreq...))
		})
	}
}

// Guards against TLS that begins before the PROXY header, and against its bytes
// being lost when they came in one piece with it.
func TestProxyProtocolBeforeTLS(t *testing.T) {
	t.Parallel()
	certFile, keyFile := writeCert(t, t.TempDir(), 1)
	reloader, err := listener.NewCertReloader(certFile, keyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	remote := make(chan string, 1)
	l := startTCP(t, listener.TCPConfig{
		TLS: reloader.TLSConfig(), ProxyProtocol: true, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Guard: listener.Guard{Handler: func(id string, c *listener.Conn) error { remote <- c.RemoteAddr().String(); return echo(id, c) }},
	})
	conn := tls.Client(&inFront{Conn: dial(t, l.Addr()), prefix: proxyHeader(t, 2, "203.0.113.7:4711")}, clientTLS())
	packet := connect(4, "abc", 60)
	mustWrite(t, conn, packet)
	mustRead(t, conn, packet)
	if got := <-remote; got != "203.0.113.7:4711" {
		t.Errorf("remote address %s", got)
	}
}

// inFront sends a prefix in one write with the first bytes.
type inFront struct {
	net.Conn
	prefix []byte
}

func (f *inFront) Write(p []byte) (int, error) {
	if f.prefix == nil {
		return f.Conn.Write(p)
	}
	n, err := f.Conn.Write(append(f.prefix, p...))
	n -= len(f.prefix)
	f.prefix = nil
	return n, err
}

// Guards against all clients behind a proxy sharing one address's limit, and
// against one of them passing it.
func TestProxiedClientsAreLimitedOneByOne(t *testing.T) {
	t.Parallel()
	m := listener.NewMetrics()
	l := startTCP(t, listener.TCPConfig{
		ProxyProtocol: true, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Guard: listener.Guard{Handler: echo, Metrics: m, Limiter: listener.NewLimiter(0, 1)},
	})
	packet := connect(4, "abc", 60)
	// One host has a whole /64, so that is one address.
	for _, source := range []string{"203.0.113.7:1", "203.0.113.8:1", "[2001:db8:1::9]:1"} {
		conn := dial(t, l.Addr())
		mustWrite(t, conn, append(proxyHeader(t, 2, source), packet...))
		mustRead(t, conn, packet)
	}
	for _, source := range []string{"203.0.113.7:2", "[2001:db8:1::a]:1"} {
		conn := dial(t, l.Addr())
		mustWrite(t, conn, append(proxyHeader(t, 2, source), packet...))
		_, _ = conn.Read(make([]byte, 1))
	}
	waitfor.MustHold(t, "two are refused", func() bool { return count(t, m, "refused_total", "address_full") == 2 })
}
