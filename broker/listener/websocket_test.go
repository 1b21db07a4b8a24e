package listener_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"mynah/broker/listener"
	"mynah/internal/leak"
	"mynah/internal/stopwatch"
	"mynah/internal/waitfor"
)

// startWS mounts a WebSocket listener at /mqtt and returns its URL.
func startWS(tb testing.TB, cfg listener.WSConfig) (*listener.WebSocket, string) {
	tb.Helper()
	return startWSOn(tb, cfg, (*httptest.Server).Start)
}

func startWSOn(tb testing.TB, cfg listener.WSConfig, start func(*httptest.Server)) (*listener.WebSocket, string) {
	tb.Helper()
	ws, err := listener.NewWebSocket(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/mqtt", ws)
	srv := httptest.NewUnstartedServer(mux)
	srv.Config.ReadHeaderTimeout = wait
	start(srv)
	tb.Cleanup(func() {
		mustStop(tb, ws)
		srv.Close()
	})
	return ws, "ws" + strings.TrimPrefix(srv.URL, "http") + "/mqtt"
}

// dialWS connects with the subprotocol mqtt and the given header.
func dialWS(tb testing.TB, url string, header http.Header) *websocket.Conn {
	tb.Helper()
	c, status, err := tryWS(tb, url, header, "mqtt")
	if err != nil {
		tb.Fatalf("dial %s: %v (status %d)", url, err, status)
	}
	return c
}

func tryWS(tb testing.TB, url string, header http.Header, subprotocols ...string) (*websocket.Conn, int, error) {
	tb.Helper()
	d := websocket.Dialer{Subprotocols: subprotocols, TLSClientConfig: clientTLS(), HandshakeTimeout: wait}
	c, resp, err := d.DialContext(tb.Context(), url, header)
	status := 0
	if resp != nil {
		status = resp.StatusCode
		_ = resp.Body.Close()
	}
	if err != nil {
		return nil, status, err
	}
	tb.Cleanup(func() { _ = c.Close() })
	_ = c.SetReadDeadline(time.Now().Add(wait))
	return c, status, nil
}

func sendWS(tb testing.TB, c *websocket.Conn, p []byte) {
	tb.Helper()
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		tb.Fatal(err)
	}
}

// readWS reads binary messages until it has as much as want.
func readWS(tb testing.TB, c *websocket.Conn, want []byte) {
	tb.Helper()
	var got []byte
	for len(got) < len(want) {
		kind, p, err := c.ReadMessage()
		if err != nil || kind != websocket.BinaryMessage {
			tb.Fatalf("read %x, then a message of kind %d, %v; want %x", got, kind, err, want)
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, want) {
		tb.Fatalf("read %x, want %x", got, want)
	}
}

// mustClose fails the test unless the server closes the WebSocket with the
// code, and then the TCP connection.
func mustClose(tb testing.TB, c *websocket.Conn, code int) {
	tb.Helper()
	for {
		if _, _, err := c.ReadMessage(); err != nil {
			if !websocket.IsCloseError(err, code) {
				tb.Fatalf("closed with %v, want code %d", err, code)
			}
			break
		}
	}
	_ = c.UnderlyingConn().SetReadDeadline(time.Now().Add(wait))
	if _, err := io.Copy(io.Discard, c.UnderlyingConn()); isTimeout(err) {
		tb.Fatal("the TCP connection stays open")
	}
}

// Guards against frames being taken for packets (MQTT 5, section 6): packets
// share and span messages, and messages may come in fragments.
func TestWebSocketIsAStream(t *testing.T) {
	t.Parallel()
	_, url := startWS(t, listener.WSConfig{Guard: listener.Guard{Handler: echo}})
	all := connect(5, "abc", 60)
	for range 50 {
		all = append(append(all, publish5("topic", []byte("payload"))...), pingreq...)
	}
	for name, size := range map[string]int{"one message": len(all), "bytes": 1, "pieces": 7} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dialWS(t, url, nil)
			for p := all; len(p) > 0; p = p[min(size, len(p)):] {
				sendWS(t, c, p[:min(size, len(p))])
				sendWS(t, c, nil) // an empty message is nothing
			}
			readWS(t, c, all)
		})
	}
	t.Run("fragments", func(t *testing.T) {
		t.Parallel()
		c := dialWS(t, url, nil)
		w, err := c.NextWriter(websocket.BinaryMessage)
		if err != nil {
			t.Fatal(err)
		}
		big := append(bytes.Clone(all), publish5("t", make([]byte, 20_000))...) // more than the client's buffer
		mustWrite(t, w, big)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		readWS(t, c, big)
	})
	t.Run("ping between", func(t *testing.T) {
		t.Parallel()
		c := dialWS(t, url, nil)
		pong := make(chan string, 1)
		c.SetPongHandler(func(s string) error { pong <- s; return nil })
		sendWS(t, c, all[:9])
		if err := c.WriteControl(websocket.PingMessage, []byte("are you there"), time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		sendWS(t, c, all[9:])
		readWS(t, c, all)
		if got := <-pong; got != "are you there" {
			t.Errorf("pong %q", got)
		}
	})
}

// Guards against packets of a WebSocket message that do not all reach a real
// Mochi: CONNECT, SUBSCRIBE, PUBLISH and DISCONNECT in one message.
func TestWebSocketWithMochi(t *testing.T) {
	t.Parallel()
	_, url := startWS(t, listener.WSConfig{Guard: listener.Guard{Handler: mochiHandler(newMochi(t))}})
	c := dialWS(t, url, nil)
	sendWS(t, c, append(append(connect(5, "abc", 60), subscribe5("t")...), publish5("t", []byte("hello"))...))
	var got []byte
	for !bytes.Contains(got, []byte("hello")) {
		_, p, err := c.ReadMessage()
		if err != nil {
			t.Fatalf("after %x: %v", got, err)
		}
		got = append(got, p...)
	}
	sendWS(t, c, disconnect)
	mustClose(t, c, websocket.CloseNormalClosure)
}

// Guards against frames that clients cannot take: a Write is one message up to
// 65,535 bytes and several beyond, each with the right header.
func TestWebSocketFrames(t *testing.T) {
	t.Parallel()
	sizes := []int{1, 125, 126, 4096, 16_379, 16_380, 16_381, 65_535, 65_536, 200_000}
	handler := func(_ string, c *listener.Conn) error {
		for _, n := range sizes {
			if w, err := c.Write(bytes.Repeat([]byte{byte(n)}, n)); w != n || err != nil {
				t.Errorf("Write of %d bytes: %d, %v", n, w, err)
			}
		}
		_, err := c.Read(make([]byte, 100))
		return err
	}
	for _, scheme := range []string{"ws", "wss"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			start, limit := (*httptest.Server).Start, 65_535
			if scheme == "wss" {
				start, limit = (*httptest.Server).StartTLS, 16_380
			}
			_, url := startWSOn(t, listener.WSConfig{Guard: listener.Guard{Handler: handler}}, start)
			c := dialWS(t, url, nil)
			sendWS(t, c, connect(4, "abc", 60))
			for _, n := range sizes {
				for left := n; left > 0; {
					kind, p, err := c.ReadMessage()
					if err != nil || kind != websocket.BinaryMessage || len(p) != min(left, limit) || p[0] != byte(n) {
						t.Fatalf("%d of %d bytes left: a message of kind %d with %d bytes, %v", left, n, kind, len(p), err)
					}
					left -= len(p)
				}
			}
			_ = c.Close()
		})
	}
}

// Guards against accepting clients that do not speak MQTT, and against
// refusing old ones that ask for mqttv3.1.
func TestWebSocketHandshake(t *testing.T) {
	t.Parallel()
	m := listener.NewMetrics()
	_, url := startWS(t, listener.WSConfig{Guard: listener.Guard{Handler: echo, Metrics: m}})
	for _, c := range []struct {
		ask    []string
		chosen string
		status int
	}{
		{[]string{"mqtt"}, "mqtt", 101},
		{[]string{"mqttv3.1"}, "mqttv3.1", 101},
		{[]string{"mqttv3.1", "mqtt"}, "mqtt", 101},
		{[]string{"chat", "mqtt"}, "mqtt", 101},
		{[]string{"chat"}, "", 400},
		{nil, "", 400},
	} {
		conn, status, err := tryWS(t, url, nil, c.ask...)
		if status != c.status {
			t.Errorf("%v: status %d, %v; want %d", c.ask, status, err, c.status)
		}
		if err == nil && conn.Subprotocol() != c.chosen {
			t.Errorf("%v: subprotocol %q, want %q", c.ask, conn.Subprotocol(), c.chosen)
		}
	}
	if n := count(t, m, "refused_total", "subprotocol"); n != 2 {
		t.Errorf("%d refusals counted, want 2", n)
	}

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http"+strings.TrimPrefix(url, "ws"), nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusUpgradeRequired || !bytes.Contains(body, []byte("MQTT")) {
		t.Errorf("a browser's GET: %d %s", resp.StatusCode, body)
	}

	// permessage-deflate costs memory by the connection: not offered.
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}, EnableCompression: true}
	conn, resp2, err := d.DialContext(t.Context(), url, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = resp2.Body.Close(), conn.Close() }()
	if e := resp2.Header.Get("Sec-WebSocket-Extensions"); e != "" {
		t.Errorf("extensions %q were accepted", e)
	}
}

// Guards against other people's pages using a visitor's network position.
func TestOrigins(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		allowed []string
		origin  string // %h is the listener's own host
		ok      bool
	}{
		{nil, "", true},
		{nil, "http://%h", true},
		{nil, "https://evil.example", false},
		{nil, "null", false},
		{nil, "http://%h.evil.example", false},
		{[]string{"*"}, "https://evil.example", true},
		{[]string{"*"}, "null", true},
		{[]string{"https://chat.example"}, "https://chat.example", true},
		{[]string{"https://chat.example"}, "https://CHAT.example:443", true},
		{[]string{"https://chat.example"}, "http://chat.example", false},
		{[]string{"https://chat.example"}, "https://chat.example:8443", false},
		{[]string{"https://chat.example"}, "https://chat.example.evil.example", false},
		{[]string{"https://chat.example"}, "", true},
		{[]string{"https://chat.example"}, "http://%h", true}, // the server's own host, whatever else is named
		{[]string{"https://chat.example"}, "http://%h.evil.example", false},
		{nil, "weapp://wechat-game-runtime", true}, // mini-games on iOS
		{[]string{"https://chat.example"}, "weapp://wechat-game-runtime", true},
		{[]string{"weapp://wechat-game-runtime"}, "http://%h", true},
		{nil, "file://", false},
		{[]string{"https://chat.example"}, "null", false},
		{[]string{"file://"}, "file://", true}, // hybrid apps
		{[]string{"file://"}, "null", false},
		{[]string{"null"}, "null", true},
		{[]string{"null"}, "file://", false},
		{[]string{"https://*.example.com"}, "https://a.example.com", true},
		{[]string{"https://*.example.com"}, "https://a.b.example.com", true},
		{[]string{"https://*.example.com"}, "https://example.com", false},
		{[]string{"https://*.example.com"}, "https://evilexample.com", false},
		{[]string{"https://*.example.com"}, "https://.example.com", false},
		{[]string{"http://a.example", "https://*.example.com:8443"}, "https://x.example.com:8443", true},
	} {
		_, url := startWS(t, listener.WSConfig{AllowedOrigins: c.allowed, Guard: listener.Guard{Handler: echo}})
		host := strings.TrimSuffix(strings.TrimPrefix(url, "ws://"), "/mqtt")
		header := http.Header{}
		if c.origin != "" {
			header.Set("Origin", strings.ReplaceAll(c.origin, "%h", host))
		}
		if _, status, err := tryWS(t, url, header, "mqtt"); (err == nil) != c.ok || (!c.ok && status != http.StatusForbidden) {
			t.Errorf("allowed %q, origin %q: status %d, want allowed=%v", c.allowed, c.origin, status, c.ok)
		}
	}
	for _, bad := range []string{"chat.example", "https://*", "https://*example.com", "https://a.*.example", "https://a.example/path", ""} {
		if _, err := listener.NewWebSocket(listener.WSConfig{AllowedOrigins: []string{bad}, Guard: listener.Guard{Handler: echo}}); err == nil {
			t.Errorf("allowed origin %q was taken", bad)
		}
	}
}

// Guards against a refused page that is not logged, and against a page that fills the log.
func TestRefusedOriginsAreLogged(t *testing.T) {
	t.Parallel()
	log := &syncBuffer{}
	_, url := startWS(t, listener.WSConfig{
		AllowedOrigins: []string{"https://chat.example"},
		Guard:          listener.Guard{Handler: echo, Logger: slog.New(slog.NewTextHandler(log, nil))},
	})
	for i := range 100 {
		if _, status, err := tryWS(t, url, http.Header{"Origin": {fmt.Sprintf("https://other%d.example", i)}}, "mqtt"); err == nil || status != http.StatusForbidden {
			t.Fatalf("status %d", status)
		}
	}
	text := log.String()
	if !strings.Contains(text, "origin=https://other0.example") || !strings.Contains(text, "--allow-origin") || !strings.Contains(text, "remote=127.0.0.1:") {
		t.Errorf("the log does not say which page was refused and what to do:\n%s", text)
	}
	if n := strings.Count(text, "level=WARN"); n > 20 {
		t.Errorf("%d lines for 100 refused pages", n)
	}
}

// Guards against a client that chooses its own address, and against taking the
// proxy's address for that of all clients.
func TestForwardedAddress(t *testing.T) {
	t.Parallel()
	trusted := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	for _, c := range []struct {
		name    string
		trusted []netip.Prefix
		use     string
		header  http.Header
		want    string // "" for the peer's own
	}{
		{"not trusted", nil, "", http.Header{"X-Forwarded-For": {"203.0.113.7"}}, ""},
		{"one hop", trusted, "", http.Header{"X-Forwarded-For": {"203.0.113.7"}}, "203.0.113.7:0"},
		{"spoofed", trusted, "", http.Header{"X-Forwarded-For": {"1.1.1.1, 203.0.113.7"}}, "203.0.113.7:0"},
		{"two proxies", trusted, "", http.Header{"X-Forwarded-For": {"1.1.1.1, 203.0.113.7, 10.1.2.3"}}, "203.0.113.7:0"},
		{"two lines", trusted, "", http.Header{"X-Forwarded-For": {"203.0.113.7", "10.1.2.3"}}, "203.0.113.7:0"},
		{"only proxies", trusted, "", http.Header{"X-Forwarded-For": {"10.1.2.4, 10.1.2.3"}}, "10.1.2.4:0"},
		{"with port", trusted, "", http.Header{"X-Forwarded-For": {"203.0.113.7:4711"}}, "203.0.113.7:4711"},
		{"IPv6", trusted, "", http.Header{"X-Forwarded-For": {"2001:db8::7"}}, "[2001:db8::7]:0"},
		{"rubbish", trusted, "", http.Header{"X-Forwarded-For": {"203.0.113.7, unknown"}}, ""},
		{"rubbish behind a proxy", trusted, "", http.Header{"X-Forwarded-For": {"203.0.113.7, unknown, 10.1.2.3"}}, "10.1.2.3:0"},
		{"other header", trusted, "", http.Header{"Forwarded": {"for=203.0.113.7"}}, ""},
		{"Forwarded", trusted, "Forwarded", http.Header{"Forwarded": {`for=1.1.1.1, for="[2001:db8::7]:4711";proto=https;by=10.0.0.1`}}, "[2001:db8::7]:4711"},
		{"Forwarded, not X-", trusted, "forwarded", http.Header{"Forwarded": {"By=10.0.0.1; For=203.0.113.7"}, "X-Forwarded-For": {"1.1.1.1"}}, "203.0.113.7:0"},
		{"Forwarded, hidden", trusted, "Forwarded", http.Header{"Forwarded": {"for=_hidden"}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			remote := make(chan string, 1)
			_, url := startWS(t, listener.WSConfig{TrustedProxies: c.trusted, ForwardedHeader: c.use, Guard: listener.Guard{
				Handler: func(_ string, c *listener.Conn) error { remote <- c.RemoteAddr().String(); return nil },
			}})
			conn := dialWS(t, url, c.header)
			sendWS(t, conn, connect(4, "abc", 60))
			want := c.want
			if want == "" {
				want = conn.LocalAddr().String()
			}
			if got := <-remote; got != want {
				t.Errorf("remote address %s, want %s", got, want)
			}
		})
	}
	if _, err := listener.NewWebSocket(listener.WSConfig{ForwardedHeader: "X-Real-IP", Guard: listener.Guard{Handler: echo}}); err == nil {
		t.Error("an unknown header was taken")
	}
}

// Guards against refusing the server's own pages behind a proxy that replaces
// the host, and against others who use that header.
func TestForwardedHost(t *testing.T) {
	t.Parallel()
	header := http.Header{"X-Forwarded-Host": {"chat.example"}, "Origin": {"https://chat.example"}}
	_, url := startWS(t, listener.WSConfig{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Guard: listener.Guard{Handler: echo}})
	if _, status, err := tryWS(t, url, header, "mqtt"); err != nil {
		t.Errorf("behind a proxy: %d, %v", status, err)
	}
	_, url = startWS(t, listener.WSConfig{Guard: listener.Guard{Handler: echo}})
	if _, status, err := tryWS(t, url, header, "mqtt"); err == nil || status != http.StatusForbidden {
		t.Errorf("without a proxy: %d, %v", status, err)
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	tokens := make(chan string, 1)
	_, url := startWS(t, listener.WSConfig{Guard: listener.Guard{Handler: func(id string, c *listener.Conn) error {
		if !c.WebSocket() || id != "ws" || c.ProtocolLevel() != 4 {
			t.Errorf("door %s, WebSocket %v, level %d", id, c.WebSocket(), c.ProtocolLevel())
		}
		tokens <- c.Token()
		if c.ForgetToken(); c.Token() != "" {
			t.Error("the token is still there")
		}
		return nil
	}}})
	for _, c := range []struct {
		query, authorization, want string
	}{
		{"", "", ""},
		{"?access_token=abc.def", "", "abc.def"},
		{"?access_token=a%2Bb", "", "a+b"},
		{"", "Bearer abc.def", "abc.def"},
		{"", "bearer  abc.def", "abc.def"},
		{"?access_token=other", "Bearer abc.def", "abc.def"},
		{"", "Basic dXNlcjpwYXNz", ""},
	} {
		header := http.Header{}
		if c.authorization != "" {
			header.Set("Authorization", c.authorization)
		}
		sendWS(t, dialWS(t, url+c.query, header), connect(4, "abc", 60))
		if got := <-tokens; got != c.want {
			t.Errorf("query %q, authorization %q: token %q, want %q", c.query, c.authorization, got, c.want)
		}
	}
}

// Guards against invalid WebSocket messages, and against a missing guard on
// this listener.
func TestWebSocketGuards(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		send   func(testing.TB, *websocket.Conn)
		code   int // of the close frame
		reason string
	}{
		"text": {func(tb testing.TB, c *websocket.Conn) {
			tb.Helper()
			if err := c.WriteMessage(websocket.TextMessage, []byte("hello")); err != nil {
				tb.Error(err)
			}
		}, websocket.CloseUnsupportedData, "text"},
		"message over the limit": {func(tb testing.TB, c *websocket.Conn) {
			tb.Helper()
			sendWS(tb, c, make([]byte, 2000))
		}, websocket.CloseMessageTooBig, "malformed"},
		"unmasked": {func(tb testing.TB, c *websocket.Conn) {
			tb.Helper()
			mustWrite(tb, c.UnderlyingConn(), append([]byte{0x82, 14}, connect(4, "", 60)...))
		}, websocket.CloseProtocolError, "malformed"},
		"compressed": {func(tb testing.TB, c *websocket.Conn) {
			tb.Helper()
			mustWrite(tb, c.UnderlyingConn(), []byte{0xc2, 0x80, 1, 2, 3, 4})
		}, websocket.CloseProtocolError, "malformed"},
		"not a CONNECT": {func(tb testing.TB, c *websocket.Conn) {
			tb.Helper()
			sendWS(tb, c, pingreq)
		}, websocket.CloseNormalClosure, "not_connect"},
		"silent": {func(testing.TB, *websocket.Conn) {}, websocket.CloseNormalClosure, "timeout"},
		"pings only": {func(tb testing.TB, c *websocket.Conn) {
			tb.Helper()
			done := make(chan struct{})
			go func() { // until the close has been answered
				defer close(done)
				for c.WriteControl(websocket.PingMessage, nil, time.Now().Add(wait)) == nil {
					time.Sleep(100 * time.Millisecond) // is the attack
				}
			}()
			tb.Cleanup(func() { _ = c.Close(); <-done })
		}, websocket.CloseNormalClosure, "timeout"},
		"client closes": {func(tb testing.TB, c *websocket.Conn) {
			tb.Helper()
			_ = c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4000, "bye"), time.Now().Add(wait))
		}, 4000, "closed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := listener.NewMetrics()
			timeout := wait
			if c.reason == "timeout" {
				timeout = peerDeadline // the handshake has to be over by then
			}
			_, url := startWS(t, listener.WSConfig{MessageLimit: 1000, Guard: listener.Guard{
				Handler: func(string, *listener.Conn) error { t.Error("the handler was called"); return nil },
				Metrics: m, FirstPacketTimeout: timeout,
			}})
			conn := dialWS(t, url, nil)
			c.send(t, conn)
			mustClose(t, conn, c.code)
			waitfor.MustHold(t, "the refusal is counted", func() bool {
				return count(t, m, "refused_total", c.reason) == 1 && count(t, m, "open") == 0
			})
		})
	}
}

// Guards against the pings that keep proxies from closing an idle connection,
// and the pongs that keep it open: without either it would end.
func TestPings(t *testing.T) {
	t.Parallel()
	// Two of them may be missed: the time that a busy machine may need for a pong.
	const interval = time.Second
	packet := connect(4, "abc", 0)
	t.Run("answered", func(t *testing.T) {
		t.Parallel()
		_, url := startWS(t, listener.WSConfig{PingInterval: interval, Guard: listener.Guard{Handler: echo}})
		c := dialWS(t, url, nil)
		sendWS(t, c, packet)
		readWS(t, c, packet)
		pings := 0
		pong := c.PingHandler()
		c.SetPingHandler(func(s string) error {
			if pings++; pings == 4 { // past the two that may be missed
				sendWS(t, c, pingreq)
			}
			return pong(s)
		})
		readWS(t, c, pingreq)
		if pings < 4 {
			t.Errorf("%d pings", pings)
		}
	})
	// A peer that is gone without a word, as a suspended mini-program, ends.
	t.Run("not answered", func(t *testing.T) {
		t.Parallel()
		_, url := startWS(t, listener.WSConfig{PingInterval: interval, Guard: listener.Guard{Handler: echo}})
		gone := dialWS(t, url, nil)
		gone.SetPingHandler(func(string) error { return nil })
		sendWS(t, gone, packet)
		mustClose(t, gone, websocket.CloseNormalClosure)
	})
}

// Guards against deadlines that the pings swallow, or that swallow the pings.
func TestWebSocketDeadlines(t *testing.T) {
	t.Parallel()
	const interval, deadline = time.Second, 2500 * time.Millisecond
	done := make(chan error, 1)
	_, url := startWS(t, listener.WSConfig{PingInterval: interval, Guard: listener.Guard{Handler: func(_ string, c *listener.Conn) error {
		p := make([]byte, 100)
		if _, err := c.Read(p); err != nil {
			return err
		}
		start := time.Now()
		_ = c.SetReadDeadline(start.Add(deadline))
		_, err := c.Read(p)
		if took := time.Since(start); took < deadline {
			t.Errorf("the read ended after %v", took)
		}
		_ = c.SetWriteDeadline(time.Now().Add(-time.Second))
		if _, werr := c.Write(p); !isTimeout(werr) {
			t.Errorf("write past its deadline: %v", werr)
		}
		done <- err
		return err
	}}})
	c := dialWS(t, url, nil)
	sendWS(t, c, connect(4, "abc", 0))
	read := make(chan struct{})
	go func() { // which answers the pings
		defer close(read)
		_, _, _ = c.ReadMessage()
	}()
	t.Cleanup(func() { _ = c.Close(); <-read })
	select {
	case err := <-done:
		if !isTimeout(err) {
			t.Errorf("read: %v, want a timeout", err)
		}
	case <-time.After(wait):
		t.Fatal("the read deadline never came")
	}
}

// Guards against a Close or a Stop that waits for a peer that does not read.
func TestCloseEndsABlockedWrite(t *testing.T) {
	t.Parallel()
	var written atomic.Int64
	blocked := make(chan *listener.Conn, 1)
	failed := make(chan error, 1)
	_, url := startWS(t, listener.WSConfig{PingInterval: -1, Guard: listener.Guard{Handler: func(_ string, c *listener.Conn) error {
		go func() {
			blocked <- c
			for p := make([]byte, 60_000); ; {
				n, err := c.Write(p)
				if written.Add(int64(n)); err != nil {
					failed <- err
					return
				}
			}
		}()
		p := make([]byte, 100)
		for {
			if _, err := c.Read(p); err != nil {
				return err
			}
		}
	}}})
	c := dialWS(t, url, nil)
	sendWS(t, c, connect(4, "abc", 0))
	conn := <-blocked
	last, since := int64(0), time.Now()
	waitfor.MustHold(t, "the socket takes no more", func() bool {
		if n := written.Load(); n != last {
			last, since = n, time.Now()
		}
		return last > 0 && time.Since(since) > 200*time.Millisecond
	})
	watch := stopwatch.New(t)
	start := watch.Elapsed()
	_ = conn.Close()
	if took := watch.Since(start); took > time.Second {
		t.Errorf("Close took %v", took)
	}
	select {
	case err := <-failed:
		if err == nil {
			t.Error("Write ended without an error")
		}
	case <-time.After(wait):
		t.Fatal("Write is still blocked")
	}
}

// Guards against frames that a pong cuts in two: control frames come from the
// reading goroutine, data from another.
func TestWritesAndControlFramesDoNotMix(t *testing.T) {
	t.Parallel()
	const messages = 300
	_, url := startWS(t, listener.WSConfig{PingInterval: -1, Guard: listener.Guard{Handler: func(_ string, c *listener.Conn) error {
		go func() {
			p := bytes.Repeat([]byte("x"), 70_000)
			for range messages {
				if _, err := c.Write(p); err != nil {
					t.Errorf("write: %v", err)
					return
				}
			}
			_, _ = c.Write([]byte("end"))
		}()
		_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
		return err
	}}})
	c := dialWS(t, url, nil)
	sendWS(t, c, connect(4, "abc", 0))
	total := 0
	for i := 0; ; i++ {
		if i%3 == 0 {
			_ = c.WriteControl(websocket.PingMessage, []byte("ping"), time.Now().Add(wait))
		}
		_, p, err := c.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		if string(p) == "end" {
			break
		}
		if len(bytes.Trim(p, "x")) > 0 {
			t.Fatal("a message was cut")
		}
		total += len(p)
	}
	if total != messages*70_000 {
		t.Errorf("%d bytes, want %d", total, messages*70_000)
	}
}

// Guards against upgraded connections that outlive the server, which does not
// know them, and against goroutines beyond one a connection.
func TestWebSocketStopLeavesNothing(t *testing.T) {
	mochi := newMochi(t)
	before := goleak.IgnoreCurrent()
	m := listener.NewMetrics()
	ws, err := listener.NewWebSocket(listener.WSConfig{Guard: listener.Guard{Handler: mochiHandler(mochi), Metrics: m}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(ws)
	defer srv.Close()
	url := "ws" + strings.TrimPrefix(srv.URL, "http")
	silent := dialWS(t, url, nil)
	pong, silentClosed := make(chan struct{}), make(chan struct{})
	silent.SetPongHandler(func(string) error { close(pong); return nil })
	go func() {
		defer close(silentClosed)
		mustClose(t, silent, websocket.CloseGoingAway)
	}()
	// A connection that is stopped before the end of its handshake is closed
	// without a close frame.
	if err := silent.WriteControl(websocket.PingMessage, nil, time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	<-pong
	ready := dialWS(t, url, nil)
	sendWS(t, ready, connect(4, "ready", 0))
	readWS(t, ready, connack)

	ws.StopAccepting()
	if _, status, err := tryWS(t, url, nil, "mqtt"); err == nil || status != http.StatusServiceUnavailable {
		t.Errorf("after StopAccepting: %d, %v; want 503", status, err)
	}
	sendWS(t, ready, pingreq)
	readWS(t, ready, pingresp)

	closed := make(chan struct{})
	go func() {
		defer close(closed)
		mustClose(t, ready, websocket.CloseGoingAway)
	}()
	mustStop(t, ws)
	mustStop(t, ws)
	<-closed
	<-silentClosed
	srv.Close()
	if n := count(t, m, "open"); n != 0 {
		t.Errorf("%d connections counted as open", n)
	}
	if err := leak.Find(before); err != nil {
		t.Error(err)
	}
}

func TestWebSocketLimits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limiter *listener.Limiter
		status  int
	}{
		"overall":     {listener.NewLimiter(1, 0), http.StatusServiceUnavailable},
		"per address": {listener.NewLimiter(0, 1), http.StatusTooManyRequests},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, url := startWS(t, listener.WSConfig{Guard: listener.Guard{Handler: echo, Limiter: c.limiter}})
			first := dialWS(t, url, nil)
			if _, status, err := tryWS(t, url, nil, "mqtt"); err == nil || status != c.status {
				t.Errorf("the second: %d, %v; want %d", status, err, c.status)
			}
			// A failed handshake releases its slot, as a connection does.
			_ = first.Close()
			waitfor.MustHold(t, "the place is free", func() bool {
				conn, _, err := tryWS(t, url, nil, "mqtt")
				if err == nil {
					_ = conn.Close()
				}
				return err == nil
			})
		})
	}
}

// Guards against a panic over WebSocket, which net/http would not see, ending
// the process.
func TestWebSocketPanic(t *testing.T) {
	t.Parallel()
	m := listener.NewMetrics()
	_, url := startWS(t, listener.WSConfig{Guard: listener.Guard{Handler: mochiHandler(newMochi(t)), Metrics: m}})
	c := dialWS(t, url, nil)
	sendWS(t, c, append(connect(5, "abc", 60), panicPacket...))
	mustClose(t, c, websocket.CloseNormalClosure)
	waitfor.MustHold(t, "the panic is counted", func() bool { return count(t, m, "panics_total", "ws") == 1 })
}

// Guards against a reader that goes on after the end: Gorilla panics when it is
// asked too often.
func TestReadAfterTheEnd(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	m := listener.NewMetrics()
	_, url := startWS(t, listener.WSConfig{Guard: listener.Guard{Metrics: m, Handler: func(_ string, c *listener.Conn) error {
		defer close(done)
		p := make([]byte, 100)
		for ends := 0; ends < 2000; {
			if _, err := c.Read(p); err != nil {
				if ends++; !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
					t.Errorf("read: %v", err)
				}
			}
		}
		return nil
	}}})
	c := dialWS(t, url, nil)
	sendWS(t, c, connect(4, "abc", 0))
	_ = c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(wait))
	<-done
	waitfor.MustHold(t, "the connection is gone", func() bool { return count(t, m, "open") == 0 })
	if n := count(t, m, "panics_total"); n > 0 {
		t.Error("reading on panicked")
	}
}
