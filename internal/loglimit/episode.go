package loglimit

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// quietPeriod is how long nothing must have failed for an episode to be over: what fails for
// some may work for others in between.
const quietPeriod = 10 * time.Second

// Episode is something that fails for a while. A disk that cannot be read or written concerns
// everybody, so that it is logged when it begins and when it is over, not for each of them. It
// is safe for concurrent use.
type Episode struct {
	fault  string
	logger *slog.Logger
	now    func() time.Time

	lasts    atomic.Bool // what works all the time needs to know no more
	mu       sync.Mutex
	failures int
	last     time.Time
}

// NewEpisode returns an Episode. fault is what fails, for the line that says that it is over.
func NewEpisode(fault string, logger *slog.Logger, now func() time.Time) *Episode {
	return &Episode{fault: fault, logger: logger, now: now}
}

// Observe takes in the outcome of an attempt. It reports whether its error is the first of an
// episode, which the caller is to log. That an episode is over it logs itself.
func (ep *Episode) Observe(err error) (begins bool) {
	if err == nil {
		if n := ep.recovered(); n > 0 {
			ep.logger.Info("what failed for some time works again", "fault", ep.fault, "failures", n)
		}
		return false
	}
	ep.mu.Lock()
	defer ep.mu.Unlock()
	ep.lasts.Store(true)
	ep.failures++
	ep.last = ep.now()
	return ep.failures == 1
}

// recovered takes in that something has worked. If that ends an episode, it returns how often
// it had failed.
func (ep *Episode) recovered() (failures int) {
	if !ep.lasts.Load() {
		return 0
	}
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if !ep.lasts.Load() || ep.now().Sub(ep.last) < quietPeriod {
		return 0
	}
	failures, ep.failures = ep.failures, 0
	ep.lasts.Store(false)
	return failures
}
