package msglog

import (
	"context"
	"sync"
)

// lifecycle counts the calls and goroutines that use a log, so that Close can wait for
// them before it closes the database.
type lifecycle struct {
	stop       chan struct{}  // closed when the log is being closed
	background sync.WaitGroup // goroutines that end by themselves after stop

	mu     sync.Mutex // guards closed; calls does not grow once closed is set
	closed bool
	calls  sync.WaitGroup
}

func newLifecycle() *lifecycle { return &lifecycle{stop: make(chan struct{})} }

// beginCall counts a call that uses the database. It returns ErrClosed if the log is closed.
// If it returns nil, end must be called.
func (c *lifecycle) beginCall() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.calls.Add(1)
	return nil
}

func (c *lifecycle) endCall() { c.calls.Done() }

// check returns an error if a long call must end: because of ctx, or because the log is
// being closed.
func (c *lifecycle) check(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.stop:
		return ErrClosed
	default:
		return nil
	}
}

// close refuses new calls and waits for those that are running and for the background
// goroutines. It returns false if the log was closed before.
func (c *lifecycle) close() bool {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return false
	}
	c.closed = true
	c.mu.Unlock()
	close(c.stop)
	c.calls.Wait()
	c.background.Wait()
	return true
}
