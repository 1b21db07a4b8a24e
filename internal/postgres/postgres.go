// Package postgres runs a private PostgreSQL server: for `mynah serve` without a
// database address, and for the tests.
//
// The cluster lives under one folder and is durable (fsync and synchronous
// commit are on). It listens on a Unix socket only, in a folder that nobody but
// its owner (and root) may enter, so no password is needed. Started by root, the
// server runs as an ordinary user, and the folder may lie below one that this
// user cannot enter, such as /root. There is never more than one server on a
// folder: a lock excludes a second process of Mynah, and a server that a killed
// process left behind is stopped before a new one starts. A server that dies is
// restarted. Make a Server with New; Start, URL and Stop are all that a caller
// needs.
package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// Role is the database role, a superuser of the private server.
	Role = "mynah"
	// Database is the database that Start creates.
	Database = "mynah"

	socketPort    = 5432 // names the socket; nothing listens on it
	maxSocketPath = 107  // bytes of a Unix socket's path, on Linux
	stopTimeout   = 30 * time.Second

	// How long each step of a start may take. Recovery replays what was written since the
	// last checkpoint, which takes long on a slow disk. After a time-out it would begin
	// again, so its limit is high.
	initdbTimeout   = 10 * time.Minute
	answerTimeout   = time.Minute
	recoveryTimeout = 2 * time.Hour
	createTimeout   = 5 * time.Minute
	// A step that takes longer than firstWaitLog is logged, and again every
	// waitLogInterval.
	firstWaitLog    = 5 * time.Second
	waitLogInterval = 30 * time.Second

	backoffMin = 250 * time.Millisecond
	backoffMax = 15 * time.Second
)

// ErrInUse is returned by Start when another process runs the server of the
// folder.
var ErrInUse = errors.New("the database folder is in use by another process")

// Config says where and how a Server runs.
type Config struct {
	// Dir is the folder of the server: its cluster is Dir/data. It is made if
	// it does not exist; so are its parents.
	Dir string
	// BinDir is the folder of the server's programs. Empty means PATH, then
	// pg_config's folder, then Debian's folders.
	BinDir string
	// Settings are put over the defaults, as in postgresql.conf.
	Settings map[string]string
	// NoRestart disables the restart of a server that died.
	NoRestart bool
	// Logger gets the server's log. Nil discards it.
	Logger *slog.Logger
}

// Server is a private PostgreSQL server.
type Server struct {
	cfg  Config
	log  *slog.Logger
	dir  string // absolute
	data string // the cluster

	// turn is full while Start or Stop runs. Who holds it may lock mu.
	turn chan struct{}

	// mu guards what follows.
	mu             sync.Mutex
	socket         string        // the folder of the socket
	proc           *process      // the running server, nil if there is none
	lock           *os.File      // held from Start to Stop
	stopRequested  chan struct{} // closed by Stop; nil if not started
	supervisorDone chan struct{} // closed when the supervisor has ended
}

// New returns a server that is not started.
func New(cfg Config) *Server {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, log: log, turn: make(chan struct{}, 1)}
}

// takeTurn waits until neither Start nor Stop runs, at most until ctx ends.
func (s *Server) takeTurn(ctx context.Context) (done func(), err error) {
	done = func() { <-s.turn }
	select {
	case s.turn <- struct{}{}:
		return done, nil
	default:
	}
	select {
	case s.turn <- struct{}{}:
		return done, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Start makes the cluster if there is none, starts the server and returns when
// it answers. It does nothing if the server was started before. From then on a
// server that dies is restarted, until Stop.
//
// Errors: ErrNotInstalled, ErrInUse, or what PostgreSQL says.
func (s *Server) Start(ctx context.Context) error {
	done, err := s.takeTurn(ctx)
	if err != nil {
		return fmt.Errorf("private PostgreSQL: gave up on waiting for another start or stop: %w", err)
	}
	defer done()
	s.mu.Lock()
	started := s.stopRequested != nil
	s.mu.Unlock()
	if started {
		return nil
	}
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("private PostgreSQL: %w", err)
	}
	return nil
}

func (s *Server) start(ctx context.Context) (err error) {
	dir, err := filepath.Abs(s.cfg.Dir)
	if err != nil {
		return err
	}
	s.dir, s.data = dir, filepath.Join(dir, "data")
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	runAs, err := clusterOwner(dir)
	if err != nil {
		return err
	}
	if err := runAs.makeDir(dir); err != nil {
		return fmt.Errorf("make the database folder: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = lock.Close() // closing releases the lock; nothing was written
		}
	}()

	// This process has the lock, so a server on the folder was left behind.
	if err := stopLeftover(ctx, s.data, s.log); err != nil {
		return err
	}
	bins, err := findBinaries(ctx, s.cfg.BinDir, clusterMajor(s.data))
	if err != nil {
		return err
	}
	if clusterMajor(s.data) == "" {
		s.log.InfoContext(ctx, "making a private PostgreSQL", "folder", s.data, "version", bins.major)
		told := s.logWhileWaiting(ctx, "initdb to make the cluster")
		limited, cancel := context.WithTimeout(ctx, initdbTimeout)
		err := initdb(limited, bins, runAs, dir, s.cfg.Settings["fsync"] != "off")
		cancel()
		told()
		if err != nil {
			return err
		}
	}
	socket, relative, err := s.makeSocketDir(runAs)
	if err != nil {
		return fmt.Errorf("make a folder for the database's socket: %w", err)
	}
	spawn := func(ctx context.Context) (*process, error) {
		return s.spawn(ctx, bins, runAs, socket, relative)
	}
	proc, err := spawn(ctx)
	if err != nil {
		return err
	}
	if err := s.createDatabase(ctx, socket); err != nil {
		return errors.Join(err, proc.kill(s.log))
	}
	s.mu.Lock()
	s.proc, s.socket, s.lock = proc, socket, lock
	s.stopRequested, s.supervisorDone = make(chan struct{}), make(chan struct{})
	go s.supervise(context.WithoutCancel(ctx), proc, spawn, s.stopRequested, s.supervisorDone)
	s.mu.Unlock()
	s.log.InfoContext(ctx, "private PostgreSQL is running", "folder", s.data, "version", bins.major, "pid", proc.pid(), "url", s.URL())
	return nil
}

// Stop stops the server (PostgreSQL's fast mode: open transactions are rolled
// back, everything committed is on disk) and releases the folder. If ctx ends
// first the server is stopped in immediate mode, which recovers at the next
// start. If ctx ends while Stop waits for a Start, another Stop or a restart, the error
// says so, and Stop is to be called again. It does nothing if the server is not started.
func (s *Server) Stop(ctx context.Context) error {
	done, err := s.takeTurn(ctx)
	if err != nil {
		return fmt.Errorf("private PostgreSQL: stop: gave up on waiting for another start or stop; the server may be running: %w", err)
	}
	defer done()
	s.mu.Lock()
	stop, idle := s.stopRequested, s.supervisorDone
	s.mu.Unlock()
	if stop == nil {
		return nil
	}
	select {
	case <-stop: // by a Stop that gave up
	default:
		close(stop)
	}
	select {
	case <-idle: // no restart can come in between now
	case <-ctx.Done():
		if !s.restarting() {
			<-idle // which comes at once
			break
		}
		// It stays requested: the next Stop finds the server, and Start makes no second one.
		return fmt.Errorf("private PostgreSQL: stop: gave up on a restart that is under way; the server may be running, stop again: %w", ctx.Err())
	}
	s.mu.Lock()
	proc, lock := s.proc, s.lock
	s.mu.Unlock()
	if err := proc.stop(ctx, s.log); err != nil {
		return fmt.Errorf("private PostgreSQL: %w", err) // the folder stays locked; the next Stop finds the server
	}
	s.mu.Lock()
	s.proc, s.lock, s.stopRequested = nil, nil, nil
	s.mu.Unlock()
	if socket := s.socketDir(); socket != filepath.Join(s.dir, "run") {
		_ = os.Remove(socket) // the folder is outside the server's; it is harmless if it stays
	}
	return lock.Close()
}

// restarting reports whether the server has died and is being started again.
func (s *Server) restarting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.proc.exited:
		return !s.cfg.NoRestart
	default:
		return false
	}
}

// URL returns the address of database mynah, for pgx and psql alike.
func (s *Server) URL() string { return s.DatabaseURL(Database) }

// DatabaseURL returns the address of a database on the server.
func (s *Server) DatabaseURL(name string) string { return databaseURL(s.socketDir(), name) }

func (s *Server) socketDir() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.socket
}

// Signal sends a signal to the running server, such as SIGQUIT for
// PostgreSQL's immediate shutdown. The channel of Exited is closed when the
// server has ended.
func (s *Server) Signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return errors.New("private PostgreSQL: signal: the server is not running")
	}
	return s.proc.signal(sig)
}

// Exited returns a channel that is closed when the server that runs now has
// ended. It is closed already if none runs.
func (s *Server) Exited() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	return s.proc.exited
}

// supervise restarts the server when it dies, with growing pauses.
func (s *Server) supervise(ctx context.Context, proc *process, spawn func(context.Context) (*process, error), stop, idle chan struct{}) {
	defer close(idle)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	pause := backoffMin
	for {
		began := time.Now()
		select {
		case <-stop:
			return
		case <-proc.exited:
		}
		s.log.WarnContext(ctx, "private PostgreSQL ended", "error", proc.err(), "restart", !s.cfg.NoRestart)
		if s.cfg.NoRestart {
			<-stop
			return
		}
		if time.Since(began) > time.Minute {
			pause = backoffMin
		}
		for {
			select {
			case <-stop:
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, backoffMax)
			next, err := spawn(ctx)
			if err == nil {
				proc = next
				break
			}
			if ctx.Err() == nil {
				s.log.ErrorContext(ctx, "private PostgreSQL does not start; trying again", "error", err, "pause", pause)
			}
		}
		s.mu.Lock()
		s.proc = proc
		s.mu.Unlock()
		s.log.InfoContext(ctx, "private PostgreSQL is running again", "pid", proc.pid())
	}
}

// makeSocketDir makes the folder of the socket and returns it. It is in the
// server's folder, unless the path is too long for a socket or contains a comma,
// which separates hosts in an address. relative is its path from the cluster, if
// it is in the server's folder.
func (s *Server) makeSocketDir(runAs owner) (dir, relative string, err error) {
	dir = filepath.Join(s.dir, "run")
	if len(socketPath(dir)) <= maxSocketPath && !strings.Contains(dir, ",") {
		return dir, filepath.Join("..", "run"), runAs.makeDir(dir)
	}
	sum := sha256.Sum256([]byte(s.dir))
	dir = "/tmp/mynah-" + hex.EncodeToString(sum[:6])
	if err := runAs.makeDir(dir); err == nil {
		return dir, "", nil
	}
	// Another user has made a folder of that name.
	dir, err = os.MkdirTemp("/tmp", "mynah-")
	if err != nil {
		return "", "", err
	}
	return dir, "", runAs.makeDir(dir)
}

func socketPath(dir string) string { return filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(socketPort)) }

func databaseURL(socket, name string) string {
	// To PostgreSQL's clients a plus sign is a plus sign, not a space.
	host := strings.ReplaceAll(url.QueryEscape(socket), "+", "%20")
	u := url.URL{Scheme: "postgres", User: url.User(Role), Path: "/" + name, RawQuery: "host=" + host}
	return u.String()
}

func (s *Server) createDatabase(ctx context.Context, socket string) error {
	defer s.logWhileWaiting(ctx, "database "+Database+" to be made")()
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, databaseURL(socket, "postgres"))
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // nothing depends on this error
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, Database).Scan(&exists); err != nil {
		return fmt.Errorf("look for database %s: %w", Database, err)
	}
	if exists {
		return nil
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+Database); err != nil {
		return fmt.Errorf("create database %s: %w", Database, err)
	}
	return nil
}

// logWhileWaiting logs what a start waits for, if the wait is long, until stop
// is called.
func (s *Server) logWhileWaiting(ctx context.Context, what string) (stop func()) {
	began, done := time.Now(), make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		for pause := firstWaitLog; ; pause = waitLogInterval {
			select {
			case <-done:
				return
			case <-time.After(pause):
			}
			s.log.WarnContext(ctx, "private PostgreSQL: still waiting", "for", what, "since", time.Since(began).Round(time.Second))
		}
	})
	return func() {
		close(done)
		telling.Wait()
	}
}

// lockDir locks the folder for this process. The kernel releases the lock when
// the process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	// Through os.Root: the folder belongs to the server's user, whose symbolic
	// links must not lead root elsewhere.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the database folder: %w", err)
	}
	defer func() { _ = root.Close() }()
	file, err := root.OpenFile("lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the database folder's lock: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(file, 32))
		_ = file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w (%s, process %s): stop it, or choose another --data-dir", ErrInUse, dir, holder)
		}
		return nil, fmt.Errorf("lock the database folder %s: %w", dir, err)
	}
	pid := strconv.Itoa(os.Getpid())
	if err := errors.Join(file.Truncate(0), writeAt(file, pid)); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("write the database folder's lock: %w", err)
	}
	return file, nil
}

func writeAt(file *os.File, text string) error {
	_, err := file.WriteAt([]byte(text), 0)
	return err
}
