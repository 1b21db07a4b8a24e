package delivery

import (
	"maps"
	"slices"
	"time"

	"mynah/broker/session"
)

// Session is a session.Session with what brings it the messages of the log. Its methods
// attach and detach connections, change subscriptions and take acknowledgements in.
type Session struct{ feed }

// newSession returns a session that has nothing and is behind nothing up to pos.
func newSession(e *Engine, k session.Key, pos uint64) *Session {
	s := &Session{}
	s.Key, s.engine, s.owner, s.Feed = k, e, s, &s.feed
	s.Filters, s.plan, s.pos = map[string]session.Subscription{}, &plan{}, pos
	return s
}

// end forgets the session for good.
func (s *Session) end() {
	s.Changes.Lock()
	defer s.Changes.Unlock()
	s.detachLocked(nil)
	s.endLocked()
}

// endIfOffline forgets the session for good unless it has a connection.
func (s *Session) endIfOffline() {
	s.Changes.Lock()
	defer s.Changes.Unlock()
	s.Mu.Lock()
	away := !s.ExpiresAt.IsZero()
	s.Mu.Unlock()
	if away {
		s.endLocked()
	}
}

func (s *Session) endLocked() {
	if s.Ended {
		return
	}
	s.Ended = true
	e := s.engine
	s.refuseQueued()
	s.notifyUnsubscribed(slices.Collect(maps.Keys(s.Filters))...)
	if s.Stored {
		// Before the key is free: a new session of this key stores its own.
		e.store.Forget(&s.Session)
	}
	if e.cfg.OnEnd != nil {
		e.cfg.OnEnd(s.Key)
	}
	e.sessions.remove(s)
}

// refuseQueued forgets what waits outside the chat, and has nothing taken any more.
func (s *Session) refuseQueued() {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	s.HasEnded = true
	s.dropQueueLocked()
}

func (s *Session) dropQueueLocked() {
	if s.Queue != nil {
		s.Queue.Drop()
		s.Queue, s.queueTurn = nil, false
	}
}

// expire ends the session if it has expired and is still offline.
func (s *Session) expire(now time.Time) bool {
	s.Changes.Lock()
	defer s.Changes.Unlock()
	s.Mu.Lock()
	expired := s.Expired(now)
	s.Mu.Unlock()
	if expired {
		s.endLocked()
	}
	return expired
}
