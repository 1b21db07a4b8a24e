package delivery

import (
	"sync"
	"time"
)

// How often positions that have moved are stored. What a crash forgets of them, clients
// get again; the more often, the less. After very many have been stored the next wait for
// longer, so that it never costs more than a few percent of a core.
const (
	saveInterval     = 200 * time.Millisecond
	saveMany         = 2000
	saveManyInterval = time.Second
)

// refillInterval is how long a client may wait for a message for which it has had room
// all the time.
const refillInterval = 50 * time.Millisecond

// fitInterval is how long memory must have been of no use to be given back.
const fitInterval = time.Second

// How often it is looked whether sessions have expired, while some are offline: when the
// next one is due, but no sooner than expireSoonest after the last time, and no later than
// expireLatest, since somebody may set the clock.
const (
	expireSoonest = time.Second
	expireLatest  = time.Minute
)

// runMaintenance stores positions that have moved, has sessions read on, takes back memory that
// they no longer need and ends those that have expired. Without anything to be done it
// sleeps.
func (e *Engine) runMaintenance() {
	var refill, save, fit, expire <-chan time.Time // nil while there is nothing to do
	saveIn, soon := saveInterval, false
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.refillSoon.filled:
			refill = e.after(refillInterval)
		case <-refill:
			e.refillSoon.each(func(s *feed) {
				s.refillSoon = false
				s.wakeLocked()
			})
		case <-e.dirty.filled:
			save = e.after(saveIn)
		case <-save:
			moved := e.dirty.take()
			e.savePositions(moved)
			if saveIn = saveInterval; len(moved) > saveMany {
				saveIn = saveManyInterval
			}
		case <-e.oversized.filled:
			fit = e.after(fitInterval)
		case <-fit:
			e.oversized.each((*feed).shrinkLocked)
		case <-e.left:
			if !soon { // or whoever leaves would put it off
				soon, expire = true, e.after(expireSoonest)
			}
		case <-expire:
			soon, expire = false, nil
			if next := e.expire(); !next.IsZero() {
				expire = e.after(min(max(next.Sub(e.now()), expireSoonest), expireLatest))
			}
		}
	}
}

// expire ends the sessions whose time is over and returns when the next one's is, zero if
// none is waiting for that.
func (e *Engine) expire() (next time.Time) {
	now := e.now()
	for _, s := range e.sessions.all() {
		s.Mu.Lock()
		expired, at := s.Expired(now), s.ExpiresAt
		if s.Archiver {
			at = time.Time{}
		}
		s.Mu.Unlock()
		switch {
		case expired:
			s.expire(now)
		case !at.IsZero() && (next.IsZero() || at.Before(next)):
			next = at
		}
	}
	return next
}

// checkExpirySoon says that a session has gone offline.
func (e *Engine) checkExpirySoon() {
	select {
	case e.left <- struct{}{}:
	default:
	}
}

// sessionList collects sessions for which something is to be done. Its lock is the
// innermost.
type sessionList struct {
	filled chan struct{} // has a value when the list is no longer empty

	mu   sync.Mutex
	list []*feed
}

func newSessionList() *sessionList { return &sessionList{filled: make(chan struct{}, 1)} }

func (l *sessionList) add(s *feed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.list = append(l.list, s); len(l.list) == 1 {
		select {
		case l.filled <- struct{}{}:
		default:
		}
	}
}

func (l *sessionList) take() []*feed {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.list
	l.list = nil
	return list
}

// each takes the sessions and calls do for them with their Mu held.
func (l *sessionList) each(do func(*feed)) {
	for _, s := range l.take() {
		s.guarded(do)
	}
}
