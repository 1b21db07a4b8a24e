package listener_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mynah/broker/listener"
	"mynah/internal/waitfor"
)

// writeCert makes a self-signed certificate for 127.0.0.1 and puts it and its
// key into dir.
func writeCert(tb testing.TB, dir string, serial int64) (certFile, keyFile string) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	mustWriteFile(tb, certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	mustWriteFile(tb, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	return certFile, keyFile
}

// mustWriteFile puts a new file in the place of one that is there, as whoever renews
// certificates does. Written over, a file of the same length could be taken for the old
// one: the time of a change is known to some milliseconds only.
func mustWriteFile(tb testing.TB, name string, data []byte) {
	tb.Helper()
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		tb.Fatal(err)
	}
}

// clientTLS accepts any certificate: the tests check the serial.
func clientTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true}
}

func serial(tb testing.TB, addr net.Addr) int64 {
	tb.Helper()
	conn := tls.Client(dial(tb, addr), clientTLS())
	if err := conn.HandshakeContext(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

// Guards against old versions of TLS, a wrong listener id, and a guard that works
// for plain TCP only.
func TestTLS(t *testing.T) {
	t.Parallel()
	certFile, keyFile := writeCert(t, t.TempDir(), 1)
	reloader, err := listener.NewCertReloader(certFile, keyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := listener.NewMetrics()
	id := make(chan string, 1)
	l := startTCP(t, listener.TCPConfig{TLS: reloader.TLSConfig(), Guard: listener.Guard{
		Handler: func(door string, c *listener.Conn) error { id <- door; return echo(door, c) },
		Metrics: m, FirstPacketTimeout: wait,
	}})

	conn := tls.Client(dial(t, l.Addr()), clientTLS())
	packet := append(connect(4, "abc", 60), publish("t", make([]byte, 40_000))...)
	mustWrite(t, conn, packet)
	mustRead(t, conn, packet)
	if v := conn.ConnectionState().Version; v != tls.VersionTLS13 {
		t.Errorf("TLS version %x, want 1.3", v)
	}
	if got := <-id; got != "mqtts" {
		t.Errorf("door %q, want mqtts", got)
	}

	old := clientTLS()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if err := tls.Client(dial(t, l.Addr()), old).HandshakeContext(t.Context()); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	waitfor.MustHold(t, "the handshake's refusal is counted", func() bool { return count(t, m, "refused_total", "tls") == 1 })

	plain := dial(t, l.Addr())
	mustWrite(t, plain, connect(4, "abc", 60))
	if _, err := plain.Read(make([]byte, 100)); isTimeout(err) {
		t.Error("plain MQTT was not refused")
	}

	// The deadline covers the handshake, and what follows it.
	short := listener.NewMetrics()
	l = startTCP(t, listener.TCPConfig{TLS: reloader.TLSConfig(), Guard: listener.Guard{
		Handler: echo, Metrics: short, FirstPacketTimeout: peerDeadline,
	}})
	silent := dial(t, l.Addr())
	quiet := tls.Client(dial(t, l.Addr()), clientTLS())
	if err := quiet.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustEnd(t, silent)
	mustEnd(t, quiet)
	waitfor.MustHold(t, "the timeouts are counted", func() bool { return count(t, short, "refused_total", "timeout") == 2 })
}

// Guards against a restart for every new certificate, and against new files that
// do not fit together taking a working listener down.
func TestCertificateIsReloaded(t *testing.T) {
	t.Parallel()
	var logs logBuffer
	dir := t.TempDir()
	certFile, keyFile := writeCert(t, dir, 1)
	reloader, err := listener.NewCertReloader(certFile, keyFile, slog.New(slog.NewTextHandler(&logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	l := startTCP(t, listener.TCPConfig{TLS: reloader.TLSConfig(), Guard: listener.Guard{Handler: echo}})
	if n := serial(t, l.Addr()); n != 1 {
		t.Fatalf("certificate %d, want 1", n)
	}

	goodKey, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = writeCert(t, dir, 2)
	newKey, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	mustWriteFile(t, keyFile, goodKey) // the new certificate with the old key
	waitfor.MustHold(t, "the wrong pair is reported", func() bool {
		if n := serial(t, l.Addr()); n != 1 {
			t.Fatalf("certificate %d, want 1 still", n)
		}
		return strings.Contains(logs.String(), "cannot be used")
	})

	mustWriteFile(t, keyFile, newKey)
	waitfor.MustHold(t, "the new certificate is served", func() bool { return serial(t, l.Addr()) == 2 })
	if n := strings.Count(logs.String(), "cannot be used"); n != 1 {
		t.Errorf("the wrong pair was reported %d times, want once", n)
	}

	if err := os.Remove(certFile); err != nil {
		t.Fatal(err)
	}
	waitfor.MustHold(t, "the missing file is reported", func() bool {
		return serial(t, l.Addr()) == 2 && strings.Count(logs.String(), "cannot be used") == 2
	})
}

// Guards against a start that succeeds with a certificate that cannot work, and
// against an error that does not say which file.
func TestCertificateErrorsNameTheFile(t *testing.T) {
	t.Parallel()
	certFile, keyFile := writeCert(t, t.TempDir(), 1)
	missing := filepath.Join(t.TempDir(), "missing.key")
	for _, pair := range [][2]string{{certFile, missing}, {missing, keyFile}, {certFile, certFile}, {"", keyFile}} {
		_, err := listener.NewCertReloader(pair[0], pair[1], nil)
		if err == nil {
			t.Errorf("%v: no error", pair)
			continue
		}
		if pair[0] != "" && !strings.Contains(err.Error(), pair[1]) && !strings.Contains(err.Error(), pair[0]) {
			t.Errorf("%v: %v does not name the file", pair, err)
		}
	}
}
