package delivery

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/session"
	"mynah/broker/state"
	"mynah/internal/loglimit"
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

	// Observer hears of the sessions' subscriptions outside the chat; default: nobody.
	Observer Observer

	// OnEnd is told, before the key is free for another session, that one has ended. It
	// is called with locks of the session held and must not call the engine.
	OnEnd func(session.Key)

	Now func() time.Time // default time.Now
}

// Defaults of Config.
const (
	DefaultMaxSessions = 200
	DefaultWindow      = 1024
)

// Observer hears of subscriptions outside the chat: at the start of all stored ones, then of
// every change, in order, until the session's end. It is called with the session's Changes
// held and must not call the engine.
type Observer interface {
	Subscribed(s *session.Session, sub session.Subscription)
	Unsubscribed(s *session.Session, filters ...string)
}

// Engine brings the log's messages to sessions.
type Engine struct {
	cfg     Config
	log     msglog.Reader
	logger  *slog.Logger
	limits  *outbox.Limits
	store   *session.Store
	crashes crashes
	reads   *loglimit.Episode // of the log, for sessions that are behind
	now     func() time.Time
	after   func(time.Duration) <-chan time.Time

	// started is the seq of the last message that Deliver has begun with,
	// delivered of the last that it has done with.
	started, delivered atomic.Uint64
	closing            atomic.Bool
	attachments        atomic.Uint64 // how many connections have come

	makingRoom sync.Mutex // held by enforceMaxSessions; taken before every lock of a session
	sessions   *table
	topics     *registry

	dirty      *sessionList  // their stored position is out of date
	refillSoon *sessionList  // they are to read on soon
	oversized  *sessionList  // they may give memory back
	left       chan struct{} // has a value when a session has gone offline

	// Used by Deliver only.
	run    run
	helper outbox.WriteHelper
	recent recent

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
}

// Stats returns the counters.
func (e *Engine) Stats() *Stats { return &e.stats }

func (cfg *Config) setDefaults() {
	cfg.MaxSessions = cmp.Or(cfg.MaxSessions, DefaultMaxSessions)
	cfg.Window = cmp.Or(cfg.Window, DefaultWindow)
	cfg.ArchiverWindow = cmp.Or(cfg.ArchiverWindow, 8192)
	cfg.Recent = cmp.Or(cfg.Recent, 32<<20)
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
		store:    session.NewStore(cfg.State, cfg.Logger, cfg.Now),
		reads:    loglimit.NewEpisode("reading the message log for sessions", cfg.Logger, cfg.Now),
		sessions: newTable(),
		topics:   &registry{log: cfg.Log, topics: map[string]*entry{}},
		dirty:    newSessionList(), refillSoon: newSessionList(), oversized: newSessionList(),
		left:  make(chan struct{}, 1),
		after: time.After,
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	_, last := e.log.Bounds()
	e.started.Store(last)
	e.delivered.Store(last)
	e.recent = recent{topics: e.topics, max: cfg.Recent}
	if err := e.load(); err != nil {
		return nil, err
	}
	return e, nil
}

// Limits returns the bounds of outboxes, for NewConn.
func (e *Engine) Limits() *outbox.Limits { return e.limits }

// Start begins to store positions and to end expired sessions, and those of which a subject
// has too many.
func (e *Engine) Start() {
	for _, subject := range e.sessions.subjects() {
		e.enforceMaxSessions(subject)
	}
	e.checkExpirySoon() // the store may have had some
	e.tasks.Add(2)
	go func() {
		defer e.tasks.Done()
		e.store.Run(e.ctx.Done())
	}()
	go func() {
		defer e.tasks.Done()
		e.runMaintenance()
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
	for _, s := range e.sessions.all() {
		if s.Persistent() {
			e.savePosition(&s.feed, false)
		}
	}
	if err := e.store.Sync(); err != nil {
		e.logger.Error("cannot store the positions of sessions", "error", err)
	}
}

// Sessions returns the sessions of a subject, attached or not.
func (e *Engine) Sessions(subject string) []*Session { return e.sessions.of(subject) }

// Count returns how many sessions there are, attached or not.
func (e *Engine) Count() int { return e.sessions.count() }

// Subscriptions returns how many subscriptions all sessions have.
func (e *Engine) Subscriptions() (n int) {
	for _, s := range e.sessions.all() {
		s.Changes.Lock()
		n += len(s.Filters)
		s.Changes.Unlock()
	}
	return n
}

// Archived returns the seq up to which every archiver has acknowledged, durably, and
// whether there is an archiver's session at all.
func (e *Engine) Archived() (seq uint64, known bool) {
	for _, s := range e.sessions.all() {
		if !s.IsArchiver() {
			continue
		}
		c := s.Cursor() // before it is stored, so that what is stored is no less
		e.savePosition(&s.feed, true)
		if !known || c < seq {
			seq, known = c, true
		}
	}
	return seq, known
}

// readFailed reports whether the outcome of reading the log for a session is to be logged as
// the beginning of a fault. That it has been closed is none.
func (e *Engine) readFailed(err error) bool {
	return !errors.Is(err, msglog.ErrClosed) && e.reads.Observe(err)
}
