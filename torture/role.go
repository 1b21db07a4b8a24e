package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"mynah/bench/stand"
)

// role is a server that is killed, stopped and started again.
type role struct {
	*world
	name   string
	launch func() (*stand.Proc, error) // starts it; for the broker and PostgreSQL until it answers
	// supervised: it may end by itself and is started again, as systemd or
	// Docker would: an archiver that finds no database at its start says so
	// and ends.
	supervised bool

	mu      sync.Mutex // held by whoever starts, stops or kills it
	proc    *stand.Proc
	revived time.Time // when supervise last started it
}

// start starts the server and keeps trying for a while. It is called with the
// lock held, or before anybody else knows the role.
func (r *role) start() error {
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
				r.ledger.Odd("%s neither serves nor ends after its start: %v", r.name, err)
				r.say("%s HANGS AT ITS START", r.name)
			}
			_ = p.Kill()
		}
		if !r.diskFull.Load() {
			// It may have begun while the disk was full.
			if p, err = r.launch(); err == nil {
				r.proc = p
				return nil
			}
			r.ledger.Odd("%s does not start: %v", r.name, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not start: %w", r.name, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// kill kills it, leaves it dead for a while and starts it again.
func (r *role) kill(dead time.Duration, how func() error) {
	if err := how(); err != nil {
		r.ledger.Odd("kill %s: %v", r.name, err)
	}
	time.Sleep(dead)
	if err := r.start(); err != nil {
		r.say("%v", err)
	}
}

// freeze stops it, with all its children, and lets it go on after a while.
func (r *role) freeze(d time.Duration) {
	p := r.proc
	if err := p.SignalFamily(syscall.SIGSTOP); err != nil {
		r.ledger.Odd("%v", err)
	}
	time.Sleep(d)
	if err := p.SignalFamily(syscall.SIGCONT); err != nil {
		r.ledger.Odd("%v", err)
	}
}

// supervise starts what has ended by itself and notes it.
func (w *world) supervise(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, r := range []*role{w.broker, w.archiver, w.postgres} {
			if w.ending.Load() {
				return
			}
			if !r.mu.TryLock() {
				continue
			}
			if done, err := r.proc.Exited(); done && !w.ending.Load() && time.Since(r.revived) > time.Second {
				r.revived = time.Now()
				if r.supervised || r == w.broker && w.diskGreedy.Load() {
					w.say("%s ended (%v) and is started again", r.name, err)
				} else {
					w.ledger.Odd("%s ended by itself (%v): %s", r.name, err, r.proc.Tail())
					w.say("%s ENDED BY ITSELF (%v)", r.name, err)
				}
				if err := r.start(); err != nil {
					w.say("%v", err)
				}
			}
			r.mu.Unlock()
		}
	}
}

// between returns a duration between two others.
func between(rnd *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rnd.Int64N(int64(most-least)))
}
