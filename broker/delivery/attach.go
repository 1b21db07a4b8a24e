package delivery

import (
	"errors"
	"maps"
	"slices"
	"time"

	"mynah/broker/outbox"
	"mynah/broker/packet"
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
		defer e.enforceMaxSessions(a.Subject)
	}
	for {
		if !a.Archiver && e.isArchiver(a.Key) {
			return nil, false, ErrArchiverSession
		}
		s, resumed = e.session(a.Key, a.Clean)
		s.Changes.Lock()
		if !s.Ended {
			break
		}
		s.Changes.Unlock() // it ended between the two lines above
	}
	defer s.Changes.Unlock()

	s.detachLocked(nil)
	a.Conn.OnDrain = s.wake
	groups := session.SetOf(a.Groups)
	if a.KeepGroups {
		maps.Copy(groups, s.Groups)
	}
	s.Groups = groups

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

// session returns the session of a key, or a new one. A session that ends with its
// connection is not passed on to the next one, though that be faster than the end, nor is
// one whose time is over.
func (e *Engine) session(key session.Key, clean bool) (s *Session, existed bool) {
	if s := e.sessions.get(key); s != nil && (clean || s.EndsWithConnection(e.now())) {
		s.end()
	}
	_, last := e.log.Bounds()
	// If another connection was faster, this one takes over from it.
	return e.sessions.getOrAdd(key, func() *Session { return newSession(e, key, last) })
}

// bind gives the session a connection, which has had nothing yet. Changes is held.
func (s *Session) bind(a Attachment) {
	e := s.engine
	limit := e.cfg.Window
	if a.Archiver {
		limit = e.cfg.ArchiverWindow
	}
	if a.ReceiveMaximum > 0 {
		limit = min(limit, int(a.ReceiveMaximum))
	}
	s.Mu.Lock()
	defer s.Mu.Unlock()
	s.Bind(session.Connection{
		Conn: a.Conn, Number: e.attachments.Add(1), V5: a.V5, Limit: limit, MaxPacket: a.MaxPacket,
		Expiry: a.Expiry, AnyTopic: a.AnyTopic, Archiver: a.Archiver,
	})
	s.noticed = nil
	s.resends = s.Window.Len() > 0
}

// isArchiver reports whether a session is the archiver's.
func (e *Engine) isArchiver(k session.Key) bool {
	s := e.sessions.get(k)
	return s != nil && s.IsArchiver()
}

// enforceMaxSessions ends the sessions of a subject that have been offline for longest if it has
// more than one may have. Everybody may make sessions that outlive their connections by a
// month, and each is kept on disk and in memory. Those that may read any topic belong to
// services, of which there may be many instances; they neither count nor end.
func (e *Engine) enforceMaxSessions(subject string) {
	if e.sessions.countOf(subject) <= e.cfg.MaxSessions {
		return
	}
	// One at a time, or two end others for the same one that is too many.
	e.makingRoom.Lock()
	defer e.makingRoom.Unlock()
	sessions := e.sessions.of(subject)
	over := len(sessions) - e.cfg.MaxSessions
	since := make(map[*Session]time.Time, len(sessions))
	for _, s := range sessions {
		s.Mu.Lock()
		switch {
		case s.AnyTopic:
			over--
		case !s.ExpiresAt.IsZero() && !s.Archiver:
			since[s] = s.ExpiresAt.Add(-s.Expiry)
		}
		s.Mu.Unlock()
	}
	if over <= 0 {
		return
	}
	offline := slices.SortedFunc(maps.Keys(since), func(a, b *Session) int { return since[a].Compare(since[b]) })
	for _, s := range offline[:min(over, len(offline))] {
		s.endIfOffline()
	}
}

// Start begins delivery: first what the client has not acknowledged, then what it
// missed, then what comes, of the log and of the topics outside the chat each. It is
// called when the CONNACK is on its way.
func (s *Session) Start(conn *outbox.Conn) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if s.Conn == conn && s.mode == offline {
		s.mode = behind
		s.promptFrom = s.engine.started.Load() + 1
		s.wakeLocked()
	}
}

// Detach says that a connection is over. If it still has the session, the session goes
// offline and lives on for expiry, or ends if that is 0 or its subject has too many.
func (s *Session) Detach(conn *outbox.Conn, expiry time.Duration) {
	if s.detach(conn, expiry) {
		s.engine.enforceMaxSessions(s.Subject)
	}
}

// detach is Detach without regard to how many sessions the subject has. It reports whether
// there is one more that is offline and counts.
func (s *Session) detach(conn *outbox.Conn, expiry time.Duration) (left bool) {
	s.Changes.Lock()
	defer s.Changes.Unlock()
	s.Mu.Lock()
	current := s.Conn == conn
	if current {
		s.Expiry = expiry
	}
	s.Mu.Unlock()
	if !current || s.Ended {
		return false
	}
	s.detachLocked(conn)
	if expiry == 0 {
		s.endLocked()
		return false
	}
	s.engine.savePosition(&s.feed, false)
	return !s.AnyTopic
}

// detachLocked takes the session from its connection. A connection other than the
// one given is told that it was taken over, and closed. Changes is held.
func (s *Session) detachLocked(own *outbox.Conn) {
	old, v5, topics := s.unbind()
	for _, t := range topics {
		s.engine.topics.remove(t)
	}
	if old != nil && old != own {
		if v5 {
			old.Send(packet.EncodeDisconnect(packet.ReasonSessionTakenOver))
		}
		_ = old.Close()
	}
}

// unbind takes the session offline and returns the connection that it had, whether that is
// MQTT 5, and its topics.
func (s *Session) unbind() (old *outbox.Conn, v5 bool, topics map[string]*topicSub) {
	delivered := s.engine.delivered.Load()
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if s.mode == live {
		// Everything of ours up to there was handed to us.
		s.pos = max(s.pos, delivered)
	}
	s.mode = offline
	if old = s.Unbind(s.engine.now()); old != nil {
		s.engine.checkExpirySoon()
	}
	s.markCursorDirtyLocked()
	return old, s.V5, s.topics
}
