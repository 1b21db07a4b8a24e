package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"mynah/bench/testbed"
)

// managedServer is a server that is killed, stopped and started again.
type managedServer struct {
	*harness
	name   string
	launch func() (*testbed.Proc, error) // starts it; for the broker and PostgreSQL until it answers
	// supervised means that it may end by itself and is then restarted, as
	// systemd or Docker would do. An archiver that finds no database at its
	// start ends with an error.
	supervised bool

	mu          sync.Mutex // held during a start, a stop or a kill
	proc        *testbed.Proc
	restartedAt time.Time // when supervise last started it
}

// start starts the server and retries for a while. mu is held, or no other
// goroutine has the server yet.
func (r *managedServer) start() error {
	deadline := time.Now().Add(90 * time.Second)
	for {
		p, err := r.launch()
		if p != nil {
			r.proc = p
		}
		if err == nil {
			return nil
		}
		if p != nil {
			if done, _ := p.Exited(); !done {
				r.ledger.Violation("%s neither serves nor ends after its start: %v", r.name, err)
				r.logLine("%s HANGS AT ITS START", r.name)
			}
			_ = p.Kill()
		}
		if !r.diskFull.Load() {
			// The start may have begun while the disk was full.
			if p, err = r.launch(); err == nil {
				r.proc = p
				return nil
			}
			r.ledger.Violation("%s does not start: %v", r.name, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not start: %w", r.name, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// kill kills the server and starts it again after dead.
func (r *managedServer) kill(dead time.Duration, how func() error) {
	if err := how(); err != nil {
		r.ledger.Violation("kill %s: %v", r.name, err)
	}
	time.Sleep(dead)
	if err := r.start(); err != nil {
		r.logLine("%v", err)
	}
}

// freeze stops the server and its children (SIGSTOP), and continues them after
// d.
func (r *managedServer) freeze(d time.Duration) {
	p := r.proc
	if err := p.SignalTree(syscall.SIGSTOP); err != nil {
		r.ledger.Violation("%v", err)
	}
	time.Sleep(d)
	if err := p.SignalTree(syscall.SIGCONT); err != nil {
		r.ledger.Violation("%v", err)
	}
}

// supervise restarts servers that have ended by themselves, and logs it.
func (h *harness) supervise(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, r := range []*managedServer{h.broker, h.archiver, h.postgres} {
			if h.ending.Load() {
				return
			}
			if !r.mu.TryLock() {
				continue
			}
			if done, err := r.proc.Exited(); done && !h.ending.Load() && time.Since(r.restartedAt) > time.Second {
				r.restartedAt = time.Now()
				if r.supervised || r == h.broker && h.diskGreedy.Load() {
					h.logLine("%s ended (%v) and is started again", r.name, err)
				} else {
					h.ledger.Violation("%s ended by itself (%v): %s", r.name, err, r.proc.LogTail())
					h.logLine("%s ENDED BY ITSELF (%v)", r.name, err)
				}
				if err := r.start(); err != nil {
					h.logLine("%v", err)
				}
			}
			r.mu.Unlock()
		}
	}
}

// randomDuration returns a random duration between two others.
func randomDuration(rnd *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rnd.Int64N(int64(most-least)))
}
