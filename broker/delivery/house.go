package delivery

import (
	"sync"
	"time"
)

// How often positions that have moved are stored. What a crash forgets of them, clients
// get again; the more often, the less. With very many sessions on the move it is done
// less often, so that it never costs more than a few percent of a core.
const (
	saveInterval = 200 * time.Millisecond
	saveMany     = 2000
)

// refillInterval is how long a client may wait for a message for which it has had room
// all the time.
const refillInterval = 50 * time.Millisecond

// keepHouse stores positions that have moved, has sessions read on, takes back memory that
// they no longer need and ends those that have expired.
func (e *Engine) keepHouse() {
	refill := time.NewTicker(refillInterval)
	defer refill.Stop()
	save, expire := time.NewTicker(saveInterval), time.NewTicker(time.Second)
	defer save.Stop()
	defer expire.Stop()
	var saved time.Time
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-refill.C:
			for _, s := range e.lagging.take() {
				s.mu.Lock()
				s.lagging = false
				s.wakeLocked()
				s.mu.Unlock()
			}
		case now := <-save.C:
			if e.dirty.len() <= saveMany || now.Sub(saved) >= time.Second {
				e.store.saveAll(e.dirty.take())
				saved = now
			}
		case <-expire.C:
			for _, s := range e.roomy.take() {
				s.mu.Lock()
				s.fitLocked()
				s.mu.Unlock()
			}
			now := e.now()
			for _, s := range e.all() {
				s.mu.Lock()
				expired := s.expiredLocked(now)
				s.mu.Unlock()
				if expired {
					s.expire(now)
				}
			}
		}
	}
}

// sessionList collects sessions for which something is to be done. Its lock is the
// innermost.
type sessionList struct {
	mu   sync.Mutex
	list []*Session
}

func (l *sessionList) add(s *Session) {
	l.mu.Lock()
	l.list = append(l.list, s)
	l.mu.Unlock()
}

func (l *sessionList) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.list)
}

func (l *sessionList) take() []*Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.list
	l.list = nil
	return list
}

// expire ends the session if it is still offline.
func (s *Session) expire(now time.Time) bool {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	s.mu.Lock()
	still := s.expiredLocked(now)
	s.mu.Unlock()
	if still {
		s.endLocked()
	}
	return still
}

// expiredLocked reports whether the session's time is over. An archiver's never is: with
// its position everything that it has not archived would be lost to the archive. Its
// session ends with a clean start only. s.mu is held.
func (s *Session) expiredLocked(now time.Time) bool {
	return s.conn == nil && !s.archiver && !s.expiresAt.IsZero() && now.After(s.expiresAt)
}
