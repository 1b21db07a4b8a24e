package delivery

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/session"
	"mynah/broker/state"
)

// Config is what an Engine needs. A zero field means its default.
type Config struct {
	Log    msglog.Reader // what sessions read; required
	State  state.Store   // what is kept of sessions; required
	Logger *slog.Logger
	Limits *outbox.Limits // of all connections; default: its defaults

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
	OnEnd func(session.Key)

	Now func() time.Time // default time.Now
}

// Defaults of Config.
const (
	DefaultMaxSessions   = 200
	DefaultWindow        = 1024
	DefaultPlainMessages = 10_000
	DefaultPlainBytes    = 8 << 20
	DefaultPlainTotal    = 256 << 20
)

// Engine brings the log's messages to sessions.
type Engine struct {
	cfg     Config
	log     msglog.Reader
	logger  *slog.Logger
	limits  *outbox.Limits
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

	room     sync.Mutex // held by makeRoom; taken before every lock of a session
	mu       sync.RWMutex
	topics   map[string]*entry
	sessions map[session.Key]*Session
	subjects map[string]map[*Session]struct{}

	dirty   *sessionList  // their stored position is out of date
	lagging *sessionList  // they are to read on soon
	roomy   *sessionList  // they may give memory back
	left    chan struct{} // has a value when a session has gone offline

	plainHeld atomic.Int64 // bytes of what sessions hold of topics outside the chat

	// Used by Deliver only.
	run         run
	helper      outbox.WriteHelper
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

func (cfg *Config) setDefaults() {
	cfg.MaxSessions = cmp.Or(cfg.MaxSessions, DefaultMaxSessions)
	cfg.Window = cmp.Or(cfg.Window, DefaultWindow)
	cfg.ArchiverWindow = cmp.Or(cfg.ArchiverWindow, 8192)
	cfg.Recent = cmp.Or(cfg.Recent, 32<<20)
	cfg.PlainMessages = cmp.Or(cfg.PlainMessages, DefaultPlainMessages)
	cfg.PlainBytes = cmp.Or(cfg.PlainBytes, DefaultPlainBytes)
	cfg.PlainTotal = cmp.Or(cfg.PlainTotal, DefaultPlainTotal)
	cfg.Limits = cmp.Or(cfg.Limits, &outbox.Limits{})
	cfg.Limits.SetDefaults()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
}

// New returns an Engine with the sessions that the log's store holds.
func New(cfg Config) (*Engine, error) {
	cfg.setDefaults()
	e := &Engine{
		cfg: cfg, log: cfg.Log, logger: cfg.Logger, limits: cfg.Limits, now: cfg.Now,
		store:    newStore(cfg.State, cfg.Logger, cfg.Now),
		reads:    episode{fault: "reading the message log for sessions", logger: cfg.Logger, now: cfg.Now},
		topics:   map[string]*entry{},
		sessions: map[session.Key]*Session{},
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
func (e *Engine) Limits() *outbox.Limits { return e.limits }

// Start begins to store positions and to end expired sessions, and those of which a subject
// has too many.
func (e *Engine) Start() {
	e.mu.RLock()
	subjects := slices.Collect(maps.Keys(e.subjects))
	e.mu.RUnlock()
	for _, subject := range subjects {
		e.makeRoom(subject)
	}
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

// Subscriptions returns how many subscriptions all sessions have.
func (e *Engine) Subscriptions() (n int) {
	for _, s := range e.all() {
		s.subsMu.Lock()
		n += len(s.filters)
		s.subsMu.Unlock()
	}
	return n
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
