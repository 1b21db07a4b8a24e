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

// The shared server belongs to a keeper: this same test binary, started once more
// with keeperEnv set. In the folder home() there are
//
//	mutex   flocked while a process looks for the server, starts or ends it
//	users   flocked (shared) by every test process for as long as it lives
//	keeper  flocked by the keeper for as long as it lives
//	url     the server's address
//	pg-N    the server's files
//	private-N, made-H   those of private servers, and what they are copied from
//
// Locks are the kernel's: they go with their process, however it ends. Order:
// mutex before users before keeper.
const keeperEnv = "MYNAH_PGTEST_KEEPER"

// idlePoll is how often a keeper without users asks whether the run is over.
const idlePoll = 100 * time.Millisecond

func init() {
	if parent := os.Getenv(keeperEnv); parent != "" {
		os.Exit(keep(parent))
	}
}

// home is the folder that the test processes of this user share.
func home() string {
	return filepath.Join(os.TempDir(), "mynah-pgtest-"+strconv.Itoa(os.Geteuid()))
}

// shared returns the address of the shared server, which it starts if no process
// of this run has. The server stays until this process ends.
var shared = sync.OnceValues(func() (string, error) {
	address, err := join()
	if err != nil {
		return "", fmt.Errorf("start the shared PostgreSQL: %w", err)
	}
	return address, nil
})

func join() (string, error) {
	for {
		if err := os.Mkdir(home(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return "", err
		}
		if err := checkHome(); err != nil {
			return "", err
		}
		mutex, err := lock("mutex", syscall.LOCK_EX)
		if errors.Is(err, os.ErrNotExist) {
			continue // a keeper that ended has removed the folder: once more
		}
		if err != nil {
			return "", err
		}
		users, err := lock("users", syscall.LOCK_SH)
		if err != nil {
			return "", errors.Join(err, mutex.Close())
		}
		address, err := attach()
		if err != nil {
			return "", errors.Join(err, users.Close(), mutex.Close())
		}
		inUse = append(inUse, users)
		return address, mutex.Close()
	}
}

// inUse is the lock that says that this process uses the server. Nobody closes
// it but the end of the process.
var inUse []*os.File

// attach returns the address that the living keeper wrote, or starts a keeper.
func attach() (string, error) {
	keeper, err := lock("keeper", syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		address, err := os.ReadFile(filepath.Join(home(), "url"))
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C ends the tests; it cleans up after them
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return "", err
	}
	// It writes the address, or closes the pipe with what went wrong.
	answer, err := io.ReadAll(ours)
	if err != nil {
		return "", err
	}
	if address, ok := strings.CutPrefix(string(answer), "ok "); ok {
		return address, cmd.Process.Release() // it outlives us: there is nothing to wait for
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

// keep runs the shared server until nobody uses it and the go command that the
// run began with has ended. Between two packages of a run it may have no user.
func keep(goCommand string) int {
	answer := os.NewFile(3, "answer")
	syscall.CloseOnExec(3) // else the server has it too and our starter waits for ever
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
		users, err := lock("users", syscall.LOCK_EX) // waits until there are none
		if err != nil {
			break // somebody has removed the folder: end as well
		}
		mutex, err := lock("mutex", syscall.LOCK_EX|syscall.LOCK_NB)
		if err != nil || isGo(goCommand) {
			// Somebody is coming, or may come.
			if mutex != nil {
				_ = mutex.Close()
			}
			_ = users.Close()
			time.Sleep(idlePoll)
			continue
		}
		break // with both locks held: who comes now waits, and finds nothing
	}
	now, cancel := context.WithCancel(context.Background())
	cancel() // immediate mode: its files are not needed any more
	if err := server.Stop(now); err != nil {
		return 1
	}
	reap()
	if err := os.RemoveAll(home()); err != nil {
		return 1
	}
	return 0
}

func startShared() (*postgres.Server, error) {
	reap()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	server := postgres.New(postgres.Config{
		Dir:      filepath.Join(home(), "pg-"+strconv.Itoa(os.Getpid())),
		Settings: settings(),
	})
	if err := server.Start(ctx); err != nil {
		return nil, err
	}
	return server, os.WriteFile(filepath.Join(home(), "url"), []byte(server.URL()), 0o600)
}

// reap ends what killed processes left behind: a keeper's server, the private
// servers of tests.
func reap() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, pattern := range []string{"pg-*", "private-*/pg"} {
		dirs, _ := filepath.Glob(filepath.Join(home(), pattern)) // the pattern is a constant
		for _, dir := range dirs {
			_ = postgres.StopLeftover(ctx, dir) // nobody is there to be told
			_ = os.RemoveAll(dir)
		}
	}
}

// lock takes a lock in the folder. It fails with os.ErrNotExist if the folder was
// removed meanwhile, and so the lock with it.
func lock(name string, how int) (*os.File, error) {
	path := filepath.Join(home(), name)
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

// checkHome refuses a folder that somebody else has put there.
func checkHome() error {
	info, err := os.Lstat(home())
	if errors.Is(err, os.ErrNotExist) {
		return nil // being removed; lock tells
	}
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) != os.Geteuid() || !info.IsDir() || info.Mode().Perm() != 0o700 {
		return fmt.Errorf("%s is not a folder of this user's with mode 0700: remove it", home())
	}
	return nil
}
