package delivery

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// Key names a session: a device of a subject. Two subjects may use the same client
// id without meeting.
type Key struct {
	Subject  string
	ClientID string
}

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
	Key
	engine *Engine

	// subsMu serialises what changes the subscriptions or attaches and detaches.
	subsMu  sync.Mutex
	filters map[string]Subscription
	groups  map[string]struct{}
	any     bool // it may read what is not its own
	ended   bool
	kept    bool // it is in the store

	mu        sync.Mutex
	topics    map[string]*topicSub // replaced, never changed
	plan      *plan                // the logged ones of them, as the pump wants them
	archiver  bool                 // its position is the archive's; set with subsMu held too
	conn      *Conn                // nil if offline
	attached  uint64               // counts the connections that it has had
	v5        bool
	limit     int    // messages that may be unacknowledged on this connection
	maxPacket uint32 // the client's limit, 0 for none
	mode      mode
	pos       uint64 // every message up to here was sent, is in the window or is none of ours
	win       window
	onWire    int  // messages sent on this connection and not acknowledged
	resends   bool // the window holds messages to be sent again
	rewound   bool // the window may not be in seq order
	pumping   bool
	again     bool // somebody asked for the pump while it ran
	dirty     bool // the stored cursor is out of date

	stored   []uint64            // seqs of QoS 2 messages in the store, ascending
	restored map[uint64]struct{} // those that the store had when the broker started; not changed after

	expiry    time.Duration // how long it outlives its connection; 0: not at all
	expiresAt time.Time     // zero while attached
}

// Attachment is what a connection says about the session it wants.
type Attachment struct {
	Key
	Conn           *Conn
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

// Attach binds a connection to its session, which it makes if there is none or if
// the client wants a clean start, and reports whether there was one. A connection
// that had the session before loses it. Nothing is delivered before Start.
func (e *Engine) Attach(a Attachment) (s *Session, resumed bool, err error) {
	for {
		s, resumed = e.session(a.Key, a.Clean)
		s.subsMu.Lock()
		if !s.ended {
			break
		}
		s.subsMu.Unlock() // it ended between the two lines above
	}
	defer s.subsMu.Unlock()

	s.detachLocked(nil)
	a.Conn.onDrain = s.wake
	groups := setOf(a.Groups)
	if a.KeepGroups {
		maps.Copy(groups, s.groups)
	}
	s.groups, s.any = groups, a.AnyTopic

	s.mu.Lock()
	s.archiver = a.Archiver
	s.attached++
	a.Conn.attachment = s.attached
	s.conn, s.v5, s.maxPacket = a.Conn, a.V5, a.MaxPacket
	s.limit = e.cfg.Window
	if a.Archiver {
		s.limit = e.cfg.ArchiverWindow
	}
	if a.ReceiveMaximum > 0 {
		s.limit = min(s.limit, int(a.ReceiveMaximum))
	}
	s.expiry, s.expiresAt = a.Expiry, time.Time{}
	s.onWire, s.resends = 0, s.win.n > 0
	for i := range s.win.n {
		s.win.at(i).wire = false
	}
	s.mu.Unlock()

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
// connection is not passed on to the next one, though that be faster than the end
// (MQTT 3.1.1, 3.1.2.4; MQTT 5, 3.1.2.11.2), nor is one whose time is over.
func (e *Engine) session(key Key, clean bool) (s *Session, existed bool) {
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
	s = &Session{Key: key, engine: e, filters: map[string]Subscription{}, plan: &plan{}, pos: last}
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

// Superseded reports whether the session has had another connection after the given one.
func (s *Session) Superseded(conn *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attached != conn.attachment
}

// Groups returns the groups that the session knows its subject to be in.
func (s *Session) Groups() []string {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	return slices.Collect(maps.Keys(s.groups))
}

// Start begins delivery: first what the client has not acknowledged, then what it
// missed, then what comes. It is called when the CONNACK is on its way.
func (s *Session) Start(conn *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == conn && s.mode == offline {
		s.mode = behind
		s.wakeLocked()
	}
}

// Detach says that a connection is over. If it still has the session, the session goes
// offline and lives on for expiry, or ends if that is 0.
func (s *Session) Detach(conn *Conn, expiry time.Duration) {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	s.mu.Lock()
	current := s.conn == conn
	if current {
		s.expiry = expiry
	}
	s.mu.Unlock()
	if !current || s.ended {
		return
	}
	s.detachLocked(conn)
	if expiry == 0 {
		s.endLocked()
		return
	}
	s.engine.store.saveLogged(s, false)
}

// detachLocked takes the session from its connection. A connection other than the
// one given is told that it was taken over, and closed. subsMu is held.
func (s *Session) detachLocked(own *Conn) {
	delivered := s.engine.delivered.Load()
	s.mu.Lock()
	old := s.conn
	s.conn = nil
	if s.mode == live {
		// Everything of ours up to there was handed to us.
		s.pos = max(s.pos, delivered)
	}
	s.mode = offline
	s.movedLocked()
	if old != nil {
		s.expiresAt = s.engine.now().Add(s.expiry)
	}
	v5 := s.v5
	topics := s.topics
	s.mu.Unlock()
	for _, t := range topics {
		s.engine.unregister(t)
	}
	if old != nil && old != own {
		if v5 {
			old.send(disconnect(reasonTakenOver))
		}
		_ = old.Close()
	}
}

// end forgets the session for good.
func (s *Session) end() {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	s.detachLocked(nil)
	s.endLocked()
}

func (s *Session) endLocked() {
	if s.ended {
		return
	}
	s.ended = true
	e := s.engine
	if s.kept {
		// Before the key is free: a new session of this key stores its own.
		e.store.forget(s)
	}
	e.mu.Lock()
	delete(e.sessions, s.Key)
	delete(e.subjects[s.Subject], s)
	if len(e.subjects[s.Subject]) == 0 {
		delete(e.subjects, s.Subject)
	}
	e.mu.Unlock()
	if e.cfg.OnEnd != nil {
		e.cfg.OnEnd(s.Key)
	}
}

// Subscribe adds or replaces subscriptions. When it returns without an error, a
// session that outlives its connection has them on disk. filters of plain topics
// are only remembered.
func (s *Session) Subscribe(subs []Subscription, groups []string) error {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	before := maps.Clone(s.filters)
	for _, sub := range subs {
		s.filters[sub.Filter] = sub
	}
	s.groups = setOf(groups)
	if err := s.subscribeLocked(!maps.Equal(before, s.filters)); err != nil {
		s.filters = before
		_ = s.bringInLine()
		return err
	}
	return nil
}

// Unsubscribe removes subscriptions.
func (s *Session) Unsubscribe(filters []string) error {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	before := len(s.filters)
	for _, f := range filters {
		delete(s.filters, f)
	}
	return s.subscribeLocked(len(s.filters) != before)
}

// SetGroups tells a session which groups its subject is in now.
func (s *Session) SetGroups(groups []string) error {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	next := setOf(groups)
	if maps.Equal(next, s.groups) {
		return nil
	}
	s.groups = next
	return s.subscribeLocked(false)
}

// ChangeGroup tells a session that its subject joined or left a group.
func (s *Session) ChangeGroup(group string, member bool) error {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	if _, was := s.groups[group]; was == member {
		return nil
	}
	s.groups = maps.Clone(s.groups)
	if s.groups == nil {
		s.groups = map[string]struct{}{}
	}
	if member {
		s.groups[group] = struct{}{}
	} else {
		delete(s.groups, group)
	}
	return s.subscribeLocked(false)
}

// Filters returns the session's subscriptions.
func (s *Session) Filters() []Subscription {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	return slices.Collect(maps.Values(s.filters))
}

// subscribeLocked brings the topics in line with filters and groups and stores them,
// durably if topics have changed or the caller says that something has. subsMu is held.
func (s *Session) subscribeLocked(changed bool) error {
	if s.ended {
		return nil
	}
	changed = s.bringInLine() || changed
	return s.engine.store.saveSubscriptions(s, changed)
}

// bringInLine brings the topics in line with filters and groups and reports whether
// there are others now. subsMu is held.
func (s *Session) bringInLine() (changed bool) {
	want := expand(s.filters, s.Subject, s.groups, s.any)
	s.mu.Lock()
	have := s.topics
	attached := s.conn != nil
	s.mu.Unlock()

	next := make(map[string]*topicSub, len(want))
	var added, removed []*topicSub
	for topic, w := range want {
		t := have[topic]
		if t == nil {
			t = &topicSub{session: s, topic: topic, signal: w.signal, since: ^uint64(0)}
			added = append(added, t)
		}
		next[topic] = t
	}
	for topic, t := range have {
		if want[topic] == nil {
			removed = append(removed, t)
		}
	}
	if attached {
		// Into the registry first and then since: a message committed in between
		// is either from before the subscription or finds it there.
		for _, t := range next {
			if t.entry.Load() == nil {
				s.engine.register(t)
			}
		}
	}
	for _, t := range removed {
		s.engine.unregister(t)
	}
	first, last := s.engine.log.Bounds()
	s.mu.Lock()
	for topic, w := range want {
		t := next[topic]
		t.qos, t.noLocal, t.ids = w.qos, w.noLocal, w.ids
	}
	for _, t := range added {
		t.since = last
		if s.archiver {
			t.since = first - 1
		}
	}
	s.topics = next
	s.plan = newPlan(next)
	if s.archiver && len(added) > 0 {
		s.rewindLocked(first - 1)
	}
	s.mu.Unlock()
	return len(added)+len(removed) > 0
}

// rewindLocked makes a session read the log again after seq. The archive is to have all
// that the log has, also what was acknowledged before an archiver ever came; what it
// has already it recognises.
func (s *Session) rewindLocked(seq uint64) {
	if s.pos <= seq && s.mode != live {
		return
	}
	s.pos, s.rewound = seq, true
	s.movedLocked()
	if s.mode == live {
		s.mode = behind
	}
	s.wakeLocked()
}

// movedLocked says that the stored position is out of date.
func (s *Session) movedLocked() {
	if !s.dirty && s.expiry > 0 {
		s.dirty = true
		s.engine.dirty.add(s)
	}
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
	if oldest := s.win.oldest(s.restored != nil || s.rewound); oldest > 0 {
		cursor = min(cursor, oldest-1)
	}
	return cursor
}

// deliver hands a run to a live session. It falls behind if it cannot take it.
func (s *Session) deliver(t *topicSub, r *run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mode != live {
		return
	}
	recs := r.recs
	last := recs[len(recs)-1].Seq
	from := max(s.pos, t.since)
	if last <= from {
		return
	}
	if recs[0].Seq <= from || t.noLocal || t.ids != nil || r.expires {
		s.fallBehindLocked(recs[0].Seq)
		return
	}
	enc := r.encode(t.qos, s.v5)
	if enc.qos2 || s.maxPacket > 0 && enc.longest > int(s.maxPacket) {
		s.fallBehindLocked(recs[0].Seq)
		return
	}
	if len(enc.ids) == 0 {
		if !s.conn.offer(enc.frames) {
			s.fallBehindLocked(recs[0].Seq)
			return
		}
		s.pos = last
		s.movedLocked() // what was sent at QoS 0 is not to be sent again after a crash
		return
	}
	if len(enc.ids) > s.roomLocked() {
		s.fallBehindLocked(recs[0].Seq)
		return
	}
	if !s.conn.offerNumbered(enc.frames, enc.ids, s.win.nextID()) {
		s.fallBehindLocked(recs[0].Seq)
		return
	}
	for _, rec := range enc.numbers {
		s.win.push(inflight{seq: rec.Seq, topic: r.topic, qos: 1, wire: true})
	}
	s.onWire += len(enc.ids)
	s.pos = last
}

// fallBehindLocked makes a live session read on from the log, beginning with the
// message seq: it has no room for it, or the message wants more care than a run gets.
func (s *Session) fallBehindLocked(seq uint64) {
	s.mode, s.pos = behind, max(s.pos, seq-1)
	s.wakeLocked()
}

// wake makes a session that is behind read on.
func (s *Session) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakeLocked()
}

func (s *Session) wakeLocked() {
	if s.mode != behind {
		return
	}
	if s.pumping {
		s.again = true
		return
	}
	s.pumping = true
	s.engine.pumps.Add(1)
	go s.pump()
}

func setOf(ids []string) map[string]struct{} {
	m := make(map[string]struct{}, len(ids))
	for _, id := range ids {
		m[id] = struct{}{}
	}
	return m
}
