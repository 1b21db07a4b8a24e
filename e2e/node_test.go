package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// node is a running mynah process.
type node struct {
	cmd    *exec.Cmd
	log    *output // its standard error
	stdout *output
	exited chan struct{}
	failed error // why awaitReady gave up

	// Read from its log when it is ready.
	mqtt, mqtts, http, metrics, database string
}

// launch starts `mynah` with JSON logs and does not wait.
func launch(args ...string) *node { return launchCommand(exec.Command(mynah, args...)) }

// launchCommand is launch with a command that becomes mynah.
func launchCommand(cmd *exec.Cmd) *node {
	n := &node{cmd: cmd, log: newOutput(), stdout: newOutput(), exited: make(chan struct{})}
	n.cmd.Env = append(cleanEnv(), "MYNAH_LOG_FORMAT=json")
	n.cmd.Stdout, n.cmd.Stderr = n.stdout, n.log
	// In a process group of its own, so that a test's Ctrl-C is the test's.
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.cmd.Start(); err != nil {
		n.failed = err
		close(n.exited)
		return n
	}
	go func() {
		_ = n.cmd.Wait() // the status is in ProcessState
		close(n.exited)
	}()
	return n
}

// cleanEnv is the environment without settings of whoever runs the tests.
func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "MYNAH_") {
			env = append(env, kv)
		}
	}
	return env
}

// awaitReady waits for the line that says so and reads the addresses from it.
func (n *node) awaitReady() {
	if n.failed != nil {
		return
	}
	line, ok := n.log.await(func(line string) bool { return strings.Contains(line, `"msg":"ready"`) }, n.exited)
	if !ok {
		n.failed = fmt.Errorf("mynah %s did not become ready", strings.Join(n.cmd.Args[1:], " "))
		_ = n.cmd.Process.Kill()
		<-n.exited
		return
	}
	var ready struct{ MQTT, MQTTS, HTTP, Metrics, Database string }
	if err := json.Unmarshal([]byte(line), &ready); err != nil {
		n.failed = fmt.Errorf("read %q: %w", line, err)
		return
	}
	n.mqtt, n.mqtts, n.http = ready.MQTT, ready.MQTTS, ready.HTTP
	n.metrics, n.database = ready.Metrics, ready.Database
}

// start launches mynah, waits until it is ready, and stops it gracefully with the
// test unless the test has ended it.
func start(tb testing.TB, args ...string) *node {
	tb.Helper()
	return started(tb, launch(args...))
}

// started is start for a node that has been launched.
func started(tb testing.TB, n *node) *node {
	tb.Helper()
	n.awaitReady()
	if n.failed != nil {
		tb.Fatalf("%v\n%s%s", n.failed, n.stdout.String(), n.log.String())
	}
	tb.Cleanup(func() {
		// Every test is a test of the graceful stop too; and a private
		// PostgreSQL is stopped by nobody else.
		select {
		case <-n.exited: // by the test
		default:
			if status := n.interrupt(); status != 0 {
				tb.Errorf("mynah %s ended with status %d after SIGINT", n.cmd.Args[1], status)
			}
		}
		if tb.Failed() {
			tb.Logf("log of mynah %s:\n%s", n.cmd.Args[1], n.log.tail(60))
		}
	})
	return n
}

// interrupt asks for a graceful stop and returns the exit status, -1 if it had
// to be killed.
func (n *node) interrupt() int {
	_ = n.cmd.Process.Signal(syscall.SIGINT) // it may have ended already
	select {
	case <-n.exited:
	case <-time.After(deadline):
		_ = n.cmd.Process.Kill()
		<-n.exited
		return -1
	}
	return n.cmd.ProcessState.ExitCode()
}

// kill ends the process with SIGKILL.
func (n *node) kill() {
	_ = n.cmd.Process.Kill() // it may have ended already
	<-n.exited
}

// execute runs mynah to its end.
func execute(tb testing.TB, args ...string) (status int, stdout, stderr string) {
	tb.Helper()
	n := launch(args...)
	select {
	case <-n.exited:
	case <-time.After(deadline):
		n.kill()
		tb.Fatalf("mynah %s did not end:\n%s", strings.Join(args, " "), n.log.String())
	}
	if n.failed != nil {
		tb.Fatal(n.failed)
	}
	return n.cmd.ProcessState.ExitCode(), n.stdout.String(), n.log.String()
}

// output collects what a process prints, line by line.
type output struct {
	mu      sync.Mutex
	lines   []string
	rest    []byte
	changed chan struct{} // closed and replaced at every change
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

// Write splits into lines.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rest = append(o.rest, p...)
	for {
		line, rest, found := bytes.Cut(o.rest, []byte("\n"))
		if !found {
			break
		}
		o.lines = append(o.lines, string(line))
		o.rest = rest
	}
	close(o.changed)
	o.changed = make(chan struct{})
	return len(p), nil
}

// await returns the first line that matches, as soon as there is one. It gives up
// at the deadline and when ended is closed.
func (o *output) await(match func(string) bool, ended <-chan struct{}) (string, bool) {
	timeout := time.After(deadline)
	for seen, last := 0, false; ; {
		o.mu.Lock()
		lines, changed := o.lines[seen:], o.changed
		o.mu.Unlock()
		for _, line := range lines {
			if match(line) {
				return line, true
			}
		}
		seen += len(lines)
		if last {
			return "", false
		}
		select {
		case <-changed:
		case <-ended:
			last = true // one more look at what was printed at the end
		case <-timeout:
			return "", false
		}
	}
}

// String returns all that was printed.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.lines, "\n") + "\n" + string(o.rest)
}

func (o *output) tail(n int) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.lines[max(0, len(o.lines)-n):], "\n") + "\n" + string(o.rest)
}
