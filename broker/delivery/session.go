package delivery

import (
	"maps"
	"slices"
	"sync"
	"time"

	"mynah/broker/outbox"
	"mynah/broker/session"
)

// mode is where a session gets its messages from.
type mode uint8

const (
	offline mode = iota // no connection
	behind              // reads the log
	live                // gets frames as they are committed
)

// Session is the state of a device that outlives its connections (MQTT 5, 4.1): its
// subscriptions, its position in the log and the messages that it has not
// acknowledged.
type Session struct {
	session.Key
	engine *Engine

	// subsMu serialises what changes the subscriptions or attaches and detaches.
	subsMu  sync.Mutex
	filters map[string]session.Subscription
	groups  map[string]struct{}
	ended   bool
	kept    bool // it is in the store

	// Inbound is what the client publishes outside the chat.
	Inbound session.Inbound

	mu        sync.Mutex
	topics    map[string]*topicSub // replaced, never changed
	plan      *plan                // the logged ones of them, as the pump wants them
	archiver  bool                 // its position is the archive's; set with subsMu held too
	anyTopic  bool                 // it may read what is not its own; set with subsMu held too
	conn      *outbox.Conn         // nil if offline
	attached  uint64               // Conn.Attachment of the last connection that it has had
	v5        bool
	limit     int    // messages that may be unacknowledged on this connection
	maxPacket uint32 // the client's limit, 0 for none
	mode      mode
	pos       uint64 // every message up to here was sent, is in the window or is none of ours
	win       session.Window
	onWire    int                 // messages sent on this connection and not acknowledged
	resends   bool                // the window holds messages to be sent again
	rewinds   int                 // how often it was told to read the log again; since then, the window may not be in seq order
	noticed   map[string]struct{} // topics that have been told of the gap at pos, if not all have; replaced, never changed
	over      bool                // it has ended: nothing is queued any more
	// promptFrom is the seq from which on messages have reached the session at once: since
	// then its client has had room for all that came. 0 says that it is behind in earnest.
	promptFrom uint64
	broken     bool // something has panicked, and the pump is to start it anew
	pumping    bool
	again      bool // somebody asked for the pump while it ran
	dirty      bool // the stored cursor is out of date
	lagging    bool // the window has room that is to be used soon
	roomy      bool // the window takes more memory than it needs

	stored   []uint64          // seqs of QoS 2 messages in the store, ascending
	restored map[uint64]uint16 // packet ids of those that the store had when the broker started; not changed after

	expiry    time.Duration // how long it outlives its connection; 0: not at all
	expiresAt time.Time     // zero while attached

	plain *plainQueue // topics outside the chat; nil until there is something
}

// session returns the session of a key, or a new one. A session that ends with its
// connection is not passed on to the next one, though that be faster than the end
// (MQTT 3.1.1, 3.1.2.4; MQTT 5, 3.1.2.11.2), nor is one whose time is over.
func (e *Engine) session(key session.Key, clean bool) (s *Session, existed bool) {
	e.mu.RLock()
	s = e.sessions[key]
	e.mu.RUnlock()
	if s != nil && (clean || s.overWithConn()) {
		s.end()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s = e.sessions[key]; s != nil {
		return s, true // if another connection was faster, this one takes over from it
	}
	_, last := e.log.Bounds()
	s = &Session{Key: key, engine: e, filters: map[string]session.Subscription{}, plan: &plan{}, pos: last}
	e.sessions[key] = s
	if e.subjects[key.Subject] == nil {
		e.subjects[key.Subject] = map[*Session]struct{}{}
	}
	e.subjects[key.Subject][s] = struct{}{}
	return s, false
}

func (s *Session) overWithConn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expiry == 0 || s.expiredLocked(s.engine.now())
}

// end forgets the session for good.
func (s *Session) end() {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	s.detachLocked(nil)
	s.endLocked()
}

// Over reports whether the session has ended for good.
func (s *Session) Over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// endIfOffline forgets the session for good unless it has a connection.
func (s *Session) endIfOffline() {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	s.mu.Lock()
	away := !s.expiresAt.IsZero()
	s.mu.Unlock()
	if away {
		s.endLocked()
	}
}

func (s *Session) endLocked() {
	if s.ended {
		return
	}
	s.ended = true
	e := s.engine
	orphans := s.endPlain()
	s.untellPlain(slices.Collect(maps.Keys(s.filters))...)
	e.orphaned(orphans)
	if s.kept {
		// Before the key is free: a new session of this key stores its own.
		e.store.forget(s)
	}
	if e.cfg.OnEnd != nil {
		e.cfg.OnEnd(s.Key)
	}
	e.mu.Lock()
	delete(e.sessions, s.Key)
	delete(e.subjects[s.Subject], s)
	if len(e.subjects[s.Subject]) == 0 {
		delete(e.subjects, s.Subject)
	}
	e.mu.Unlock()
}

// Cursor returns the seq up to which everything of the session is done: acknowledged,
// sent at QoS 0, or not its own.
func (s *Session) Cursor() uint64 {
	delivered := s.engine.delivered.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cursorLocked(delivered)
}

// cursorLocked wants a delivered that was read before s.mu was taken.
func (s *Session) cursorLocked(delivered uint64) uint64 {
	cursor := s.pos
	if s.mode == live {
		cursor = max(cursor, delivered)
	}
	if oldest := s.win.Oldest(s.restored != nil || s.rewinds > 0); oldest > 0 {
		cursor = min(cursor, oldest-1)
	}
	return cursor
}

// movedLocked says that the stored position is out of date.
func (s *Session) movedLocked() {
	if !s.dirty && s.expiry > 0 {
		s.dirty = true
		s.engine.dirty.add(s)
	}
}

// rewindLocked makes a session read the log again after seq. The archive is to have all
// that the log has, also what was acknowledged before an archiver ever came; what it
// has already it recognises.
func (s *Session) rewindLocked(seq uint64) {
	s.rewinds++
	if s.pos <= seq && s.mode != live {
		return
	}
	s.pos = seq
	s.movedLocked()
	if s.mode == live {
		s.mode = behind
	}
	s.wakeLocked()
}

// Attached returns the session's connection, nil if it is offline.
func (s *Session) Attached() *outbox.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn
}
