package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// mustRun calls the program in this process.
func mustRun(tb testing.TB, env map[string]string, args ...string) (status int, stdout, stderr string) {
	tb.Helper()
	var out, err bytes.Buffer
	status = run(tb.Context(), args, func(name string) string { return env[name] }, &out, &err)
	return status, out.String(), err.String()
}

// A flag wins over the environment, the environment over the file.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "mynah.yaml")
	const secretOfFile, secretOfEnv = "the secret in the file, of 32 bytes or so", "short"
	if err := os.WriteFile(file, []byte("jwt-secret: "+secretOfFile+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"token", "--sub", "alice"}
	if status, _, stderr := mustRun(t, map[string]string{"MYNAH_CONFIG": file}, args...); status != 0 {
		t.Errorf("the file's secret: %s", stderr)
	}
	env := map[string]string{"MYNAH_CONFIG": file, "MYNAH_JWT_SECRET": secretOfEnv}
	if status, _, stderr := mustRun(t, env, args...); status != 1 || !strings.Contains(stderr, "is 5 bytes long") {
		t.Errorf("the environment's secret: status %d: %s", status, stderr)
	}
	if status, _, stderr := mustRun(t, env, append(args, "--jwt-secret", secretOfFile)...); status != 0 {
		t.Errorf("the flag's secret: %s", stderr)
	}
}

// What is misspelt is refused, wherever it stands.
func TestMisspelt(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "mynah.yaml")
	if err := os.WriteFile(file, []byte("jwt-secrte: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"brokr"}, exitUsage, "brokr"},
		{[]string{"token", "--subject", "alice"}, exitFailure, "--subject"},
		{[]string{"token", "--sub", "alice", "--role", "root"}, exitFailure, "--role"},
		{[]string{"token", "--sub", "alice", "--config", file}, exitFailure, `"jwt-secrte"`},
		{[]string{"token", "--sub", "alice", "--config", file}, exitFailure, `did you mean "jwt-secret"?`},
		{[]string{"token", "--sub", "alice", "--config", mustFile(t, "mqtt_addr: x")}, exitFailure, `did you mean "mqtt-addr"?`},
		{[]string{"token", "--sub", "alice", "--config", mustFile(t, "MYNAH_DATA_DIR: x")}, exitFailure, `did you mean "data-dir"?`},
		{[]string{"token", "--sub", "alice", "--config", mustFile(t, "colour: x")}, exitFailure, "--help lists them"},
		{[]string{"token", "--sub", "alice", "--ttl", "24"}, exitFailure, `--ttl: "24" has no unit; did you mean 24s, 24m or 24h?`},
		{[]string{"token", "--sub", "alice", "--ttl", "1.5d"}, exitFailure, "did you mean 36h?"},
		{[]string{"token", "--sub", "alice", "--ttl", "soon"}, exitFailure, "write 24h"},
		{[]string{"token", "--sub", "alice", "--config", mustFile(t, "ttl: 1h\nrole: user\nttl: 2h\n")}, exitFailure, "has a key twice; see line 3"},
		{[]string{"token", "--sub", "alice", "--config", mustFile(t, "ttl: 1h\n\trole: user\n")}, exitFailure, "with the flags' names as keys; see line 2"},
		{[]string{"serve", "--config", mustFile(t, "retain-age: 720")}, exitFailure, "--retain-age: \"720\" has no unit"},
		{[]string{"token", "--sub", "not an id", "--jwt-secret", strings.Repeat("s", 32)}, exitFailure, "sub"},
		{[]string{"broker", "--jwt-secret", strings.Repeat("s", 32), "--session-expiry", "0"}, exitFailure, "--session-expiry"},
		{[]string{"archiver", "--archive-retention", "5m"}, exitFailure, "--archive-retention"},
		{[]string{"serve", "--archive-retention", "-24h"}, exitFailure, "--archive-retention"},
		{[]string{"token", "--sub", "alice", "--ttl", "-1h", "--jwt-secret", strings.Repeat("s", 32)}, exitFailure, "--ttl"},
	} {
		if status, _, stderr := mustRun(t, nil, test.args...); status != test.status || !strings.Contains(stderr, test.says) {
			t.Errorf("mynah %s: status %d: %swant %d and %s", strings.Join(test.args, " "), status, stderr, test.status, test.says)
		}
	}
}

// Without arguments, and with --help anywhere, the help is printed; every flag in it
// has its environment variable.
func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"--help"}, {"serve", "--help"}, {"token", "--help"}, {"archiver", "--help"}} {
		status, stdout, stderr := mustRun(t, nil, args...)
		if status != 0 || stderr != "" || !strings.Contains(stdout, "Usage: mynah") {
			t.Errorf("mynah %s: status %d, stderr %q:\n%s", strings.Join(args, " "), status, stderr, stdout)
		}
	}
	_, stdout, _ := mustRun(t, nil, "serve", "--help")
	for _, want := range []string{"$MYNAH_DATA_DIR", "$MYNAH_MQTT_ADDR", "$MYNAH_JWT_SECRET", "Default: :1883"} {
		if !strings.Contains(strings.Join(strings.Fields(stdout), " "), want) {
			t.Errorf("serve --help has no %s", want)
		}
	}
}

func TestBrokerURL(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"mqtt://broker": "mqtt://broker:1883", "mqtts://broker": "mqtts://broker:8883", "mqtt://[::1]": "mqtt://[::1]:1883",
		"mqtt://broker:99": "mqtt://broker:99", "wss://chat.example.com/mqtt": "wss://chat.example.com/mqtt",
	} {
		if got := (&Upstream{BrokerURL: in}).brokerURL(); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
