package delivery

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"mynah/broker/msglog"
)

// calm is how long nothing must have failed for an episode to be over: what fails for some
// sessions may work for others in between.
const calm = 10 * time.Second

// episode is something that fails for a while. A log that cannot be read or written
// concerns every session, so that it is logged when it begins and when it is over, not for
// each of them.
type episode struct {
	fault  string // what fails, for the line that says that it is over
	logger *slog.Logger
	now    func() time.Time

	lasts    atomic.Bool // what works all the time needs to know no more
	mu       sync.Mutex
	failures int
	last     time.Time
}

// begins is told of each attempt, and reports whether its error is the first of an episode
// and is to be logged. That a log has been closed is no fault.
func (ep *episode) begins(err error) bool {
	switch {
	case err == nil:
		if n := ep.ends(); n > 0 {
			ep.logger.Info("what failed for some time works again", "fault", ep.fault, "failures", n)
		}
		return false
	case errors.Is(err, msglog.ErrClosed):
		return false
	}
	ep.mu.Lock()
	defer ep.mu.Unlock()
	ep.lasts.Store(true)
	ep.failures++
	ep.last = ep.now()
	return ep.failures == 1
}

// ends is told that something has worked. If that ends an episode, it returns how often
// it had failed.
func (ep *episode) ends() (failures int) {
	if !ep.lasts.Load() {
		return 0
	}
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if !ep.lasts.Load() || ep.now().Sub(ep.last) < calm {
		return 0
	}
	failures, ep.failures = ep.failures, 0
	ep.lasts.Store(false)
	return failures
}
