package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/internal/waitfor"
)

// MQTT over TLS, and no MQTT in the clear: the parts of the server find the broker
// all the same.
func TestTLSOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	selfSigned(t, cert, key)
	n := start(t, "serve", "--data-dir", filepath.Join(dir, "data"), "--jwt-secret", secret,
		"--mqtt-addr", "off", "--mqtts-addr", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key,
		"--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	if n.mqtt != "" {
		t.Errorf("MQTT in the clear is served at %s", n.mqtt)
	}
	bob := unique("bob")
	sub := mosquittoSub(t, n.mqtts, token(t, bob), "mqttv5", "user/"+bob, 1, "--cafile", cert)
	mosquittoPub(t, n.mqtts, token(t, unique("alice")), "mqttv311", "user/"+bob, 1, "sealed", "--cafile", cert)
	archived(t, n.database, sub.waitText(t, "sealed").Seq)
}

// selfSigned writes a certificate of 127.0.0.1 and its key.
func selfSigned(tb testing.TB, certFile, keyFile string) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
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
}

// newDatabase makes an empty archive beside that of the shared server.
func newDatabase(tb testing.TB) string {
	tb.Helper()
	n := shared(tb)
	name := strings.ReplaceAll(unique("archive"), "-", "_")
	conn, err := pgx.Connect(tb.Context(), n.database)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close(tb.Context()) }()
	if _, err := conn.Exec(tb.Context(), "CREATE DATABASE "+name); err != nil {
		tb.Fatal(err)
	}
	address, err := url.Parse(n.database)
	if err != nil {
		tb.Fatal(err)
	}
	address.Path = "/" + name
	if status, _, stderr := execute(tb, "migrate", "--database-url", address.String()); status != 0 {
		tb.Fatalf("migrate: %s", stderr)
	}
	return address.String()
}

// The archiver and the API as processes of their own reach the broker over TLS, by MQTT
// and by WebSocket, with an authority that only --broker-ca names. Without it, with
// another one, or where the certificate is for another host they say what to do.
func TestBrokerURLOverTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	selfSigned(t, cert, key)
	other := filepath.Join(dir, "other.pem")
	selfSigned(t, other, filepath.Join(dir, "other-key.pem"))
	database := newDatabase(t)
	b := start(t, "broker", "--data-dir", filepath.Join(dir, "data"), "--jwt-secret", secret,
		"--mqtt-addr", "off", "--mqtts-addr", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key,
		"--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	arguments := func(name, broker string, more ...string) []string {
		return append([]string{
			name, "--database-url", database, "--broker-url", broker, "--jwt-secret", secret, "--metrics-addr", "127.0.0.1:0",
		}, more...)
	}
	part := func(name, broker string, more ...string) *node {
		return start(t, arguments(name, broker, more...)...)
	}

	// WebSocket over TLS is a reverse proxy's, as in front of a real installation.
	inside, err := url.Parse("http://" + b.http)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(inside))
	t.Cleanup(proxy.Close)
	proxyCert := filepath.Join(dir, "proxy.pem")
	if err := os.WriteFile(proxyCert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: proxy.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}

	for i, way := range []struct{ broker, ca string }{
		{"mqtts://" + b.mqtts, cert},
		{"ssl://" + b.mqtts, cert},
		{strings.Replace(proxy.URL, "https", "wss", 1), proxyCert},
		{strings.Replace(proxy.URL, "https", "wss", 1) + "/mqtt", proxyCert},
	} {
		archiver := part("archiver", way.broker, "--broker-ca", way.ca)
		text := fmt.Sprintf("sealed %d", i)
		mosquittoPub(t, b.mqtts, token(t, unique("alice")), "mqttv311", "user/bob", 1, text, "--cafile", cert)
		waitfor.MustHold(t, "message in the archive by "+way.broker, func() bool {
			return len(query(t, database, "message->>'body' = $1", text)) == 1
		})
		if status := archiver.interrupt(); status != 0 {
			t.Errorf("the archiver by %s ended with status %d", way.broker, status)
		}
	}

	for name, more := range map[string][]string{
		"mqtts://" + b.mqtts: nil, // an authority that the system does not know
		"ssl://" + b.mqtts:   {"--broker-ca", other},
		"mqtts://localhost:" + b.mqtts[strings.LastIndex(b.mqtts, ":")+1:]: {"--broker-ca", cert}, // not the certificate's host
		strings.Replace(proxy.URL, "https", "wss", 1):                      {"--broker-ca", other},
	} {
		archiver := launch(arguments("archiver", name, more...)...) // it is not ready before it is connected
		t.Cleanup(func() { archiver.interrupt() })
		line, ok := archiver.log.await(func(line string) bool { return strings.Contains(line, "not connected") }, archiver.exited)
		if !ok || !strings.Contains(line, "certificate") || !strings.Contains(line, `"advice":"see that --broker-ca`) {
			t.Errorf("%s %v: it says %s", name, more, line)
		}
	}

	// The API publishes its notices in the same way.
	api := part("api", "mqtts://"+b.mqtts, "--broker-ca", other, "--http-addr", "127.0.0.1:0")
	if line, ok := api.log.await(func(line string) bool { return strings.Contains(line, "notices wait") }, api.exited); !ok || !strings.Contains(line, "see that --broker-ca") {
		t.Errorf("the API with another authority says %s", line)
	}
	api.interrupt()
	api = part("api", "mqtts://"+b.mqtts, "--broker-ca", cert, "--http-addr", "127.0.0.1:0")
	part("archiver", "mqtts://"+b.mqtts, "--broker-ca", cert)
	v := visitor{tb: t, node: api}
	owner := unique("anna")
	v.token, _ = v.call(http.MethodPost, "/v1/accounts", object{"id": owner, "password": "a long password", "name": "Anna"})["access_token"].(string)
	v.call(http.MethodPost, "/v1/groups", object{"name": "Sealed"})
	waitfor.MustHold(t, "notice in the archive", func() bool {
		return len(query(t, database, "sender = 'system' AND topic = $1 AND type = 'notice.group.created'", "user/"+owner)) == 1
	})
}
