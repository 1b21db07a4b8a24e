package postgres

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	tailLines   = 20                    // lines of the server's log that an error quotes
	pollEvery   = 20 * time.Millisecond // how often a starting server is asked
	orphansWait = 15 * time.Second      // for the children of a killed server to end
)

// errOrphans is returned when children of a killed server still hold its shared
// memory. They end by themselves within moments.
var errOrphans = errors.New("processes of a killed server are still ending")

// defaults are the server's settings. It is small, durable and private.
func defaults() map[string]string {
	return map[string]string{
		"listen_addresses":        "",
		"port":                    strconv.Itoa(port),
		"unix_socket_permissions": "0700",
		"fsync":                   "on",
		"synchronous_commit":      "on",
		"full_page_writes":        "on",
		"shared_buffers":          "128MB",
		"max_connections":         "100",
		"jit":                     "off",
		// The log comes to us over a pipe. It must not hold what people wrote:
		// neither DETAIL and CONTEXT, which quote rows, nor statements.
		"log_destination":         "stderr",
		"logging_collector":       "off",
		"log_line_prefix":         "",
		"lc_messages":             "C",
		"log_checkpoints":         "off",
		"log_error_verbosity":     "terse",
		"log_min_error_statement": "panic",
	}
}

// process is one run of the server.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when the postmaster has been reaped
	read   chan struct{} // closed when its log has been read to the end
	pipe   *os.File      // our end of its log

	mu   sync.Mutex // guards what follows
	wait error      // what Wait returned
	tail []string   // the last lines of its log
}

// spawn starts the server and returns when it answers.
func (s *Server) spawn(ctx context.Context, bins binaries, runAs owner, socket, relative string) (*process, error) {
	deadline := time.Now().Add(orphansWait)
	for {
		proc, err := s.spawnOnce(ctx, bins, runAs, socket, relative)
		if !errors.Is(err, errOrphans) || time.Now().After(deadline) {
			return proc, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * pollEvery):
		}
	}
}

func (s *Server) spawnOnce(ctx context.Context, bins binaries, runAs owner, socket, relative string) (*process, error) {
	settings := defaults()
	settings["unix_socket_directories"] = socket
	if relative != "" {
		settings["unix_socket_directories"] = relative
	}
	maps.Copy(settings, s.cfg.Settings)
	var args []string
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	proc, err := launch(bins.path("postgres"), args, runAs, s.data, s.log)
	if err != nil {
		return nil, err
	}
	defer s.tellWaiting(ctx, "the server to answer on "+socketPath(socket)+"; after a crash it recovers first, which takes its time")()
	began := time.Now()
	for {
		err := ask(ctx, socket)
		if err == nil {
			return proc, nil
		}
		limit := answerLimit
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == cannotConnectNow {
			limit = recoverLimit
		}
		if took := time.Since(began); took > limit {
			proc.kill(s.log)
			return nil, fmt.Errorf("the server does not answer after %v: %w", took.Round(time.Second), err)
		}
		select {
		case <-ctx.Done():
			proc.kill(s.log)
			return nil, fmt.Errorf("wait for the server: %w (%w)", ctx.Err(), err)
		case <-proc.exited:
			<-proc.read
			if err := proc.err(); strings.Contains(err.Error(), "still in use") {
				return nil, fmt.Errorf("%w: %w", errOrphans, err)
			}
			return nil, fmt.Errorf("start the server: %w", proc.err())
		case <-time.After(pollEvery):
		}
	}
}

// cannotConnectNow is PostgreSQL's code for a server that is starting or recovering.
const cannotConnectNow = "57P03"

// ask returns nil if the server at the socket answers.
func ask(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, tellAfter)
	defer cancel()
	conn, err := pgx.Connect(ctx, databaseURL(socket, "postgres"))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// launch starts a program of PostgreSQL's as the owner of the cluster in dir.
func launch(program string, args []string, runAs owner, dir string, log *slog.Logger) (*process, error) {
	cluster, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = cluster.Close() }() // the child has its own
	ours, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()

	// The server outlives any context: it is Stop that ends it.
	cmd := exec.CommandContext(context.Background(), program)
	if runAs.drop && runtime.GOOS == "linux" {
		// The data directory may lie below a folder that the owner cannot
		// enter (/root, a temporary folder of root's). By descriptor the
		// server gets there all the same; from then on it uses relative paths.
		cmd.ExtraFiles = []*os.File{cluster}
		dir = "/proc/self/fd/3"
	}
	cmd.Args = append(cmd.Args, append([]string{"-D", dir}, args...)...)
	cmd.Dir = "/" // ours may be closed to the owner
	// None of the PG… variables of whoever started us.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = theirs, theirs
	// A session of its own, so that Ctrl-C on our terminal reaches us alone and
	// the archiver can commit its last batch before Stop.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: runAs.credential()}
	if err := cmd.Start(); err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("run %s: %w", program, err)
	}
	proc := &process{cmd: cmd, exited: make(chan struct{}), read: make(chan struct{}), pipe: ours}
	go proc.readLog(log)
	go func() {
		err := cmd.Wait()
		proc.mu.Lock()
		proc.wait = err
		proc.mu.Unlock()
		close(proc.exited)
		// Orphans may hold the pipe; they do not matter any more.
		select {
		case <-proc.read:
		case <-time.After(time.Second):
		}
		_ = ours.Close()
	}()
	return proc, nil
}

// readLog hands the server's log on. What it says at level LOG and about errors
// of statements is of no interest unless one is looking for something: whoever
// sent the statement reports its error.
func (p *process) readLog(log *slog.Logger) {
	defer close(p.read)
	lines := bufio.NewScanner(p.pipe)
	for lines.Scan() {
		line := lines.Text()
		level := slog.LevelDebug
		switch {
		case strings.HasPrefix(line, "WARNING:"):
			level = slog.LevelWarn
		case strings.HasPrefix(line, "PANIC:"):
			level = slog.LevelError
		}
		log.Log(context.Background(), level, "postgres says", "line", line)
		p.mu.Lock()
		p.tail = append(p.tail, line)
		if len(p.tail) > tailLines {
			p.tail = slices.Delete(p.tail, 0, 1)
		}
		p.mu.Unlock()
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// err describes how the process ended, with the end of its log.
func (p *process) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	state := "exit status 0"
	if p.wait != nil {
		state = p.wait.Error()
	}
	return fmt.Errorf("%s: %s", state, strings.Join(p.tail, "; "))
}

// stop ends the server in fast mode, in immediate mode when ctx ends.
func (p *process) stop(ctx context.Context, log *slog.Logger) error {
	if err := p.signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the server: %w", err)
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		log.WarnContext(ctx, "private PostgreSQL does not stop in time: stopping it in immediate mode")
		p.kill(log)
	}
	<-p.exited
	return nil
}

// kill ends the server in immediate mode, then by force.
func (p *process) kill(log *slog.Logger) {
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGKILL} {
		if err := p.signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			log.Error("private PostgreSQL cannot be signalled", "signal", sig, "error", err)
		}
		select {
		case <-p.exited:
			return
		case <-time.After(10 * time.Second): // PostgreSQL itself gives its children 5 s
		}
	}
	<-p.exited
}

// initdb makes the cluster dir/data. It is made beside and renamed when it is
// whole, so that being killed meanwhile leaves nothing half made.
//
// With durable unset the files are left to the operating system to write.
func initdb(ctx context.Context, bins binaries, runAs owner, dir string, durable bool) error {
	unfinished := filepath.Join(dir, "data.unfinished")
	if err := os.RemoveAll(unfinished); err != nil {
		return fmt.Errorf("remove an unfinished cluster: %w", err)
	}
	if err := runAs.makeDir(unfinished); err != nil {
		return fmt.Errorf("make the cluster's folder: %w", err)
	}
	locale := "--no-locale"
	if runtime.GOOS == "linux" {
		locale = "--locale=C.UTF-8" // sorts by bytes, knows upper and lower case
	}
	args := []string{
		"--username=" + Role, "--encoding=UTF8", locale, "--data-checksums", "--no-instructions",
		// Whoever can open the socket is let in: that is the owner, and root.
		"--auth-local=trust", "--auth-host=reject",
	}
	if !durable {
		args = append(args, "--no-sync")
	}
	proc, err := launch(bins.path("initdb"), args, runAs, unfinished, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	select {
	case <-proc.exited:
		<-proc.read
	case <-ctx.Done():
		proc.kill(slog.New(slog.DiscardHandler))
		return fmt.Errorf("make the cluster: %w", ctx.Err())
	}
	if !proc.cmd.ProcessState.Success() {
		return fmt.Errorf("make the cluster: initdb: %w", proc.err())
	}
	if err := os.Rename(unfinished, filepath.Join(dir, "data")); err != nil {
		return fmt.Errorf("make the cluster: %w", err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// clusterMajor returns the major version that the cluster in dir was made by, ""
// if there is no cluster.
func clusterMajor(dir string) string {
	text, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(text))
}

// stopLeftover stops a server that runs on the cluster in dir.
func stopLeftover(ctx context.Context, dir string, log *slog.Logger) error {
	pid := postmaster(dir)
	if pid == 0 {
		return disownPidFile(dir)
	}
	// It is given a minute and this is said at once, so there is nothing to repeat.
	log.InfoContext(ctx, "stopping a PostgreSQL that was left running", "folder", dir, "pid", pid)
	began := time.Now()
	signals := []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT}
	for i, sig := range signals {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop the PostgreSQL (process %d) that was left running on %s: %w", pid, dir, err)
		}
		for time.Since(began) < time.Duration(i+1)*stopGrace {
			if postmaster(dir) != pid {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("stop the PostgreSQL (process %d) that was left running on %s: %w", pid, dir, ctx.Err())
			case <-time.After(pollEvery):
			}
		}
	}
	return fmt.Errorf("the PostgreSQL (process %d) that was left running on %s does not stop: end it by hand", pid, dir)
}

// disownPidFile makes a pid file that a dead server left behind harmless. Its
// number may be another living process's by now, and PostgreSQL would refuse to
// start because of that one; it ignores its parent's, so ours is put there. The
// file itself must stay: it names the shared memory by which PostgreSQL finds
// children of the dead server that still write.
func disownPidFile(dir string) error {
	if runtime.GOOS != "linux" {
		return nil // postmaster cannot be sure there
	}
	root, err := os.OpenRoot(dir) // see lockDir
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the cluster: %w", err)
	}
	defer func() { _ = root.Close() }()
	text, err := root.ReadFile("postmaster.pid")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	_, rest, found := strings.Cut(string(text), "\n")
	if err != nil || !found {
		return err
	}
	return root.WriteFile("postmaster.pid", fmt.Appendf(nil, "%d\n%s", os.Getpid(), rest), 0o600)
}

// postmaster returns the process that serves the cluster in dir, 0 if there is
// none. A pid file alone proves nothing: the process may be long gone and its
// number somebody else's.
func postmaster(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	lines := strings.Split(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid <= 1 || pid == os.Getpid() {
		return 0
	}
	if runtime.GOOS != "linux" {
		if len(lines) < 2 || lines[1] != dir || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return 0
		}
		return pid
	}
	// The server's working directory is its cluster. A zombie has none.
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	cwd, err := os.Stat(filepath.Join(proc, "cwd"))
	if err != nil {
		return 0
	}
	cluster, err := os.Stat(dir)
	if err != nil || !os.SameFile(cwd, cluster) {
		return 0
	}
	program, err := os.Readlink(filepath.Join(proc, "exe"))
	if err != nil || !strings.HasPrefix(filepath.Base(program), "postgres") {
		return 0
	}
	return pid
}

// StopLeftover stops a server that a killed process left running on the folder
// dir of a Server. It does nothing if there is none.
func StopLeftover(ctx context.Context, dir string) error {
	return stopLeftover(ctx, filepath.Join(dir, "data"), slog.New(slog.DiscardHandler))
}
