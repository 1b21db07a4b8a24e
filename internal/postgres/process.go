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
	tailLines     = 20                    // lines of the server's log that an error quotes
	pollInterval  = 20 * time.Millisecond // how often a starting server is asked
	orphanTimeout = 15 * time.Second      // time for the children of a killed server to end
)

// errOrphans is returned when children of a killed server still hold its shared
// memory. They end by themselves within moments.
var errOrphans = errors.New("processes of a killed server are still ending")

// defaults are the server's settings. It is small, durable and private.
func defaults() map[string]string {
	return map[string]string{
		"listen_addresses":        "",
		"port":                    strconv.Itoa(socketPort),
		"unix_socket_permissions": "0700",
		"fsync":                   "on",
		"synchronous_commit":      "on",
		"full_page_writes":        "on",
		"shared_buffers":          "128MB",
		"max_connections":         "100",
		"jit":                     "off",
		// The server writes its log to our pipe. It must not contain users'
		// data: neither DETAIL and CONTEXT, which quote rows, nor statements.
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
	cmd     *exec.Cmd
	exited  chan struct{} // closed when the postmaster has ended and been waited for
	logRead chan struct{} // closed when its log has been read to the end
	pipe    *os.File      // our end of its log

	mu      sync.Mutex // guards what follows
	waitErr error      // what Wait returned
	tail    []string   // the last lines of its log
}

// spawn starts the server and returns when it answers.
func (s *Server) spawn(ctx context.Context, bins binaries, runAs owner, socket, relative string) (*process, error) {
	deadline := time.Now().Add(orphanTimeout)
	for {
		proc, err := s.spawnOnce(ctx, bins, runAs, socket, relative)
		if !errors.Is(err, errOrphans) || time.Now().After(deadline) {
			return proc, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * pollInterval):
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
	defer s.logWhileWaiting(ctx, "the server to answer on "+socketPath(socket)+"; after a crash it recovers first, which takes its time")()
	began := time.Now()
	for {
		err := ping(ctx, socket)
		if err == nil {
			return proc, nil
		}
		limit := answerTimeout
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == codeStarting {
			limit = recoveryTimeout
		}
		if took := time.Since(began); took > limit {
			return nil, errors.Join(fmt.Errorf("the server does not answer after %v: %w", took.Round(time.Second), err), proc.kill(s.log))
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for the server: %w (%w)", ctx.Err(), err), proc.kill(s.log))
		case <-proc.exited:
			<-proc.logRead
			if err := proc.err(); strings.Contains(err.Error(), "still in use") {
				return nil, fmt.Errorf("%w: %w", errOrphans, err)
			}
			return nil, fmt.Errorf("start the server: %w", proc.err())
		case <-time.After(pollInterval):
		}
	}
}

// codeStarting is PostgreSQL's code for a server that is starting or recovering.
const codeStarting = "57P03"

// ping returns nil if the server at the socket answers.
func ping(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, firstWaitLog)
	defer cancel()
	conn, err := pgx.Connect(ctx, databaseURL(socket, "postgres"))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// launch starts a program of PostgreSQL as the owner of the cluster in dir.
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

	// The server outlives any context. Only Stop ends it.
	cmd := exec.CommandContext(context.Background(), program)
	if runAs.switchUser && runtime.GOOS == "linux" {
		// The data directory may be below a folder that the owner cannot enter
		// (/root, a temporary folder of root). The server starts in it through
		// a file descriptor, and uses relative paths from then on.
		cmd.ExtraFiles = []*os.File{cluster}
		dir = "/proc/self/fd/3"
	}
	cmd.Args = append(cmd.Args, append([]string{"-D", dir}, args...)...)
	cmd.Dir = "/" // the owner may not be allowed to enter our working directory
	// Without the PG… variables of our environment.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = theirs, theirs
	// The server gets a terminal session of its own. So Ctrl-C reaches only
	// Mynah, and the archiver can commit its last batch before Stop.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: runAs.credential()}
	if err := cmd.Start(); err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("run %s: %w", program, err)
	}
	proc := &process{cmd: cmd, exited: make(chan struct{}), logRead: make(chan struct{}), pipe: ours}
	go proc.readLog(log)
	go func() {
		err := cmd.Wait()
		proc.mu.Lock()
		proc.waitErr = err
		proc.mu.Unlock()
		close(proc.exited)
		// Orphaned children may keep the pipe open; their output does not
		// matter.
		select {
		case <-proc.logRead:
		case <-time.After(time.Second):
		}
		_ = ours.Close()
	}()
	return proc, nil
}

// readLog copies the server's log to ours. Lines of level LOG and errors of
// statements are logged at level debug, since the client of a statement reports
// its error.
func (p *process) readLog(log *slog.Logger) {
	defer close(p.logRead)
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

// err returns how the process ended, with the last lines of its log.
func (p *process) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	state := "exit status 0"
	if p.waitErr != nil {
		state = p.waitErr.Error()
	}
	return fmt.Errorf("%s: %s", state, strings.Join(p.tail, "; "))
}

// stop ends the server in fast mode, in immediate mode when ctx ends. It returns an error
// if the server is there in spite of that.
func (p *process) stop(ctx context.Context, log *slog.Logger) error {
	if err := p.signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the server: %w", err)
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		log.WarnContext(ctx, "private PostgreSQL does not stop in time: stopping it in immediate mode")
		if err := p.kill(log); err != nil {
			return fmt.Errorf("stop the server: %w (%w)", err, ctx.Err())
		}
	}
	return nil
}

// kill ends the server in immediate mode, then by force. It gives up on a process that the
// kernel does not end, as one that waits for a disk that hangs.
func (p *process) kill(log *slog.Logger) error {
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGKILL} {
		if err := p.signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			log.Error("private PostgreSQL cannot be signalled", "signal", sig, "error", err)
		}
		select {
		case <-p.exited:
			return nil
		case <-time.After(10 * time.Second): // PostgreSQL itself gives its children 5 s
		}
	}
	return fmt.Errorf("gave up on process %d, which does not end although it was killed", p.pid())
}

// initdb makes the cluster dir/data. It is made under another name and renamed
// when it is complete, so that a kill leaves no incomplete cluster.
//
// Unless durable is set, the files are not synced.
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
		locale = "--locale=C.UTF-8" // byte order, with upper and lower case of all of Unicode
	}
	args := []string{
		"--username=" + Role, "--encoding=UTF8", locale, "--data-checksums", "--no-instructions",
		// Every user who can open the socket may connect: the owner and root.
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
		<-proc.logRead
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("make the cluster: %w", ctx.Err()), proc.kill(slog.New(slog.DiscardHandler)))
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

// clusterMajor returns the major version of the cluster in dir, "" if there is
// no cluster.
func clusterMajor(dir string) string {
	text, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(text))
}

// stopLeftover stops a server that runs on the cluster in dir.
func stopLeftover(ctx context.Context, dir string, log *slog.Logger) error {
	pid := postmasterPid(dir)
	if pid == 0 {
		return neutralizePidFile(dir)
	}
	// The log has this line at once, and the wait takes at most a minute, so the
	// line is not repeated.
	log.InfoContext(ctx, "stopping a PostgreSQL that was left running", "folder", dir, "pid", pid)
	began := time.Now()
	signals := []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT}
	for i, sig := range signals {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop the PostgreSQL (process %d) that was left running on %s: %w", pid, dir, err)
		}
		for time.Since(began) < time.Duration(i+1)*stopTimeout {
			if postmasterPid(dir) != pid {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("stop the PostgreSQL (process %d) that was left running on %s: %w", pid, dir, ctx.Err())
			case <-time.After(pollInterval):
			}
		}
	}
	return fmt.Errorf("the PostgreSQL (process %d) that was left running on %s does not stop: end it by hand", pid, dir)
}

// neutralizePidFile makes the pid file of a dead server harmless. Its pid may
// belong to another process by now, and PostgreSQL would refuse to start
// because of that process. PostgreSQL ignores the pid of its parent, so the
// file gets ours. The file must stay: it names the shared memory by which
// PostgreSQL finds children of the dead server that still write.
func neutralizePidFile(dir string) error {
	if runtime.GOOS != "linux" {
		return nil // postmasterPid needs /proc to be certain
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

// postmasterPid returns the pid of the server of the cluster in dir, 0 if
// there is none. The pid file alone is no proof: the process may have ended,
// and its pid may belong to another one.
func postmasterPid(dir string) int {
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
