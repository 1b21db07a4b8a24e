package e2e_test

import (
	"context"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mynah/internal/waitfor"

	"github.com/jackc/pgx/v5"
)

// Guards against a start that hangs without a word where the data directory's name has a
// space, and against commands to paste that a shell takes apart.
func TestDataDirectoryOfAnyName(t *testing.T) {
	t.Parallel()
	// One with all: the private PostgreSQL has a test for each.
	data := filepath.Join(t.TempDir(), `two words, it's 100% 数据`)
	n := start(t, "serve", "--dev", "--data-dir", data,
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	line, ok := n.stdout.await(func(line string) bool { return strings.Contains(line, " token --data-dir") }, n.exited)
	if !ok {
		t.Fatalf("no crib:\n%s", n.stdout)
	}
	out, err := exec.Command("bash", "-c", line).CombinedOutput()
	if err != nil || strings.Count(string(out), ".") != 2 {
		t.Errorf("%s: %v\n%s", line, err, out)
	}
	psql, _ := n.stdout.await(func(line string) bool { return strings.HasPrefix(line, "psql ") }, n.exited)
	if out, err := exec.Command("bash", "-c", psql).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", psql, err, out)
	}
}

// Guards against an archiver that says it is ready while the broker does not let it in,
// and not why. Without any secret of its own it finds that of serve --dev.
func TestArchiverSaysWhatIsInTheWay(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	server := start(t, "serve", "--dev", "--data-dir", data, "--no-archive",
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	args := []string{"archiver", "--database-url", server.database, "--broker-url", "mqtt://" + server.mqtt, "--metrics-addr", "127.0.0.1:0"}
	wrong := launch(append(args, "--jwt-secret", "not the secret of that server, 32 bytes")...)
	refused, ok := wrong.log.await(func(line string) bool { return strings.Contains(line, "the broker refuses the archiver's token") }, wrong.exited)
	if !ok {
		t.Fatalf("it does not say that it is refused:\n%s", wrong.log)
	}
	for _, want := range []string{"--jwt-secret", "--token-file", "role archiver"} {
		if !strings.Contains(refused, want) {
			t.Errorf("it says %q, want the remedy with %s", refused, want)
		}
	}
	waits, ok := wrong.log.await(func(line string) bool { return strings.Contains(line, "the start is still waiting") }, wrong.exited)
	if !ok || !strings.Contains(waits, "broker") {
		t.Errorf("it waits without saying for what:\n%s", wrong.log)
	}
	if strings.Contains(wrong.log.String(), `"msg":"ready"`) {
		t.Errorf("it says that it is ready:\n%s", wrong.log)
	}
	if status := wrong.interrupt(); status != 0 {
		t.Errorf("it ended with status %d", status)
	}

	right := start(t, append(args, "--data-dir", data)...)
	if !strings.Contains(right.log.String(), "the archiver is connected to the broker") {
		t.Errorf("it is ready and not connected:\n%s", right.log)
	}
	start(t, "api", "--data-dir", data, "--database-url", server.database, "--broker-url", "mqtt://"+server.mqtt,
		"--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	status, _, stderr := execute(t, append(args, "--data-dir", t.TempDir())...)
	if status != 1 || !strings.Contains(stderr, "mynah: --token-file") || !strings.Contains(stderr, "--data-dir") {
		t.Errorf("without any secret: status %d, %s", status, stderr)
	}
}

// After a switchover: /readyz says that the database takes no writes, calls are refused,
// and both are over as soon as it takes them again.
func TestReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	pg := mustOwnPostgres(t)
	n := start(t, "serve", "--data-dir", t.TempDir(), "--jwt-secret", secret, "--database-url", pg.url,
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	alone := start(t, "api", "--jwt-secret", secret, "--database-url", pg.url, "--broker-url", "mqtt://"+n.mqtt,
		"--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	ready := func(n *node) (int, string) {
		t.Helper()
		response, err := http.Get("http://" + n.metrics + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
	create := func(n *node) int {
		t.Helper()
		request, err := http.NewRequest(http.MethodPost, "http://"+n.http+"/v1/groups", strings.NewReader(`{"name":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Authorization", "Bearer "+token(t, "alice"))
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode
	}
	mode := func(mode string) {
		t.Helper()
		conn, err := pgx.Connect(context.Background(), pg.url)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(context.Background()) }()
		for _, sql := range []string{"ALTER SYSTEM SET default_transaction_read_only = " + mode, "SELECT pg_reload_conf()"} {
			if _, err := conn.Exec(context.Background(), sql); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, n := range []*node{n, alone} {
		if status := create(n); status != http.StatusCreated {
			t.Fatalf("status %d", status)
		}
	}
	mode("on")
	waitfor.MustHold(t, "the database is said to be read-only, for which an API alone is not ready", func() bool {
		status, body := ready(n)
		aloneStatus, aloneBody := ready(alone)
		return status == 200 && strings.Contains(body, `"database":"read-only"`) && aloneStatus == 503 && strings.Contains(aloneBody, `"database":"read-only"`)
	})
	for _, n := range []*node{n, alone} {
		if status := create(n); status != http.StatusServiceUnavailable {
			t.Errorf("read-only: status %d, want 503", status)
		}
	}
	mode("off")
	waitfor.MustHold(t, "all is well again", func() bool {
		status, body := ready(alone)
		return status == 200 && strings.Contains(body, `"database":"ok"`) && create(n) == 201 && create(alone) == 201
	})
}
