package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The broker refuses a log from whose end acknowledged messages are missing, and names
// the command that gives them up; the command says what is lost and keeps the damaged
// file; the broker goes on with what is left. Guards the command itself: what it prints,
// and that it never touches a log that is sound or in use.
func TestLogRepair(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	args := []string{
		"broker", "--data-dir", data, "--jwt-secret", secret, "--no-archive",
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0",
	}
	alice, bob := unique("alice"), unique("bob")
	publish := func(n *node, from, upto int) {
		t.Helper()
		c := dial(t, n, "c", token(t, alice))
		for i := from; i < upto; i++ {
			c.pub(t, "user/"+bob, 1, fmt.Sprint("message ", i))
		}
		c.Disconnect(100)
	}
	repair := func() (int, string, string) {
		t.Helper()
		return execute(t, "log", "--repair", "--data-dir", data)
	}

	if status, _, stderr := repair(); status != 1 || !strings.Contains(stderr, "--data-dir") || !strings.Contains(stderr, "no message log") {
		t.Errorf("a folder without a log: status %d: %s", status, stderr)
	}
	b := start(t, args...)
	publish(b, 0, 20)
	if status, _, stderr := repair(); status != 1 || !strings.Contains(stderr, "--data-dir") || !strings.Contains(stderr, "in use") || !strings.Contains(stderr, "stop it") {
		t.Errorf("beside a running broker: status %d: %s", status, stderr)
	}
	publish(b, 20, 40) // it was not harmed
	b.kill()
	if status, stdout, stderr := repair(); status != 0 || !strings.Contains(stdout, "nothing was changed") || strings.Contains(stdout, "lost") {
		t.Errorf("a log that is sound: status %d: %s%s", status, stdout, stderr)
	}

	logs, err := filepath.Glob(filepath.Join(data, "broker", "log", "*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no write-ahead log: %v", err)
	}
	slices.Sort(logs)
	wal := logs[len(logs)-1]
	whole, err := os.ReadFile(wal)
	if err != nil {
		t.Fatal(err)
	}
	damaged := slices.Clone(whole)
	damaged[len(damaged)/2] ^= 0x10
	if err := os.WriteFile(wal, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := execute(t, args...); status != 1 || !strings.Contains(stderr, "mynah log --repair") {
		t.Fatalf("the broker on a damaged log: status %d: %s", status, stderr)
	}
	status, stdout, stderr := repair()
	if status != 0 || !strings.Contains(stdout, "lost       messages ") || !strings.Contains(stdout, "the broker can be started") {
		t.Fatalf("repair: status %d: %s%s", status, stdout, stderr)
	}
	_, rest, _ := strings.Cut(stdout, "kept       ")
	kept, _, _ := strings.Cut(rest, ",")
	if content, err := os.ReadFile(kept); err != nil || !slices.Equal(content, damaged) {
		t.Errorf("the damaged file is not kept as it was: %v\n%s", err, stdout)
	}

	b = start(t, args...)
	c := dial(t, b, "bob", token(t, bob))
	c.sub(t, "user/"+bob, 1)
	publish(b, 40, 41)
	m := c.waitText(t, "message 40")
	var first, last uint64
	_, rest, _ = strings.Cut(stdout, "lost       messages ")
	if _, err := fmt.Sscanf(rest, "%d to %d;", &first, &last); err != nil || first > last || m.Seq <= last {
		t.Errorf("lost %d to %d (%v), and the next message has the seq %d", first, last, err, m.Seq)
	}
	b.kill()
	if status, stdout, _ := repair(); status != 0 || !strings.Contains(stdout, "nothing was changed") {
		t.Errorf("repaired twice: status %d: %s", status, stdout)
	}
}
