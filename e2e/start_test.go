package e2e_test

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mynah/internal/waitfor"
)

// A wrong setting is refused at start by its flag's name and with a remedy, and
// the exit status is 1. No secret is in what is said.
func TestSettingsRefused(t *testing.T) {
	t.Parallel()
	n := shared(t)
	busy, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = busy.Close() })
	port := busy.Addr().String()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("not what is wanted"), 0o600); err != nil {
		t.Fatal(err)
	}
	free := []string{"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0"}
	with := func(args ...string) []string { return append(append([]string{}, args...), free...) }
	dir := func() string { return t.TempDir() }
	certificate := filepath.Join(t.TempDir(), "cert.pem")
	selfSigned(t, certificate, filepath.Join(t.TempDir(), "key.pem"))

	cases := []struct {
		name string
		args []string
		flag string
		says string
	}{
		{"short secret", with("serve", "--data-dir", dir(), "--jwt-secret", "hunter2"), "--jwt-secret", "32"},
		{"short secret, broker", with("broker", "--data-dir", dir(), "--jwt-secret", "hunter2"), "--jwt-secret", "32"},
		{"short secret, token", []string{"token", "--sub", "alice", "--jwt-secret", "hunter2"}, "--jwt-secret", "32"},
		{"no secret", with("serve", "--data-dir", dir()), "--jwt-secret", "--dev"},
		{"no secret, broker", with("broker", "--data-dir", dir()), "--jwt-secret", "--jwks"},
		{"no secret, token", []string{"token", "--sub", "alice", "--data-dir", dir()}, "--jwt-secret", "--data-dir"},
		{"no JWKS file", with("broker", "--data-dir", dir(), "--jwks", "/nonexistent/jwks.json"), "--jwks", "/nonexistent/jwks.json"},
		{"bad JWKS file", with("broker", "--data-dir", dir(), "--jwks", file), "--jwks", file},
		{"data directory in use", with("serve", "--data-dir", sharedDir, "--jwt-secret", secret), "--data-dir", "in use"},
		{"data directory in use, broker", with("broker", "--data-dir", sharedDir, "--jwt-secret", secret), "--data-dir", "in use"},
		{"data directory is a file", with("serve", "--data-dir", file, "--jwt-secret", secret), "--data-dir", "directory"},
		{"MQTT port in use", []string{"serve", "--data-dir", dir(), "--jwt-secret", secret, "--mqtt-addr", port, "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0"}, "--mqtt-addr", "in use"},
		{"HTTP port in use", []string{"serve", "--data-dir", dir(), "--jwt-secret", secret, "--mqtt-addr", "127.0.0.1:0", "--http-addr", port, "--metrics-addr", "127.0.0.1:0"}, "--http-addr", "in use"},
		{"metrics port in use", []string{"serve", "--data-dir", dir(), "--jwt-secret", secret, "--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", port}, "--metrics-addr", "in use"},
		{"bad address", []string{"broker", "--data-dir", dir(), "--jwt-secret", secret, "--mqtt-addr", "1883"}, "--mqtt-addr", "host:port"},
		{"database unreachable", with("serve", "--data-dir", dir(), "--jwt-secret", secret, "--database-url", "postgres://mynah:hunter2@127.0.0.1:1/mynah"), "--database-url", "127.0.0.1:1"},
		{"database unreachable, archiver", []string{"archiver", "--jwt-secret", secret, "--database-url", "postgres://mynah:hunter2@127.0.0.1:1/mynah", "--metrics-addr", "127.0.0.1:0"}, "--database-url", "127.0.0.1:1"},
		{"database unreachable, migrate", []string{"migrate", "--database-url", "postgres://mynah:hunter2@127.0.0.1:1/mynah"}, "--database-url", "127.0.0.1:1"},
		{"no database, archiver", []string{"archiver", "--jwt-secret", secret, "--metrics-addr", "127.0.0.1:0"}, "--database-url", "postgres://"},
		{"database address that is none", []string{"migrate", "--database-url", "postgres://mynah:hunter2@host:port/x"}, "--database-url", "postgres://user"},
		{"no token, archiver", []string{"archiver", "--database-url", n.database, "--metrics-addr", "127.0.0.1:0"}, "--token-file", "--jwt-secret"},
		{"token file missing", []string{"archiver", "--database-url", n.database, "--token-file", "/nonexistent/token", "--metrics-addr", "127.0.0.1:0"}, "--token-file", "/nonexistent/token"},
		{"broker address that is none", []string{"archiver", "--database-url", n.database, "--jwt-secret", secret, "--broker-url", "localhost:1883", "--metrics-addr", "127.0.0.1:0"}, "--broker-url", "mqtt://"},
		{"authority's file missing", []string{"archiver", "--database-url", n.database, "--jwt-secret", secret, "--broker-url", "mqtts://127.0.0.1", "--broker-ca", "/nonexistent/ca.pem", "--metrics-addr", "127.0.0.1:0"}, "--broker-ca", "/nonexistent/ca.pem"},
		{"authority's file that is none", []string{"api", "--database-url", n.database, "--jwt-secret", secret, "--broker-url", "wss://127.0.0.1", "--broker-ca", file, "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0"}, "--broker-ca", "BEGIN CERTIFICATE"},
		{"authority without TLS", []string{"archiver", "--database-url", n.database, "--jwt-secret", secret, "--broker-ca", certificate, "--metrics-addr", "127.0.0.1:0"}, "--broker-ca", "mqtts://"},
		{"certificate without key", with("broker", "--data-dir", dir(), "--jwt-secret", secret, "--tls-cert", file), "--tls-cert", "--tls-key"},
		{"certificate that is none", with("broker", "--data-dir", dir(), "--jwt-secret", secret, "--tls-cert", file, "--tls-key", file), "--tls-cert", "PEM"},
		{"proxy that is none", with("broker", "--data-dir", dir(), "--jwt-secret", secret, "--trusted-proxy", "nginx"), "--trusted-proxy", "nginx"},
		{"origin that is none", with("broker", "--data-dir", dir(), "--jwt-secret", secret, "--allow-origin", "chat"), "--allow-origin", "https://"},
		{"PROXY header from nobody", with("broker", "--data-dir", dir(), "--jwt-secret", secret, "--proxy-protocol"), "--proxy-protocol", "--trusted-proxy"},
		{"settings file missing", []string{"broker", "--config", "/nonexistent.yml"}, "--config", "/nonexistent.yml"},
		{"settings file that is none", []string{"broker", "--config", file}, "--config", file},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			status, stdout, stderr := execute(t, test.args...)
			if status != 1 {
				t.Errorf("exit status %d, want 1", status)
			}
			if !strings.Contains(stderr, "mynah: "+test.flag) || !strings.Contains(stderr, test.says) {
				t.Errorf("it says\n%swant %s and %q in it", stderr, test.flag, test.says)
			}
			for _, secret := range []string{"hunter2", secret} {
				if strings.Contains(stdout+stderr, secret) {
					t.Errorf("the secret %q is in what it says:\n%s%s", secret, stdout, stderr)
				}
			}
		})
	}
}

// SIGTERM: what is in flight is committed and acknowledged, MQTT 5 clients are
// told, the archive is complete, the status is 0 and the same data starts again.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	args := []string{
		"serve", "--data-dir", t.TempDir(), "--jwt-secret", secret,
		"--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0", "--mqtt-addr",
	}
	n := start(t, append(args, "127.0.0.1:0")...)
	js := connectJS(t, n, token(t, "watcher"), nil)
	l := &ledger{acked: map[string]bool{}}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		l.publisher(stop, n.mqtt, "p", token(t, "alice"), "user/bob")
	}()
	waitfor.MustHold(t, "load", func() bool { return l.count.Load() > 500 })

	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	e := js.event(t, "disconnect", func(e jsEvent) bool { return e.Event == "disconnect" })
	if e.Packet.ReasonCode != 0x8b {
		t.Errorf("MQTT 5 clients are told %#x, want 0x8B", e.Packet.ReasonCode)
	}
	select {
	case <-n.exited:
	case <-time.After(deadline):
		t.Fatalf("it does not stop\n%s", n.log)
	}
	if status := n.cmd.ProcessState.ExitCode(); status != 0 {
		t.Fatalf("exit status %d\n%s", status, n.log)
	}
	close(stop)
	<-ended

	// PostgreSQL was stopped with it, so the look is at a new start. What was
	// committed between the archiver's stop and the broker's is archived now.
	n = start(t, append(args, n.mqtt)...)
	l.mu.Lock()
	defer l.mu.Unlock()
	mids := map[string]int{}
	waitfor.MustHold(t, "every acknowledged message in the archive", func() bool {
		clear(mids)
		for _, r := range query(t, n.database, "sender = 'alice'") {
			mids[*r.Mid]++
		}
		for mid := range l.acked {
			if mids[mid] == 0 {
				return false
			}
		}
		return true
	})
	for mid, count := range mids {
		if count != 1 {
			t.Errorf("%s is in the archive %d times", mid, count)
		}
	}
}

// Health is there for everybody, metrics and profiles on their own listener only.
func TestHealthAndMetrics(t *testing.T) {
	t.Parallel()
	n := shared(t)
	status := func(url string) int {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		return response.StatusCode
	}
	for url, want := range map[string]int{
		"http://" + n.http + "/healthz":                200,
		"http://" + n.http + "/readyz":                 200,
		"http://" + n.http + "/metrics":                404,
		"http://" + n.http + "/debug/pprof/":           404,
		"http://" + n.metrics + "/healthz":             200,
		"http://" + n.metrics + "/readyz":              200,
		"http://" + n.metrics + "/metrics":             200,
		"http://" + n.metrics + "/debug/pprof/":        200,
		"http://" + n.http + "/mqtt":                   400, // no WebSocket
		"http://" + n.metrics + "/debug/pprof/cmdline": 404,
	} {
		if got := status(url); got != want && (want != 400 || got/100 != 4) {
			t.Errorf("%s: %d, want %d", url, got, want)
		}
	}
	if status, _, stderr := execute(t, "health", "--metrics-addr", n.metrics); status != 0 {
		t.Errorf("mynah health: status %d: %s", status, stderr)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	status, stdout, _ := execute(t, "version")
	if status != 0 || !strings.HasPrefix(stdout, "mynah v0-e2e ") {
		t.Errorf("status %d: %q", status, stdout)
	}
}

// Settings come from flags, the environment and a file, in this order.
func TestSettingsSources(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "mynah.yml")
	if err := os.WriteFile(file, []byte("jwt-secret: "+secret+"\nttl: 5m\nsub: from-file\ngroup: [one, two]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	status, stdout, stderr := execute(t, "token", "--config", file, "--sub", "alice")
	if status != 0 {
		t.Fatal(stderr)
	}
	n := shared(t)
	c := dial(t, n, "c", strings.TrimSpace(stdout))
	c.sub(t, "group/one", 1)
	c.sub(t, "group/two", 1)
	c.sub(t, "user/alice", 1)
}

// `mynah log` looks at the log of a running broker without being in its way.
func TestLogCommand(t *testing.T) {
	t.Parallel()
	n := shared(t)
	group := unique("group")
	c := dial(t, n, "c", token(t, unique("alice"), groups(group)))
	c.sub(t, "group/"+group, 1)
	for _, text := range []string{"one", "two", "three"} {
		c.pub(t, "group/"+group, 1, text)
		c.waitText(t, text)
	}
	status, stdout, stderr := execute(t, "log", "--data-dir", sharedDir, "--topic", "group/"+group, "--tail", "2")
	if status != 0 {
		t.Fatal(stderr)
	}
	var want strings.Builder
	for _, d := range c.all()[1:] {
		want.Write(d.Payload)
		want.WriteByte('\n')
	}
	if stdout != want.String() {
		t.Errorf("the newest two of the group\n got %swant %s", stdout, want.String())
	}
	status, stdout, stderr = execute(t, "log", "--data-dir", sharedDir, "--verify")
	if status != 0 || !strings.Contains(stdout, "all well") || !strings.Contains(stdout, "in use     by process ") {
		t.Errorf("verify: status %d\n%s%s", status, stdout, stderr)
	}
	if status, _, stderr := execute(t, "log", "--data-dir", t.TempDir()); status != 1 || !strings.Contains(stderr, "--data-dir") {
		t.Errorf("a folder without a log: status %d: %s", status, stderr)
	}
}
