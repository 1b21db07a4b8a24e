package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"mynah/broker/msglog"
	"mynah/chat"
)

// Config is what an Engine needs. A zero field means its default.
type Config struct {
	Log    msglog.Log
	Logger *slog.Logger
	Limits *OutboxLimits

	MaxSessions    int   // sessions of one subject; default 200
	Window         int   // unacknowledged messages of a session; default 1,024
	ArchiverWindow int   // the same for the archiver; default 8,192
	Recent         int64 // bytes of the newest messages that are remembered for sessions slightly behind; default 32 MiB

	// PlainTopics serves topics outside the chat; default: there are none. A session may
	// have PlainMessages messages of them waiting or unacknowledged, default 10,000, that
	// weigh PlainBytes, default 8 MiB, and the less the more is held by all together, of
	// which PlainTotal, default 256 MiB, is the bound. What is beyond that is dropped.
	PlainTopics               PlainTopics
	PlainMessages, PlainBytes int
	PlainTotal                int64

	// OnEnd is told, before the key is free for another session, that one has ended. It
	// is called with locks of the session held and must not call the engine.
	OnEnd func(Key)

	Now func() time.Time // default time.Now
}

// Engine brings the log's messages to sessions.
type Engine struct {
	cfg     Config
	log     msglog.Log
	logger  *slog.Logger
	limits  *OutboxLimits
	store   *store
	crashes crashes
	reads   episode // of the log, for sessions that are behind
	now     func() time.Time
	after   func(time.Duration) <-chan time.Time

	// started is the seq of the last message that Deliver has begun with,
	// delivered of the last that it has done with.
	started, delivered atomic.Uint64
	closing            atomic.Bool
	attachments        atomic.Uint64 // how many connections have come

	mu       sync.RWMutex
	topics   map[string]*entry
	sessions map[Key]*Session
	subjects map[string]map[*Session]struct{}

	dirty   *sessionList  // their stored position is out of date
	lagging *sessionList  // they are to read on soon
	roomy   *sessionList  // they may give memory back
	left    chan struct{} // has a value when a session has gone offline

	serial    atomic.Uint64 // of the newest session
	plainHeld atomic.Int64  // bytes of what sessions hold of topics outside the chat

	// Used by Deliver only.
	run         run
	helper      helper
	recentFIFO  []*entry // one for each remembered message, oldest first
	recentBytes int64

	ctx    context.Context // ends with Stop
	cancel context.CancelFunc
	pumps  sync.WaitGroup
	tasks  sync.WaitGroup

	stats Stats
}

// Stats counts what an Engine did since it started.
type Stats struct {
	// Deliveries counts the messages that were put into outboxes: one for each session that
	// a message went to, however often it was sent to it again.
	Deliveries atomic.Uint64
	Signals    atomic.Uint64
	Dropped    atomic.Uint64 // signals that found no room
	TooLarge   atomic.Uint64 // messages over a client's Maximum Packet Size
	// PlainDropped counts messages of topics outside the chat that found no room at a
	// session.
	PlainDropped atomic.Uint64
}

// PlainHeld returns the bytes of messages of topics outside the chat that wait for clients
// or their acknowledgements.
func (e *Engine) PlainHeld() int64 { return e.plainHeld.Load() }

// Stats returns the counters.
func (e *Engine) Stats() *Stats { return &e.stats }

// New returns an Engine with the sessions that the log's store holds.
func New(cfg Config) (*Engine, error) {
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = 200
	}
	if cfg.Window == 0 {
		cfg.Window = 1024
	}
	if cfg.ArchiverWindow == 0 {
		cfg.ArchiverWindow = 8192
	}
	if cfg.Recent == 0 {
		cfg.Recent = 32 << 20
	}
	if cfg.PlainMessages == 0 {
		cfg.PlainMessages = 10000
	}
	if cfg.PlainBytes == 0 {
		cfg.PlainBytes = 8 << 20
	}
	if cfg.PlainTotal == 0 {
		cfg.PlainTotal = 256 << 20
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Limits == nil {
		cfg.Limits = &OutboxLimits{}
	}
	cfg.Limits.setDefaults()
	e := &Engine{
		cfg: cfg, log: cfg.Log, logger: cfg.Logger, limits: cfg.Limits, now: cfg.Now,
		store:    newStore(cfg.Log.Sessions(), cfg.Logger, cfg.Now),
		reads:    episode{fault: "reading the message log for sessions", logger: cfg.Logger, now: cfg.Now},
		topics:   map[string]*entry{},
		sessions: map[Key]*Session{},
		subjects: map[string]map[*Session]struct{}{},
		dirty:    newSessionList(), lagging: newSessionList(), roomy: newSessionList(),
		left:  make(chan struct{}, 1),
		after: time.After,
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	_, last := e.log.Bounds()
	e.started.Store(last)
	e.delivered.Store(last)
	if err := e.store.load(e); err != nil {
		return nil, fmt.Errorf("load sessions: %w", err)
	}
	return e, nil
}

// Limits returns the bounds of outboxes, for NewConn.
func (e *Engine) Limits() *OutboxLimits { return e.limits }

// Start begins to store positions and to end expired sessions.
func (e *Engine) Start() {
	e.lookForExpired() // the store may have had some
	e.tasks.Add(2)
	go func() {
		defer e.tasks.Done()
		e.store.commit(e.ctx.Done())
	}()
	go func() {
		defer e.tasks.Done()
		e.keepHouse()
	}()
}

// Stop ends delivery and stores all positions. Connections are closed by then or do
// not matter any more.
func (e *Engine) Stop() {
	if e.closing.Swap(true) {
		return
	}
	e.cancel()
	e.tasks.Wait() // first, since they wake sessions
	e.pumps.Wait()
	for _, s := range e.all() {
		s.mu.Lock()
		persistent := s.expiry > 0
		s.mu.Unlock()
		if persistent {
			e.store.saveLogged(s, false)
		}
	}
	if err := e.store.kv.Apply(nil, true); err != nil {
		e.logger.Error("cannot store the positions of sessions", "error", err)
	}
}

func (e *Engine) all() []*Session {
	e.mu.RLock()
	defer e.mu.RUnlock()
	all := make([]*Session, 0, len(e.sessions))
	for _, s := range e.sessions {
		all = append(all, s)
	}
	return all
}

// Sessions returns the sessions of a subject, attached or not.
func (e *Engine) Sessions(subject string) []*Session {
	e.mu.RLock()
	defer e.mu.RUnlock()
	of := make([]*Session, 0, len(e.subjects[subject]))
	for s := range e.subjects[subject] {
		of = append(of, s)
	}
	return of
}

// Count returns how many sessions there are, attached or not.
func (e *Engine) Count() int {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return len(e.sessions)
}

// Attached returns the session's connection, nil if it is offline.
func (s *Session) Attached() *Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn
}

// Archived returns the seq up to which every archiver has acknowledged, durably, and
// whether there is an archiver's session at all.
func (e *Engine) Archived() (seq uint64, known bool) {
	for _, s := range e.all() {
		s.mu.Lock()
		is := s.archiver
		s.mu.Unlock()
		if !is {
			continue
		}
		c := s.Cursor() // before it is stored, so that what is stored is no less
		e.store.saveLogged(s, true)
		if !known || c < seq {
			seq, known = c, true
		}
	}
	return seq, known
}

// Deliver hands committed messages, in the order of the log, to the sessions that are
// live. One goroutine calls it.
func (e *Engine) Deliver(recs []*msglog.Record) {
	if len(recs) == 0 {
		return
	}
	e.remember(recs)
	last := recs[len(recs)-1].Seq
	e.started.Store(last)
	now := e.now()
	for len(recs) > 0 {
		n := runLength(recs)
		part := recs[:n]
		recs = recs[n:]
		to := chat.ParseTopic(part[0].To)
		if to.Kind == chat.KindGroup {
			e.deliverRun(part[0].To, false, part, now, allGroups)
			e.limits.writers.help(&e.helper)
			continue
		}
		// The recipient first: a session that subscribes to both gets it there.
		e.deliverRun(part[0].To, false, part, now, allUsers)
		if from := part[0].From; from != to.ID {
			e.deliverRun(chat.UserTopic(from), true, part, now, "")
		}
	}
	e.delivered.Store(last)
}

// runLength returns how many messages from the first on can be handled as one.
func runLength(recs []*msglog.Record) int {
	bytes := 0
	for i, rec := range recs {
		bytes += len(rec.Tail)
		if i > 0 && (i >= maxRun || bytes > maxRunBytes || rec.To != recs[0].To || rec.From != recs[0].From) {
			return i
		}
	}
	return len(recs)
}

// deliverRun hands a run to the subscribers of a topic and to those of everybody, a
// wildcard that covers it.
func (e *Engine) deliverRun(topic string, sender bool, recs []*msglog.Record, now time.Time, everybody string) {
	e.mu.RLock()
	own := e.topics[topic]
	var wild *entry
	if everybody != "" {
		wild = e.topics[everybody]
	}
	e.mu.RUnlock()
	if own == nil && wild == nil {
		return
	}
	e.run.reset(topic, sender, recs, now)
	n := 0
	for _, en := range [...]*entry{own, wild} {
		if en == nil {
			continue
		}
		en.mu.RLock()
		for _, t := range en.subs {
			if t.session.deliver(t, &e.run) {
				n += len(recs)
			}
		}
		en.mu.RUnlock()
	}
	e.stats.Deliveries.Add(uint64(n)) //nolint:gosec // not negative
}

// remember keeps messages of topics that somebody attached subscribes to.
func (e *Engine) remember(recs []*msglog.Record) {
	for _, rec := range recs {
		e.rememberOn(rec.To, rec)
		if to := chat.ParseTopic(rec.To); to.Kind == chat.KindUser && to.ID != rec.From {
			e.rememberOn(chat.UserTopic(rec.From), rec)
		}
	}
	for e.recentBytes > e.cfg.Recent {
		e.forgetOldest()
	}
}

// recordOverhead is about what a remembered message costs beside its tail.
const recordOverhead = 256

func (e *Engine) rememberOn(topic string, rec *msglog.Record) {
	en := e.entryOf(topic)
	if en == nil {
		return
	}
	en.mu.Lock()
	en.recent = append(en.recent, rec)
	en.mu.Unlock()
	e.recentFIFO = append(e.recentFIFO, en)
	e.recentBytes += int64(len(rec.Tail) + recordOverhead)
}

func (e *Engine) forgetOldest() {
	en := e.recentFIFO[0]
	e.recentFIFO[0] = nil
	e.recentFIFO = e.recentFIFO[1:]
	en.mu.Lock()
	rec := en.recent[0]
	en.recent[0] = nil
	en.recent = en.recent[1:]
	en.recentFrom = max(en.recentFrom, rec.Seq)
	en.mu.Unlock()
	e.recentBytes -= int64(len(rec.Tail) + recordOverhead)
}

// Signal hands a message that is not logged to the attached sessions that subscribe to
// its topic, at QoS 0, and to none that is under pressure.
func (e *Engine) Signal(topic string, payload []byte) {
	if en := e.entryOf(topic); en != nil {
		e.signal(en, topic, payload)
	}
	if chat.ParseTopic(topic).Kind != chat.KindUserSignal {
		return
	}
	if en := e.entryOf(allUserSignals); en != nil {
		e.signal(en, topic, payload)
	}
}

// signal hands it to the sessions of one entry.
func (e *Engine) signal(en *entry, topic string, payload []byte) {
	var frames [2][]byte
	en.mu.RLock()
	defer en.mu.RUnlock()
	for _, t := range en.subs {
		s := t.session
		s.mu.Lock()
		conn, v5, maxPacket, ids, started := s.conn, s.v5, s.maxPacket, t.ids, s.mode != offline
		s.mu.Unlock()
		if conn == nil || !started {
			continue // nothing may come before the CONNACK
		}
		var frame []byte
		switch {
		case v5 && ids != nil:
			frame, _ = appendPublish(nil, topic, 0, false, true, appendProps(nil, 0, 0, ids), payload)
		case v5:
			if frames[1] == nil {
				frames[1], _ = appendPublish(nil, topic, 0, false, true, nil, payload)
			}
			frame = frames[1]
		default:
			if frames[0] == nil {
				frames[0], _ = appendPublish(nil, topic, 0, false, false, nil, payload)
			}
			frame = frames[0]
		}
		if (maxPacket == 0 || len(frame) <= int(maxPacket)) && conn.offerSignal(frame) {
			e.stats.Signals.Add(1)
		} else {
			e.stats.Dropped.Add(1)
		}
	}
}

// tooLarge tells a client that it misses a message because of its own Maximum Packet
// Size (MQTT 5, 3.1.2.11.4), so that it can fetch it from history.
func (e *Engine) tooLarge(s *Session, rec *msglog.Record) {
	e.stats.TooLarge.Add(1)
	refusal := chat.Refuse(chat.CodeTooLarge,
		fmt.Sprintf("message %d is larger than the maximum packet size that you announced; fetch it from history", rec.Seq))
	go e.Signal(chat.ErrorTopic(s.Subject), refusal.Payload(rec.To, rec.Mid))
}
