package delivery

import (
	"errors"
	"maps"
	"slices"
	"time"

	"mynah/broker/outbox"
	"mynah/broker/session"
)

// Attachment is what a connection says about the session it wants.
type Attachment struct {
	session.Key
	Conn           *outbox.Conn
	Clean          bool          // Clean Start: a session that is there ends first
	Expiry         time.Duration // how long the session outlives the connection
	V5             bool
	ReceiveMaximum uint16 // 0: no limit of the client's own
	MaxPacket      uint32 // 0: no limit
	Groups         []string
	KeepGroups     bool // Groups may not be all: the session stays in those that it was in
	AnyTopic       bool // it may read what is not its own
	Archiver       bool // its position is the archive's
}

// ErrArchiverSession is returned for a connection that is not the archiver's and wants the
// archiver's session, whose position says what may be trimmed from the log.
var ErrArchiverSession = errors.New("this is the archiver's session")

// Attach binds a connection to its session, which it makes if there is none or if
// the client wants a clean start, and reports whether there was one. A connection
// that had the session before loses it. Nothing is delivered before Start.
func (e *Engine) Attach(a Attachment) (s *Session, resumed bool, err error) {
	if !a.AnyTopic {
		defer e.makeRoom(a.Subject)
	}
	for {
		if !a.Archiver && e.isArchiver(a.Key) {
			return nil, false, ErrArchiverSession
		}
		s, resumed = e.session(a.Key, a.Clean)
		s.subsMu.Lock()
		if !s.ended {
			break
		}
		s.subsMu.Unlock() // it ended between the two lines above
	}
	defer s.subsMu.Unlock()

	s.detachLocked(nil)
	a.Conn.OnDrain = s.wake
	groups := setOf(a.Groups)
	if a.KeepGroups {
		maps.Copy(groups, s.groups)
	}
	s.groups = groups

	s.bind(a)
	if err := s.subscribeLocked(false); err != nil {
		s.detachLocked(a.Conn)
		if a.Expiry == 0 {
			s.endLocked()
		}
		return nil, false, err
	}
	return s, resumed, nil
}

// bind gives the session a connection, which has had nothing yet. subsMu is held.
func (s *Session) bind(a Attachment) {
	e := s.engine
	s.mu.Lock()
	defer s.mu.Unlock()
	s.archiver, s.anyTopic = a.Archiver, a.AnyTopic
	s.attached = e.attachments.Add(1)
	a.Conn.Attachment = s.attached
	s.conn, s.v5, s.maxPacket = a.Conn, a.V5, a.MaxPacket
	s.limit = e.cfg.Window
	if a.Archiver {
		s.limit = e.cfg.ArchiverWindow
	}
	if a.ReceiveMaximum > 0 {
		s.limit = min(s.limit, int(a.ReceiveMaximum))
	}
	s.expiry, s.expiresAt = a.Expiry, time.Time{}
	s.noticed = nil
	s.onWire, s.resends = 0, s.win.Len() > 0
	for i := range s.win.Len() {
		s.win.At(i).OnWire = false
	}
	s.attachPlainLocked()
}

// isArchiver reports whether a session is the archiver's.
func (e *Engine) isArchiver(k session.Key) bool {
	e.mu.RLock()
	s := e.sessions[k]
	e.mu.RUnlock()
	return s != nil && s.archives()
}

// archives reports whether the session is an archiver's.
func (s *Session) archives() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.archiver
}

// makeRoom ends the sessions of a subject that have been offline for longest if it has
// more than one may have. Everybody may make sessions that outlive their connections by a
// month, and each is kept on disk and in memory. Those that may read any topic belong to
// services, of which there may be many instances; they neither count nor end.
func (e *Engine) makeRoom(subject string) {
	e.mu.RLock()
	n := len(e.subjects[subject])
	e.mu.RUnlock()
	if n <= e.cfg.MaxSessions {
		return
	}
	// One at a time, or two end others for the same one that is too many.
	e.room.Lock()
	defer e.room.Unlock()
	sessions := e.Sessions(subject)
	over := len(sessions) - e.cfg.MaxSessions
	since := make(map[*Session]time.Time, len(sessions))
	for _, s := range sessions {
		s.mu.Lock()
		switch {
		case s.anyTopic:
			over--
		case !s.expiresAt.IsZero() && !s.archiver:
			since[s] = s.expiresAt.Add(-s.expiry)
		}
		s.mu.Unlock()
	}
	if over <= 0 {
		return
	}
	offline := slices.SortedFunc(maps.Keys(since), func(a, b *Session) int { return since[a].Compare(since[b]) })
	for _, s := range offline[:min(over, len(offline))] {
		s.endIfOffline()
	}
}

// Superseded reports whether the session has had another connection after the given one.
func (s *Session) Superseded(conn *outbox.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attached != conn.Attachment
}

// Start begins delivery: first what the client has not acknowledged, then what it
// missed, then what comes, of the log and of the topics outside the chat each. It is
// called when the CONNACK is on its way.
func (s *Session) Start(conn *outbox.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == conn && s.mode == offline {
		s.mode = behind
		s.promptFrom = s.engine.started.Load() + 1
		s.wakeLocked()
	}
}

// Detach says that a connection is over. If it still has the session, the session goes
// offline and lives on for expiry, or ends if that is 0 or its subject has too many.
func (s *Session) Detach(conn *outbox.Conn, expiry time.Duration) {
	if s.detach(conn, expiry) {
		s.engine.makeRoom(s.Subject)
	}
}

// detach is Detach without regard to how many sessions the subject has. It reports whether
// there is one more that is offline and counts.
func (s *Session) detach(conn *outbox.Conn, expiry time.Duration) (left bool) {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	s.mu.Lock()
	current := s.conn == conn
	if current {
		s.expiry = expiry
	}
	s.mu.Unlock()
	if !current || s.ended {
		return false
	}
	s.detachLocked(conn)
	if expiry == 0 {
		s.endLocked()
		return false
	}
	s.engine.store.saveLogged(s, false)
	return !s.anyTopic
}

// detachLocked takes the session from its connection. A connection other than the
// one given is told that it was taken over, and closed. subsMu is held.
func (s *Session) detachLocked(own *outbox.Conn) {
	old, v5, topics := s.unbind()
	for _, t := range topics {
		s.engine.unregister(t)
	}
	if old != nil && old != own {
		if v5 {
			old.Send(disconnect(reasonTakenOver))
		}
		_ = old.Close()
	}
}

// unbind takes the session offline and returns the connection that it had, whether that is
// MQTT 5, and its topics.
func (s *Session) unbind() (old *outbox.Conn, v5 bool, topics map[string]*topicSub) {
	delivered := s.engine.delivered.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	old = s.conn
	s.conn = nil
	if s.mode == live {
		// Everything of ours up to there was handed to us.
		s.pos = max(s.pos, delivered)
	}
	s.mode = offline
	s.win.Shrink()
	s.detachPlainLocked()
	s.movedLocked()
	if old != nil {
		s.expiresAt = s.engine.now().Add(s.expiry)
		s.engine.lookForExpired()
	}
	return old, s.v5, s.topics
}
