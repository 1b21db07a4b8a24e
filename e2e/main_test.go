package e2e_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// deadline bounds every wait of these tests: long enough for a busy CI machine,
// short enough to see which wait it was.
const deadline = time.Minute

// secret signs the tokens of the tests.
const secret = "a secret of these tests, 32 bytes and more"

// mynah is bin/mynah, built for this run.
var mynah string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

// parallel is how many tests run at once where the command line does not say. They mostly
// wait for other processes and for time to pass: with one for each of two processors, the
// default, they take four times as long.
const parallel = "4"

func testMain(m *testing.M) int {
	if err := flag.Set("test.parallel", parallel); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "mynah-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	// The private PostgreSQL runs as another user and must get through.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	mynah = filepath.Join(dir, "mynah")
	build := exec.CommandContext(context.Background(), "go", "build", "-ldflags", "-X main.version=v0-e2e", "-o", mynah, "../cmd/mynah")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build mynah: %v\n%s", err, out)
		return 1
	}
	if _, err := os.Stat("node/node_modules"); err != nil {
		install := exec.CommandContext(context.Background(), "npm", "ci", "--no-audit", "--no-fund", "--loglevel=error")
		install.Dir = "node"
		if out, err := install.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "npm ci in e2e/node: %v\n%s", err, out)
			return 1
		}
	}
	defer stopShared()
	sharedDir = filepath.Join(dir, "shared")
	status := m.Run()
	if !checkWire().report() && status == 0 {
		status = 1
	}
	return status
}

var (
	sharedDir  string
	sharedOnce sync.Once
	sharedNode *node
)

// shared returns the server that the small tests share: `mynah serve` with a
// private PostgreSQL. Tests on it keep apart by using ids of their own.
func shared(tb testing.TB) *node {
	tb.Helper()
	sharedOnce.Do(func() {
		sharedNode = launch("serve", "--data-dir", sharedDir, "--jwt-secret", secret,
			"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0",
			"--allow-origin", "https://chat.example.com")
		sharedNode.awaitReady()
	})
	if sharedNode.failed != nil {
		tb.Fatalf("the shared server does not run: %v\n%s", sharedNode.failed, sharedNode.log.String())
	}
	return sharedNode
}

func stopShared() {
	if sharedNode != nil && sharedNode.failed == nil {
		if status := sharedNode.interrupt(); status != 0 {
			fmt.Fprintf(os.Stderr, "the shared server ended with status %d:\n%s", status, sharedNode.log.String())
		}
	}
}
