package e2e_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"mynah/internal/waitfor"
)

// The commands that `serve --dev` prints work when they are pasted: that is what a
// stranger tries first.
func TestCrib(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	n := start(t, "serve", "--dev", "--data-dir", data,
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	// The crib comes after the log's line that it is ready.
	if _, ok := n.stdout.await(func(line string) bool { return strings.Contains(line, " token --data-dir") }, n.exited); !ok {
		t.Fatalf("no crib:\n%s", n.stdout)
	}
	crib := map[string]string{} // comment → command
	comment := ""
	for line := range strings.Lines(n.stdout.String()) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "# "); ok {
			comment = rest
		} else if line != "" && comment != "" {
			crib[comment] = line
			comment = ""
		}
	}
	command := func(about string) string {
		t.Helper()
		for comment, command := range crib {
			if strings.Contains(comment, about) {
				return command
			}
		}
		t.Fatalf("the crib has nothing about %q:\n%s", about, n.stdout)
		return ""
	}
	// background pastes a command that goes on until the test ends.
	background := func(about string) *output {
		t.Helper()
		out := newOutput()
		// stdbuf, since what is printed to a pipe would stay in a buffer.
		cmd := exec.Command("bash", "-c", "exec stdbuf -oL "+command(about))
		cmd.Dir = "node" // where npx finds MQTT.js without asking the registry
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) // npx has children
			_ = cmd.Wait()
		})
		return out
	}
	paste := func(about string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "bash", "-c", command(about)).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command(about), err, out)
		}
		return string(out)
	}
	sees := func(who string, out *output, pattern string) {
		t.Helper()
		want := regexp.MustCompile(pattern)
		if _, ok := out.await(want.MatchString, nil); !ok {
			t.Fatalf("%s does not see %s but\n%s", who, pattern, out)
		}
	}

	// Nobody can know when a pasted subscriber is there, so it is written to until
	// it answers, as a person would do.
	alice, bob := background("alice listens"), background("MQTT.js")
	waitfor.MustHold(t, "alice to hear bob", func() bool {
		paste("bob writes to alice")
		return strings.Contains(alice.String(), "Hello alice")
	})
	waitfor.MustHold(t, "bob's browser to hear the group", func() bool {
		paste("bob writes to the group")
		return strings.Contains(bob.String(), "Hello everyone")
	})
	sees("alice", alice, `^\{"seq":\d{16},"prev":\d+,"from":"bob","to":"user/alice","ts":\d{13},"type":"text","body":"Hello alice"\}$`)
	paste("bob writes to alice") // once more, since the archive's look is at the newest
	paste("device")
	sees("alice", alice, `"from":"sensor","to":"group/lobby".*"type":"data","body":\{"temperature":21.5\}`)
	sees("bob", bob, `"temperature":21.5`)
	waitfor.MustHold(t, "the archive to show it", func() bool {
		table := paste("archive")
		return strings.Contains(table, `"Hello alice"`) && strings.Contains(table, `"Hello everyone"`) && strings.Contains(table, "sensor")
	})
	// A token of the API's own opens the same doors.
	var session struct {
		AccessToken string `json:"access_token"`
	}
	mustUnmarshal(t, []byte(paste("alice signs in")), &session)
	dial(t, n, "alice-phone", session.AccessToken).pub(t, "group/lobby", 1, "signed in")
	sees("alice", alice, `"from":"alice","to":"group/lobby".*"body":"signed in"`)
	carol := strings.TrimSpace(paste("somebody else"))
	dial(t, n, "carol", carol).sub(t, "group/lobby", 1)

	// The secret that it made is nobody else's to read, and stands in no log.
	file := filepath.Join(data, "jwt-secret")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the secret's file: %v %v, want mode 0600", info, err)
	}
	made, err := os.ReadFile(file)
	if err != nil || len(bytes.TrimSpace(made)) < 32 || strings.Contains(n.log.String()+n.stdout.String(), string(bytes.TrimSpace(made))) {
		t.Errorf("the secret is short, or printed: %v", err)
	}
	status, stdout, stderr := execute(t, "token", "--data-dir", data, "--sub", "dave")
	if status != 0 {
		t.Fatal(stderr)
	}
	dial(t, n, "dave", strings.TrimSpace(stdout))
}
