package pubsub

import (
	"cmp"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"mynah/broker/outbox"
	"mynah/broker/session"
	"mynah/chat"
)

// QueuesConfig is what Queues need. A zero field means its default.
type QueuesConfig struct {
	Logger *slog.Logger     // required
	Limits *outbox.Limits   // of all connections; required
	Source RetainedSource   // default: nothing is retained
	Orphan func([]Orphan)   // default: nobody
	Now    func() time.Time // default time.Now

	// A session may have Messages messages waiting or unacknowledged that weigh Bytes,
	// and the less the more is held by all together, of which Total is the bound. What is
	// beyond that is dropped.
	Messages, Bytes int
	Total           int64

	// TooLarge is told that a client misses a message on a topic because of its own
	// Maximum Packet Size. It is called with the session's Mu held and must not wait.
	TooLarge func(s *session.Session, topic string)
}

// Defaults of QueuesConfig.
const (
	DefaultQueuedMessages = 10_000
	DefaultQueuedBytes    = 8 << 20
	DefaultQueuedTotal    = 256 << 20
)

// RetainedSource has the retained messages of topics.
type RetainedSource interface {
	// Retained returns the retained message of a topic, nil if there is none, if that is
	// known without waiting for a disk or for anybody else. It is called with a session's
	// Mu held.
	Retained(topic string) (m *Message, known bool)
	// LookUpRetained returns what Retained does not know. It is called without locks.
	LookUpRetained(topic string) *Message
}

// Queues are the queues of all sessions together: the bounds that they share, and what is
// counted. They are safe for concurrent use.
type Queues struct {
	cfg     QueuesConfig
	held    atomic.Int64 // bytes of what sessions hold
	closing atomic.Bool
	tasks   sync.WaitGroup
	stats   Stats
}

// Stats counts what Queues did since they were made.
type Stats struct {
	// Deliveries counts the messages that were put into outboxes, however often each was
	// sent again.
	Deliveries atomic.Uint64
	Dropped    atomic.Uint64 // messages that found no room at a session
	TooLarge   atomic.Uint64 // messages over a client's Maximum Packet Size
}

// NewQueues returns Queues in which nothing is.
func NewQueues(cfg QueuesConfig) *Queues {
	cfg.Messages = cmp.Or(cfg.Messages, DefaultQueuedMessages)
	cfg.Bytes = cmp.Or(cfg.Bytes, DefaultQueuedBytes)
	cfg.Total = cmp.Or(cfg.Total, DefaultQueuedTotal)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Queues{cfg: cfg}
}

// Stop ends what runs in the background, and waits for it. Sessions take messages after that
// as before, but what is retained is not looked for on disk any more, and what a session
// leaves behind is lost.
func (qs *Queues) Stop() {
	qs.closing.Store(true)
	qs.tasks.Wait()
}

// Stats returns the counters.
func (qs *Queues) Stats() *Stats { return &qs.stats }

// Held returns the bytes of messages that wait for clients or their acknowledgements.
func (qs *Queues) Held() int64 { return qs.held.Load() }

// of returns a session's queue, nil if it has none. s.Mu is held.
func (qs *Queues) of(s *session.Session) *queue {
	q, _ := s.Queue.(*queue)
	return q
}

// make returns a session's queue, which most sessions never need. s.Mu is held.
func (qs *Queues) make(s *session.Session) *queue {
	q := qs.of(s)
	if q == nil {
		q = &queue{qs: qs, s: s}
		s.Queue = q
	}
	return q
}

// Put gives a session a message, to be sent when its turn comes. It reports false if the
// session does not take it: it has ended, it is offline and the message would go at QoS 0, or
// it has as much waiting as it may.
func (qs *Queues) Put(s *session.Session, m *Message, o Options) bool {
	it := item{msg: m, ids: o.IDs, share: o.Share, qos: min(m.QoS, o.QoS), retain: m.Retain && o.Retain}
	defer s.Survive()
	s.Mu.Lock()
	defer s.Mu.Unlock()
	it.prompt = m.Expires == chat.AtOnce
	if s.HasEnded || (it.qos == 0 || it.prompt) && s.Conn == nil {
		return false
	}
	return qs.make(s).put(it)
}

// PutRetained has the retained messages of topics sent, as they are when their turn comes:
// what is published meanwhile is never followed by what it replaced. filter is that of the
// SUBSCRIBE; what an earlier one with the same filter asked for need not be sent any more.
func (qs *Queues) PutRetained(s *session.Session, filter string, topics []string, o Options) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if !s.HasEnded && len(topics) > 0 {
		qs.make(s).putRetained(filter, topics, o)
	}
}

// ForgetRetained takes out what earlier SUBSCRIBEs with these filters asked for. Before
// PutRetained for many filters it saves a walk through what waits for each.
func (qs *Queues) ForgetRetained(s *session.Session, filters ...string) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if q := qs.of(s); q != nil {
		q.forgetRetained(filters...)
	}
}

// Topics returns the topics of which messages wait, or are under way, for a session.
func (qs *Queues) Topics(s *session.Session) []string {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if q := qs.of(s); q != nil {
		return q.topics()
	}
	return nil
}

// ForgetTopics forgets the messages of topics that a session's client may not read any more,
// but for those that it has been sent on its present connection.
func (qs *Queues) ForgetTopics(s *session.Session, topics map[string]struct{}) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if q := qs.of(s); q != nil {
		q.forgetTopics(topics)
	}
}

// orphan passes on what a session has left behind, on a goroutine of its own.
func (qs *Queues) orphan(left []Orphan) {
	if len(left) > 0 && qs.cfg.Orphan != nil && !qs.closing.Load() {
		qs.tasks.Go(func() { qs.cfg.Orphan(left) })
	}
}

// tooLarge says that a client misses a message because of its own Maximum Packet Size. s.Mu
// is held.
func (qs *Queues) tooLarge(s *session.Session, topic string) {
	qs.stats.TooLarge.Add(1)
	if qs.cfg.TooLarge != nil {
		qs.cfg.TooLarge(s, topic)
	}
}
