package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"mynah/internal/waitfor"
)

// Somebody else takes the broker's disk to the last byte, and what is set aside as well.
// The broker cannot go on then; it starts anew by itself, waits for room without filling
// its log with that, and when there is room nothing that was acknowledged is missing.
// Guards against a broker that had ended and had to be started by hand, and against a
// start on a full disk that hung and wrote a thousand lines a second.
func TestDiskFullToTheLastByte(t *testing.T) {
	t.Parallel()
	mount := t.TempDir()
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, "size=330m"); err != nil {
		t.Fatalf("this test fills a file system of its own and needs the right to mount one (run it as root): %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(mount, syscall.MNT_DETACH) })
	n := start(t, "broker", "--data-dir", filepath.Join(mount, "data"), "--jwt-secret", secret, "--no-archive",
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	alice, bob := unique("alice"), unique("bob")
	options := func() *paho.ClientOptions {
		return pahoOptions(n, "phone", token(t, bob)).SetCleanSession(false)
	}
	c := connectPaho(t, options())
	c.sub(t, "user/"+bob, 1)
	c.Disconnect(100)
	dial(t, n, "c", token(t, alice)).pub(t, "user/"+bob, 1, "before")

	// Whatever becomes free is taken at once.
	eater := filepath.Join(mount, "eater")
	enough := make(chan struct{})
	var eating sync.WaitGroup
	stopEating := sync.OnceFunc(func() { close(enough); eating.Wait() })
	t.Cleanup(stopEating)
	eating.Go(func() {
		file, err := os.Create(eater)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = file.Close() }()
		zeros := bytes.Repeat([]byte{0}, 1<<20)
		for {
			select {
			case <-enough:
				return
			case <-time.After(time.Millisecond):
			}
			for size := len(zeros); size > 0; size /= 2 {
				for err = nil; err == nil; {
					_, err = file.Write(zeros[:size])
				}
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Error(err)
				return
			}
		}
	})
	// Sessions are stored as long as there is anything to store them in.
	waitfor.MustHold(t, "the log to fail", func() bool {
		for range 10 {
			id := unique(strings.Repeat("session", 30))
			paho.NewClient(pahoOptions(n, id, token(t, alice)).SetCleanSession(false)).Connect().WaitTimeout(time.Second)
		}
		return strings.Contains(n.log.String(), "the server starts anew")
	})
	if _, ok := n.log.await(func(line string) bool { return strings.Contains(line, "the broker starts when there is room") }, n.exited); !ok {
		t.Fatalf("it ended with status %d", n.cmd.ProcessState.ExitCode())
	}
	lines := strings.Count(n.log.String(), "\n")
	time.Sleep(3 * time.Second) // for which a start that spins would write thousands of lines
	if more := strings.Count(n.log.String(), "\n") - lines; more > 20 {
		t.Errorf("it writes %d lines to its log while it waits", more)
	}

	stopEating()
	if err := os.Remove(eater); err != nil {
		t.Fatal(err)
	}
	var ready string
	waitfor.MustHold(t, "the broker to be ready again", func() bool {
		found := 0
		for line := range strings.Lines(n.log.String()) {
			if strings.Contains(line, `"msg":"ready"`) {
				ready = line
				found++
			}
		}
		return found == 2
	})
	var at struct{ MQTT string }
	mustUnmarshal(t, json.RawMessage(ready), &at)
	n.mqtt = at.MQTT
	back := connectPaho(t, options())
	back.waitText(t, "before")
	dial(t, n, "c", token(t, alice)).pub(t, "user/"+bob, 1, "after")
	back.waitText(t, "after")
}

// A broker that waits for room at its start ends when it is asked to.
func TestStopWhileTheDiskIsFull(t *testing.T) {
	t.Parallel()
	mount := t.TempDir()
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatalf("this test fills a file system of its own and needs the right to mount one (run it as root): %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(mount, syscall.MNT_DETACH) })
	n := launch("broker", "--data-dir", filepath.Join(mount, "data"), "--jwt-secret", secret, "--no-archive",
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	_, waits := n.log.await(func(line string) bool { return strings.Contains(line, "the broker starts when there is room") }, n.exited)
	if status := n.interrupt(); !waits || status != 0 {
		t.Errorf("waits for room: %v; status %d\n%s", waits, status, n.log)
	}
}
