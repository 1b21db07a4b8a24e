// Package testbed starts the real programs that bench and torture work against:
// Mynah's binary, Mosquitto and PostgreSQL. Each runs as a process of its own,
// which can be killed, stopped and measured. The package uses only what every
// user has: flags, ports, signals and /proc. Each program gets SIGKILL when the
// process that started it ends.
package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Proc is a running program.
type Proc struct {
	Name string
	Pid  int
	Log  string // path of the file that holds its standard output and error

	done chan struct{}

	mu  sync.Mutex // guards err
	err error
}

// ProcSpec says how to start a program.
type ProcSpec struct {
	Name string // for messages and the log file's name
	Args []string
	Env  []string // added to the environment
	Dir  string   // where the log file goes
	User *Account // nil for the current user
}

// Start starts the program. Its output is appended to <Dir>/<Name>.log. It gets
// SIGKILL when the calling process dies.
func Start(s *ProcSpec) (*Proc, error) {
	path := filepath.Join(s.Dir, s.Name+".log")
	log, err := os.OpenFile(filepath.Clean(path), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", s.Name, err)
	}
	defer log.Close()                                                          //nolint:errcheck // the child has its own descriptor
	cmd := exec.CommandContext(context.Background(), s.Args[0], s.Args[1:]...) //nolint:gosec // starting programs is this package's purpose
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), s.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if s.User != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: s.User.UID, Gid: s.User.GID}
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	p := &Proc{Name: s.Name, Pid: cmd.Process.Pid, Log: path, done: make(chan struct{})}
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(p.done)
	}()
	return p, nil
}

// Done returns a channel that is closed when the program has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Exited reports whether the program has ended, and its exit error.
func (p *Proc) Exited() (bool, error) {
	select {
	case <-p.done:
		p.mu.Lock()
		defer p.mu.Unlock()
		return true, p.err
	default:
		return false, nil
	}
}

// Signal sends a signal to the program. A program that has ended is left alone.
func (p *Proc) Signal(sig syscall.Signal) error {
	if done, _ := p.Exited(); done {
		return nil
	}
	if err := syscall.Kill(p.Pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s to %s: %w", sig, p.Name, err)
	}
	return nil
}

// Kill ends the program with SIGKILL and waits until it is gone.
func (p *Proc) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Stop asks the program to end with SIGTERM and kills it after the time-out. The
// error is the program's, if it ended with a status other than 0.
func (p *Proc) Stop(timeout time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-time.After(timeout):
		if err := p.Kill(); err != nil {
			return err
		}
		return fmt.Errorf("%s did not end within %s of SIGTERM and was killed", p.Name, timeout)
	}
	if _, err := p.Exited(); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	return nil
}

// ProcessTree returns the pids of the program and of all its descendants.
func (p *Proc) ProcessTree() []int {
	pids := []int{p.Pid}
	for i := 0; i < len(pids); i++ {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pids[i], pids[i]))
		if err != nil {
			continue
		}
		for f := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// SignalTree sends a signal to the program and all its descendants.
func (p *Proc) SignalTree(sig syscall.Signal) error {
	if done, _ := p.Exited(); done {
		return nil
	}
	for _, pid := range p.ProcessTree() {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal %s to %d of %s: %w", sig, pid, p.Name, err)
		}
	}
	return nil
}

// clockTick is the unit of the times in /proc/<pid>/stat: USER_HZ is 100 on
// every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// CPU returns the processor time that the program has used, user and system.
func (p *Proc) CPU() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name may hold blanks
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * clockTick
}

// RSS returns the resident memory of the program in KiB.
func (p *Proc) RSS() int64 { return p.status("VmRSS:") }

// PeakRSS returns the largest resident memory that the program has had, in KiB.
func (p *Proc) PeakRSS() int64 { return p.status("VmHWM:") }

func (p *Proc) status(key string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

// FreePort returns a TCP port of 127.0.0.1 on which nobody listens now.
func FreePort() (int, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close() //nolint:errcheck // nothing was written
	return l.Addr().(*net.TCPAddr).Port, nil
}

// WaitPort waits until somebody accepts connections on addr, and fails at once
// if the program ends before.
func (p *Proc) WaitPort(addr string, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		d := net.Dialer{Timeout: time.Second}
		c, err := d.DialContext(context.Background(), "tcp", addr)
		if err == nil {
			return c.Close()
		}
		if done, exit := p.Exited(); done {
			return fmt.Errorf("%s ended at start (%w): %s", p.Name, exitError(exit), p.LogTail())
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not answer on %s after %s: %s", p.Name, addr, timeout, p.LogTail())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

var errStatusZero = errors.New("exit status 0")

func exitError(err error) error {
	if err == nil {
		return errStatusZero
	}
	return err
}

// LogTail returns the end of what the program has printed.
func (p *Proc) LogTail() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return "no log"
	}
	if len(b) > 700 {
		b = b[len(b)-700:]
	}
	return strings.TrimSpace(string(b))
}
