package postgres_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mynah/internal/leak"
	"mynah/internal/postgres"
	"mynah/internal/waitfor"

	"github.com/jackc/pgx/v5"
)

// childEnv makes this test binary a process that runs a server on the named
// folder until it is killed.
const childEnv = "MYNAH_POSTGRES_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		server := postgres.New(config(dir))
		if err := server.Start(context.Background()); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready")
		select {}
	}
	leak.Main(m)
}

func config(dir string) postgres.Config {
	return postgres.Config{Dir: dir, Settings: map[string]string{"shared_buffers": "16MB", "fsync": "off"}}
}

func mustStart(t *testing.T, server *postgres.Server) {
	t.Helper()
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustStop(t, server) })
}

func mustStop(t *testing.T, server *postgres.Server) {
	t.Helper()
	if err := server.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

func query[T any](ctx context.Context, address, sql string) (result T, err error) {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return result, err
	}
	defer func() { _ = conn.Close(ctx) }()
	err = conn.QueryRow(ctx, sql).Scan(&result)
	return result, err
}

func mustQuery[T any](t *testing.T, address, sql string) T {
	t.Helper()
	result, err := query[T](t.Context(), address, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return result
}

// Checks the life of a server: it is durable, listens on a Unix socket only, does
// not run as root, and keeps its data across Stop and Start. Its folder may be
// below one that only root may enter, such as t.TempDir.
func TestStartStopStart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "postgres")
	server := postgres.New(postgres.Config{Dir: dir})
	mustStart(t, server)
	if err := server.Start(t.Context()); err != nil {
		t.Errorf("start again: %v", err)
	}
	for setting, want := range map[string]string{"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "listen_addresses": "", "data_checksums": "on"} {
		if got := mustQuery[string](t, server.URL(), "SHOW "+setting); got != want {
			t.Errorf("%s = %q, want %q", setting, got, want)
		}
	}
	if os.Geteuid() == 0 {
		info, err := os.Stat(filepath.Join(dir, "data"))
		if err != nil {
			t.Fatal(err)
		}
		if info.Sys().(*syscall.Stat_t).Uid == 0 || info.Mode().Perm() != 0o700 {
			t.Errorf("the cluster belongs to root or is open: %v", info.Mode())
		}
	}
	if _, err := query[string](t.Context(), server.URL(), "CREATE TABLE kept AS SELECT 7 AS n"); !errors.Is(err, pgx.ErrNoRows) {
		t.Fatalf("create a table: %v", err)
	}
	mustStop(t, server)
	mustStop(t, server)
	if _, err := query[int](t.Context(), server.URL(), "SELECT 1"); err == nil {
		t.Error("the server answers after Stop")
	}
	mustStart(t, server)
	if n := mustQuery[int](t, server.URL(), "SELECT n FROM kept"); n != 7 {
		t.Errorf("n = %d after a restart", n)
	}
}

// Guards against two servers, or two owners of one server, on one folder.
func TestFolderInUse(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "postgres")
	server := postgres.New(config(dir))
	mustStart(t, server)
	if err := postgres.New(config(dir)).Start(t.Context()); !errors.Is(err, postgres.ErrInUse) {
		t.Errorf("second start: %v, want ErrInUse", err)
	}
	mustQuery[int](t, server.URL(), "SELECT 1")
}

// Guards against a server that is not restarted after it died.
func TestRestartsServerThatDied(t *testing.T) {
	t.Parallel()
	server := postgres.New(config(filepath.Join(t.TempDir(), "postgres")))
	mustStart(t, server)
	for range 2 {
		exited := server.Exited()
		if err := server.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-exited
		waitfor.MustSucceed(t, "another server answers", func() error {
			select {
			case <-server.Exited():
				return errors.New("none is running")
			default:
			}
			_, err := query[int](t.Context(), server.URL(), "SELECT 1")
			return err
		})
	}
}

// Guards against a postmaster that a killed process of Mynah left behind: it
// would block the next start forever, or there would be two on the folder. The
// path is too long for a socket, which must then lie elsewhere.
func TestLeftoverIsStopped(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 25), "postgres")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), program)
	child.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("child says %q, %v", line, err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed, as we know
	left := pidIn(t, dir)

	server := postgres.New(config(dir))
	mustStart(t, server)
	if now := pidIn(t, dir); now == left {
		t.Errorf("process %s still serves the folder", left)
	}
	mustQuery[int](t, server.URL(), "SELECT 1")
}

// Guards against a pid file whose number has become that of another process of
// the same user: PostgreSQL would take that process for a running server, and
// Mynah must not signal it.
func TestStalePidFile(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "postgres")
	server := postgres.New(config(dir))
	mustStart(t, server)
	file := filepath.Join(dir, "data", "postmaster.pid")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	exited := server.Exited()
	mustStop(t, server)
	<-exited
	info, err := os.Stat(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)

	bystander := exec.CommandContext(t.Context(), "sleep", "600")
	if os.Geteuid() == 0 {
		bystander.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}}
	}
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bystander.Process.Kill(); err != nil {
			t.Errorf("the bystander did not survive: %v", err)
		}
		_ = bystander.Wait() // killed, as we know
	})
	_, rest, _ := strings.Cut(string(text), "\n")
	if err := os.WriteFile(file, fmt.Appendf(nil, "%d\n%s", bystander.Process.Pid, rest), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(file, int(stat.Uid), int(stat.Gid)); err != nil {
		t.Fatal(err)
	}
	mustStart(t, server)
	mustQuery[int](t, server.URL(), "SELECT 1")
}

func TestNotInstalled(t *testing.T) {
	t.Parallel()
	cfg := config(filepath.Join(t.TempDir(), "postgres"))
	cfg.BinDir = t.TempDir()
	err := postgres.New(cfg).Start(t.Context())
	if !errors.Is(err, postgres.ErrNotInstalled) || !strings.Contains(err.Error(), "apt-get install postgresql") || !strings.Contains(err.Error(), "--database-url") {
		t.Errorf("got %v, want what to install and the alternative", err)
	}
}

// Guards against a start that hides what PostgreSQL said.
func TestRefusedSettingIsQuoted(t *testing.T) {
	t.Parallel()
	cfg := config(filepath.Join(t.TempDir(), "postgres"))
	cfg.Settings["max_connections"] = "many"
	if err := postgres.New(cfg).Start(t.Context()); err == nil || !strings.Contains(err.Error(), `"max_connections"`) {
		t.Errorf("got %v, want PostgreSQL's own words", err)
	}
}

func pidIn(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, _, _ := strings.Cut(string(text), "\n")
	return pid
}

// Guards against folder names that need quoting for a client, the server or Mynah. With
// a space in the name a start never returned.
func TestNamesOfFolders(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"two words", "it's", "100%25", "数据 données", "a+b&c=d", `"quoted" \ $HOME`, "a,b", "-D #?;*",
		strings.Repeat("长", 30), // 90 bytes in 30 characters: with the rest too long for a socket
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "x", name, "postgres") // t.TempDir removes such characters
			server := postgres.New(config(dir))
			mustStart(t, server)
			if n := mustQuery[int](t, server.URL(), "SELECT 1"); n != 1 {
				t.Errorf("got %d", n)
			}
			// By PostgreSQL's own client as well.
			psql, err := exec.LookPath("psql")
			if err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), psql, server.URL(), "-Atc", "SELECT current_database()").CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != postgres.Database {
				t.Errorf("psql %s: %v, %s", server.URL(), err, out)
			}
			if _, err := os.Stat(filepath.Join(dir, "data", "PG_VERSION")); err != nil {
				t.Errorf("the cluster is elsewhere: %v", err)
			}
			mustStop(t, server)
			mustStart(t, server)
		})
	}
}

// Guards against a start that waits without limit and without a log line for a server
// that does not answer.
func TestSilentServerIsTold(t *testing.T) {
	t.Parallel()
	// A program that runs and never opens a socket.
	bin := t.TempDir()
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{
		"initdb":   "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = -D ] && dir=$2; shift; done\necho 15 >$dir/PG_VERSION\n",
		"postgres": "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'postgres (PostgreSQL) 15.0'; exit; }\nexec sleep 1000\n",
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for parent := filepath.Dir(bin); parent != os.TempDir() && parent != "/"; parent = filepath.Dir(parent) {
		if err := os.Chmod(parent, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	said := make(chan string, 100)
	cfg := config(filepath.Join(t.TempDir(), "postgres"))
	cfg.BinDir, cfg.Logger = bin, slog.New(slog.NewTextHandler(lines(said), nil))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- postgres.New(cfg).Start(ctx) }()
	for {
		select {
		case line := <-said:
			if !strings.Contains(line, "still waiting") {
				continue
			}
			if !strings.Contains(line, "the server to answer on") || !strings.Contains(line, ".s.PGSQL.5432") {
				t.Errorf("it says %q, want what it waits for", line)
			}
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
			return
		case err := <-ended:
			t.Fatalf("ended with %v", err)
		case <-time.After(30 * time.Second):
			t.Fatal("it waits without a word")
		}
	}
}

// lines is a writer that sends each written line to a channel.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}
