package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"mynah/internal/pgtest"
	"mynah/internal/waitfor"
)

// webTest is a running `mynah serve` with short timeouts.
type webTest struct {
	http, https, metrics string // addresses
	cert, key            string // files
	tls                  *tls.Config
	client               *http.Client
}

// logPipe hands each line of a server's log to a test.
type logPipe struct{ lines chan []byte }

func (l *logPipe) Write(b []byte) (int, error) {
	select {
	case l.lines <- bytes.Clone(b):
	default: // nobody reads any more
	}
	return len(b), nil
}

// serveWeb runs the server until the test ends.
func serveWeb(t *testing.T, timeouts webTimeouts) *webTest {
	t.Helper()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	pool := writeCertificate(t, cert, key, 1)
	log := &logPipe{lines: make(chan []byte, 1000)}
	p := &process{program: "mynah", getenv: func(string) string { return "" }, stdout: io.Discard, stderr: log, timeouts: timeouts}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() {
		ended <- p.run(ctx, []string{
			"serve", "--data-dir", filepath.Join(dir, "data"), "--database-url", pgtest.New(t), "--jwt-secret", strings.Repeat("s", 32),
			"--mqtt-addr", "127.0.0.1:0", "--mqtts-addr", "off", "--http-addr", "127.0.0.1:0", "--https-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0",
			"--tls-cert", cert, "--tls-key", key, "--log-format", "json",
		})
	}()
	t.Cleanup(func() {
		cancel()
		if status := <-ended; status != exitOK {
			t.Errorf("the server ended with status %d", status)
		}
	})
	w := &webTest{cert: cert, key: key, tls: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	w.client = &http.Client{Transport: &http.Transport{TLSClientConfig: w.tls, DisableKeepAlives: true}, Timeout: time.Minute}
	for deadline := time.After(2 * time.Minute); ; {
		select {
		case line := <-log.lines:
			var said struct{ Msg, HTTP, HTTPS, Metrics string }
			if json.Unmarshal(line, &said) == nil && said.Msg == "ready" {
				w.http, w.https, w.metrics = said.HTTP, said.HTTPS, said.Metrics
				return w
			}
			if !bytes.HasPrefix(line, []byte("{")) {
				t.Logf("%s", line)
			}
		case <-deadline:
			t.Fatal("the server is not ready after two minutes")
		}
	}
}

// writeCertificate writes a certificate of 127.0.0.1 with the serial number and its key, and
// returns whom to believe it.
func writeCertificate(tb testing.TB, certFile, keyFile string, serial int64) *x509.CertPool {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		tb.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return pool
}

// routes are all methods and paths of the listeners, those of the API from its own document,
// and some that nobody knows.
func (w *webTest) routes(t *testing.T) (public, operators []string) {
	t.Helper()
	answer, err := w.client.Get("http://" + w.http + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	var document struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.NewDecoder(answer.Body).Decode(&document); err != nil {
		t.Fatal(err)
	}
	for path, methods := range document.Paths {
		path = strings.NewReplacer("{id}", "x", "{who}", "y", "{provider}", "z", "{link}", "L").Replace(path)
		for method := range methods {
			public = append(public, strings.ToUpper(method)+" "+path)
		}
	}
	if len(public) < 60 {
		t.Fatalf("only %d operations: the document was not understood", len(public))
	}
	for _, method := range []string{"GET", "POST", "PUT", "OPTIONS", "BREW"} {
		for _, path := range []string{"/healthz", "/readyz", "/nosuch", "/"} {
			public = append(public, method+" "+path)
			operators = append(operators, method+" "+path)
		}
		for _, path := range []string{"/mqtt", "/docs", "/openapi.json", "/.well-known/jwks.json", "/v1/", "/v1/me"} {
			public = append(public, method+" "+path)
		}
		for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/debug/pprof/symbol", "/debug/pprof/profile?seconds=1", "/debug/pprof/trace?seconds=0.1"} {
			operators = append(operators, method+" "+path)
		}
	}
	return public, operators
}

// stalls are the ways in which a client does not go on. Each is all that it sends.
var stalls = map[string]string{
	"no head":         "",
	"half a line":     "%m %p HT",
	"half a head":     "%m %p HTTP/1.1\r\nHost: x\r\nX-Slow: ",
	"no body":         "%m %p HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n",
	"half a body":     "%m %p HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{\"a\":",
	"a huge body":     "%m %p HTTP/1.1\r\nHost: x\r\nContent-Length: 600000000\r\n\r\n{",
	"an endless body": "%m %p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
	"an asked body":   "%m %p HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\nExpect: 100-continue\r\n\r\n",
	"a second one":    "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n%m %p HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{",
}

// Guards against clients that keep a connection, and with enough of them all descriptors, by
// announcing what never comes: 2,000 of 2,000 were open after two minutes. Only operations
// that read their body gave up.
func TestNobodyKeepsAConnection(t *testing.T) {
	t.Parallel()
	// Long enough that a busy machine sends what the test sends, and much less than the
	// test waits for.
	w := serveWeb(t, webTimeouts{read: 2 * time.Second, write: 3 * time.Second, idle: time.Hour})
	public, operators := w.routes(t)

	// One that is allowed to stay: its handshake has been answered, and MQTT's own rules
	// hold from then on.
	ws, answer, err := (&websocket.Dialer{TLSClientConfig: w.tls, Subprotocols: []string{"mqtt"}}).Dial("wss://"+w.https+"/mqtt", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	defer func() { _ = ws.Close() }()
	mqttConnect(t, ws)

	secure := func(address string) (net.Conn, error) {
		return (&tls.Dialer{Config: w.tls}).DialContext(t.Context(), "tcp", address)
	}
	inClear := func(address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(t.Context(), "tcp", address)
	}
	type door struct {
		name, address string
		dial          func(string) (net.Conn, error)
		routes        []string
		stalls        map[string]string
	}
	var open sync.WaitGroup
	var mu sync.Mutex // guards kept
	var kept []string
	count := 0
	gate := make(chan struct{}, 200) // connections at once
	for _, d := range []door{
		{"http", w.http, inClear, public, stalls},
		{"https", w.https, secure, public[:20], stalls},
		{"metrics", w.metrics, inClear, operators, stalls},
		// A handshake of TLS that ends nowhere.
		{"https in the clear", w.https, inClear, []string{"GET /"}, map[string]string{"nothing": "", "half a hello": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"}},
	} {
		for _, route := range d.routes {
			method, path, _ := strings.Cut(route, " ")
			for name, sends := range d.stalls {
				count++
				gate <- struct{}{}
				open.Go(func() {
					defer func() { <-gate }()
					conn, err := d.dial(d.address)
					if err != nil {
						t.Errorf("%s: %v", d.name, err)
						return
					}
					defer func() { _ = conn.Close() }()
					_ = conn.SetDeadline(time.Now().Add(40 * time.Second))
					if _, err := io.WriteString(conn, strings.NewReplacer("%m", method, "%p", path).Replace(sends)); err != nil {
						return // closed already
					}
					if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
						mu.Lock()
						defer mu.Unlock()
						kept = append(kept, d.name+": "+route+", "+name)
					}
				})
			}
		}
	}
	open.Wait()
	if len(kept) > 0 {
		slices.Sort(kept)
		t.Errorf("%d of %d connections are open after 40 s:\n%s", len(kept), count, strings.Join(kept[:min(len(kept), 30)], "\n"))
	}
	if count < 1000 {
		t.Errorf("only %d connections", count)
	}

	// All that took longer than the timeouts, so the WebSocket is past them.
	mqttPing(t, ws)
}

// mqttConnect sends a CONNECT without a token, which a broker that has a secret refuses: a
// CONNACK all the same. So the connection ends; a valid token keeps it.
func mqttConnect(t *testing.T, ws *websocket.Conn) {
	t.Helper()
	var token bytes.Buffer
	p := &process{program: "mynah", getenv: func(string) string { return "" }, stdout: &token, stderr: io.Discard, timeouts: defaultWebTimeouts}
	if status := p.run(t.Context(), []string{"token", "--sub", "anna", "--jwt-secret", strings.Repeat("s", 32)}); status != exitOK {
		t.Fatal("no token")
	}
	password := strings.TrimSpace(token.String())
	field := func(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }
	rest := field("MQTT") + "\x04\xc2\x00\x00" + field("web") + field("anna") + field(password)
	head := []byte{0x10}
	for n := len(rest); ; n >>= 7 {
		if n < 128 {
			head = append(head, byte(n))
			break
		}
		head = append(head, byte(n&127|128))
	}
	if err := ws.WriteMessage(websocket.BinaryMessage, append(head, rest...)); err != nil {
		t.Fatal(err)
	}
	if got := mqttRead(t, ws); !bytes.Equal(got, []byte{0x20, 2, 0, 0}) {
		t.Fatalf("CONNACK: % x", got)
	}
}

func mqttPing(t *testing.T, ws *websocket.Conn) {
	t.Helper()
	if err := ws.WriteMessage(websocket.BinaryMessage, []byte{0xc0, 0}); err != nil {
		t.Fatalf("the WebSocket did not outlive the timeouts of HTTP: %v", err)
	}
	if got := mqttRead(t, ws); !bytes.Equal(got, []byte{0xd0, 0}) {
		t.Fatalf("PINGRESP: % x", got)
	}
}

func mqttRead(t *testing.T, ws *websocket.Conn) []byte {
	t.Helper()
	_ = ws.SetReadDeadline(time.Now().Add(40 * time.Second))
	_, text, err := ws.ReadMessage()
	if err != nil {
		t.Fatalf("the WebSocket did not outlive the timeouts of HTTP: %v", err)
	}
	return text
}

// A profile takes as long as it says, which is more than other requests may, and is bounded.
func TestProfilesTakeLonger(t *testing.T) {
	t.Parallel()
	w := serveWeb(t, webTimeouts{read: time.Second, write: time.Second, idle: time.Minute})
	began := time.Now()
	answer, err := w.client.Get("http://" + w.metrics + "/debug/pprof/trace?seconds=3")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(bufio.NewReader(answer.Body))
	if err != nil || answer.StatusCode != http.StatusOK || len(text) == 0 {
		t.Errorf("status %d, %d bytes, %v", answer.StatusCode, len(text), err)
	}
	if took := time.Since(began); took < 3*time.Second {
		t.Errorf("a trace of 3 s took %v", took)
	}
	for _, seconds := range []string{"1e9", "-1", "NaN", "x", "301"} {
		answer, err := w.client.Get(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%s", w.metrics, seconds))
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusBadRequest {
			t.Errorf("seconds=%s: status %d", seconds, answer.StatusCode)
		}
	}
}

// What HTTP serves is served over TLS as well: the API, its pages, and MQTT over WebSocket;
// the certificate is taken up again when its files change.
func TestHTTPS(t *testing.T) {
	t.Parallel()
	w := serveWeb(t, defaultWebTimeouts)
	for path, want := range map[string]int{"/v1/sign-in": 200, "/docs": 200, "/openapi.json": 200, "/healthz": 200, "/readyz": 200, "/v1/me": 401, "/metrics": 404, "/mqtt": 426} {
		answer, err := w.client.Get("https://" + w.https + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != want || answer.TLS == nil || answer.ProtoMajor != 1 {
			t.Errorf("%s: %s %s, want %d", path, answer.Proto, answer.Status, want)
		}
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := w.tls.Clone()
		config.MinVersion, config.MaxVersion = version, version
		ws, answer, err := (&websocket.Dialer{TLSClientConfig: config, Subprotocols: []string{"mqtt"}}).Dial(
			"wss://"+w.https+"/mqtt", http.Header{"Origin": {"https://" + w.https}})
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		mqttConnect(t, ws)
		mqttPing(t, ws)
		_ = ws.Close()
	}
	old := w.tls.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if conn, err := (&tls.Dialer{Config: old}).DialContext(t.Context(), "tcp", w.https); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.1 is taken")
	}
	// In the clear, at the wrong port.
	answer, err := w.client.Get("http://" + w.https + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusBadRequest {
		t.Errorf("HTTP in the clear at the port of HTTPS: %s", answer.Status)
	}
	renewed := &tls.Config{RootCAs: writeCertificate(t, w.cert, w.key, 2), MinVersion: tls.VersionTLS12}
	waitfor.MustSucceed(t, "the new certificate is taken up", func() error {
		conn, err := (&tls.Dialer{Config: renewed}).DialContext(t.Context(), "tcp", w.https)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
}

// An address for HTTPS without a certificate is refused by its flag.
func TestHTTPSNeedsACertificate(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"serve", "broker", "api"} {
		status, _, stderr := mustRun(t, nil, command, "--https-addr", "127.0.0.1:0", "--jwt-secret", strings.Repeat("s", 32), "--database-url", "postgres://localhost/x")
		if status != exitFailure || !strings.Contains(stderr, "--https-addr: needs a certificate; give --tls-cert and --tls-key") {
			t.Errorf("%s: status %d: %s", command, status, stderr)
		}
	}
	if status, _, stderr := mustRun(t, nil, "api", "--forwarded-header", "X-Real-IP", "--database-url", "postgres://localhost/x"); status != exitFailure || !strings.Contains(stderr, "--forwarded-header: ") {
		t.Errorf("a header that no proxy is believed in: status %d: %s", status, stderr)
	}
}
