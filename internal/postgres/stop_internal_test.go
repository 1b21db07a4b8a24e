package postgres

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mynah/internal/waitfor"
)

// mustGiveUp stops the server with a context that ends soon, and checks that Stop says what
// it gave up on.
func mustGiveUp(t *testing.T, s *Server, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Stop(ctx) }()
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), want) {
			t.Errorf("Stop: %v, want that it %s", err, want)
		}
	case <-time.After(waitfor.Timeout):
		t.Fatal("Stop waits without its context")
	}
}

// Stop returns when its context ends, and says so, while a restart of the server hangs, also
// when it is called again: the server may be running. When the restart has ended, Stop ends
// the server and releases the folder.
func TestStopWhileARestartHangs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	dead := &process{cmd: exec.CommandContext(t.Context(), "true"), exited: make(chan struct{})}
	if err := dead.cmd.Run(); err != nil {
		t.Fatal(err)
	}
	close(dead.exited)
	lock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Dir: dir})
	s.dir, s.socket = dir, filepath.Join(dir, "run")
	s.proc, s.lock = dead, lock
	s.stopRequested, s.supervisorDone = make(chan struct{}), make(chan struct{})
	restarting, hang := make(chan struct{}), make(chan struct{})
	go s.supervise(t.Context(), dead, func(context.Context) (*process, error) {
		close(restarting)
		<-hang
		return nil, os.ErrProcessDone
	}, s.stopRequested, s.supervisorDone)
	<-restarting
	for range 2 {
		mustGiveUp(t, s, "gave up on a restart")
	}
	if _, err := lockDir(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("the folder, while the server may be running: %v, want ErrInUse", err)
	}
	close(hang)
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	again, err := lockDir(dir)
	if err != nil {
		t.Fatalf("the folder is not released: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// Stop returns when its context ends while a Start hangs.
func TestStopWhileAStartHangs(t *testing.T) {
	t.Parallel()
	s := New(Config{Dir: t.TempDir()})
	end, err := s.takeTurn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustGiveUp(t, s, "gave up on waiting for another start or stop")
	end()
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// A Stop whose context has ended before it is called ends the server nevertheless.
func TestStopWithAnEndedContext(t *testing.T) {
	t.Parallel()
	s := New(Config{Dir: filepath.Join(t.TempDir(), "postgres"), Settings: map[string]string{"shared_buffers": "16MB", "fsync": "off"}})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	exited := s.Exited()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
	select {
	case <-exited:
	default:
		t.Error("the server runs")
	}
}
