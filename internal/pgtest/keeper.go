package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"mynah/internal/postgres"
)

// A keeper process runs the shared server. It is the same test binary, started
// again with keeperEnv set. The folder sharedDir() has the files
//
//	mutex   flocked while a process looks for the server, starts or ends it
//	users   flocked (shared) by every test process for as long as it lives
//	keeper  flocked by the keeper for as long as it lives
//	url     the server's address
//	pg-N    the server's files
//	private-N, made-H   those of private servers, and what they are copied from
//
// The kernel releases the locks when their process ends, however it ends. Lock
// order: mutex, users, keeper.
const keeperEnv = "MYNAH_PGTEST_KEEPER"

// idlePoll is how often a keeper without users checks whether the run is over.
const idlePoll = 100 * time.Millisecond

func init() {
	if parent := os.Getenv(keeperEnv); parent != "" {
		os.Exit(runKeeper(parent))
	}
}

// sharedDir returns the folder that all test processes of this user share.
func sharedDir() string {
	return filepath.Join(os.TempDir(), "mynah-pgtest-"+strconv.Itoa(os.Geteuid()))
}

// sharedAddress returns the address of the shared server, and starts the server
// if no process of this run has. The server runs at least until this process
// ends.
var sharedAddress = sync.OnceValues(func() (string, error) {
	address, err := acquireShared()
	if err != nil {
		return "", fmt.Errorf("start the shared PostgreSQL: %w", err)
	}
	return address, nil
})

func acquireShared() (string, error) {
	for {
		if err := os.Mkdir(sharedDir(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return "", err
		}
		if err := checkSharedDir(); err != nil {
			return "", err
		}
		mutex, err := lock("mutex", syscall.LOCK_EX)
		if errors.Is(err, os.ErrNotExist) {
			continue // a keeper that ended has removed the folder: try again
		}
		if err != nil {
			return "", err
		}
		users, err := lock("users", syscall.LOCK_SH)
		if err != nil {
			return "", errors.Join(err, mutex.Close())
		}
		address, err := findOrStartKeeper()
		if err != nil {
			return "", errors.Join(err, users.Close(), mutex.Close())
		}
		usersLocks = append(usersLocks, users)
		return address, mutex.Close()
	}
}

// usersLocks holds the lock on the file users, which marks the server as used
// by this process. It is released by the end of the process.
var usersLocks []*os.File

// findOrStartKeeper returns the address that a running keeper has written, or
// starts a keeper.
func findOrStartKeeper() (string, error) {
	keeper, err := lock("keeper", syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		address, err := os.ReadFile(filepath.Join(sharedDir(), "url"))
		return string(address), err
	}
	if err != nil {
		return "", err
	}
	if err := keeper.Close(); err != nil {
		return "", err
	}

	ours, theirs, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer func() { _ = ours.Close() }()
	program, err := os.Executable()
	if err != nil {
		return "", errors.Join(err, theirs.Close())
	}
	// It outlives this process, and any context.
	cmd := exec.CommandContext(context.Background(), program)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), keeperEnv+"="+goCommand())
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C ends the tests, but not the keeper, which cleans up after them
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return "", err
	}
	// The keeper writes the address or an error to the pipe, and closes it.
	answer, err := io.ReadAll(ours)
	if err != nil {
		return "", err
	}
	if address, ok := strings.CutPrefix(string(answer), "ok "); ok {
		return address, cmd.Process.Release() // the keeper outlives this process, so nobody waits for it
	}
	return "", errors.Join(fmt.Errorf("keeper: %s", answer), cmd.Wait())
}

// goCommand returns the process id of the go command that runs this test, "0" if
// it was started otherwise.
func goCommand() string {
	parent := strconv.Itoa(os.Getppid())
	if !isGo(parent) {
		return "0"
	}
	return parent
}

func isGo(pid string) bool {
	name, err := os.ReadFile("/proc/" + pid + "/comm")
	return err == nil && strings.TrimSpace(string(name)) == "go"
}

// runKeeper runs the shared server until no process uses it and the go command
// of the run has ended. Between two packages of a run the server may have no
// user.
func runKeeper(goCommand string) int {
	answer := os.NewFile(3, "answer")
	syscall.CloseOnExec(3) // otherwise the server inherits the pipe, and the process that started us waits forever
	alive, err := lock("keeper", syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil {
		fmt.Fprint(answer, err)
		return 1
	}
	defer func() { _ = alive.Close() }()
	server, err := startShared()
	if err != nil {
		fmt.Fprint(answer, err)
		return 1
	}
	fmt.Fprint(answer, "ok ", server.URL())
	if err := answer.Close(); err != nil {
		return 1
	}
	for {
		users, err := lock("users", syscall.LOCK_EX) // waits until there are no users
		if err != nil {
			break // another process has removed the folder: end too
		}
		mutex, err := lock("mutex", syscall.LOCK_EX|syscall.LOCK_NB)
		if err != nil || isGo(goCommand) {
			// A new user has come, or the run may start one.
			if mutex != nil {
				_ = mutex.Close()
			}
			_ = users.Close()
			time.Sleep(idlePoll)
			continue
		}
		break // with both locks held, so that a new process waits, and then finds no folder
	}
	now, cancel := context.WithCancel(context.Background())
	cancel() // immediate mode, since its files are removed
	if err := server.Stop(now); err != nil {
		return 1
	}
	stopLeftovers()
	if err := os.RemoveAll(sharedDir()); err != nil {
		return 1
	}
	return 0
}

func startShared() (*postgres.Server, error) {
	stopLeftovers()
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	server := postgres.New(postgres.Config{
		Dir:      filepath.Join(sharedDir(), "pg-"+strconv.Itoa(os.Getpid())),
		Settings: settings(),
	})
	if err := server.Start(ctx); err != nil {
		return nil, err
	}
	return server, os.WriteFile(filepath.Join(sharedDir(), "url"), []byte(server.URL()), 0o600)
}

// stopLeftovers stops the servers that killed processes left behind: that of a
// keeper, and private ones of tests.
func stopLeftovers() {
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	for _, pattern := range []string{"pg-*", "private-*/pg"} {
		dirs, _ := filepath.Glob(filepath.Join(sharedDir(), pattern)) // the pattern is a constant
		for _, dir := range dirs {
			_ = postgres.StopLeftover(ctx, dir) // there is nobody to report it to
			_ = os.RemoveAll(dir)
		}
	}
}

// lock locks a file in sharedDir. It fails with os.ErrNotExist if the folder, and
// so the lock, was removed meanwhile.
func lock(name string, how int) (*os.File, error) {
	path := filepath.Join(sharedDir(), name)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(file.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	held, err1 := file.Stat()
	there, err2 := os.Stat(path)
	if err1 != nil || err2 != nil || !os.SameFile(held, there) {
		return nil, errors.Join(os.ErrNotExist, file.Close())
	}
	return file, nil
}

// checkSharedDir returns an error if another user has made the folder.
func checkSharedDir() error {
	info, err := os.Lstat(sharedDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil // being removed, which lock reports
	}
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) != os.Geteuid() || !info.IsDir() || info.Mode().Perm() != 0o700 {
		return fmt.Errorf("%s is not a folder of this user's with mode 0700: remove it", sharedDir())
	}
	return nil
}
