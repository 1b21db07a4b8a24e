package pubsub

import (
	"cmp"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"mynah/broker/outbox"
	"mynah/broker/session"
	"mynah/broker/state"
)

// Config is what Topics need. All is required.
type Config struct {
	Store  state.Store // of retained messages
	Logger *slog.Logger
	Limits *outbox.Limits // of all connections
	// MayRead reports whether a session's client may read a topic now. It may wait for
	// others, and is called without locks but those of a topic's order.
	MayRead  func(s *session.Session, topic string) bool
	Presence Presence
	// RetainedBytes bounds the memory of all retained messages together; default
	// DefaultRetainedBytes.
	RetainedBytes int64
	// MaxWildcards is how many different filters with wildcards a subject may have in all its
	// sessions together. They may have 8 times as many levels, and 20 times as many
	// subscriptions; default DefaultMaxWildcards. Privileged roles are not held to it.
	MaxWildcards int
	// Queues are the bounds of the sessions' queues, and whom they tell of what is too
	// large. What else they need, they have from here.
	Queues QueuesConfig
}

// DefaultRetainedBytes is the default of Config.RetainedBytes.
const DefaultRetainedBytes = 512 << 20

// Topics are the topics outside the chat. A message is in the queue of every session that is
// to get it before it is acknowledged to its publisher, and a session is in the tree from its
// SUBSCRIBE to its end, connected or not. It is safe for concurrent use.
type Topics struct {
	cfg Config

	mu        sync.RWMutex
	tree      filterTree
	wildcards map[string]*wildcards // by subject; those that have any

	retained retained
	queues   *Queues
}

// New returns Topics with the retained messages that the store holds. Errors are the store's.
func New(cfg Config) (*Topics, error) {
	t := &Topics{cfg: cfg, retained: retained{store: cfg.Store, logger: cfg.Logger, maxBytes: cmp.Or(cfg.RetainedBytes, DefaultRetainedBytes)}}
	cfg.Queues.Logger, cfg.Queues.Limits, cfg.Queues.Source, cfg.Queues.Orphan = cfg.Logger, cfg.Limits, t, t.orphaned
	t.queues = NewQueues(cfg.Queues)
	if err := t.retained.restore(); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *Topics) maxWildcards() int { return cmp.Or(t.cfg.MaxWildcards, DefaultMaxWildcards) }

// Queues returns the queues of the sessions.
func (t *Topics) Queues() *Queues { return t.queues }

// Stop ends what runs in the background, and waits for it.
func (t *Topics) Stop() { t.queues.Stop() }

// Subscribed adds a subscription of a session, or replaces that with the same filter.
func (t *Topics) Subscribed(s *session.Session, f session.Subscription) {
	if TooDeep(f.Filter) {
		return // it was stored before that was refused
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tree.put(s, f) {
		t.addWildcard(s.Subject, f.Filter)
	}
}

// Unsubscribed takes out subscriptions of a session, and what waits for it because of them.
func (t *Topics) Unsubscribed(s *session.Session, filters ...string) {
	t.unsubscribed(s, filters)
	t.queues.ForgetRetained(s, filters...)
}

func (t *Topics) unsubscribed(s *session.Session, filters []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range filters {
		if t.tree.remove(s, f) {
			t.removeWildcard(s.Subject, f)
		}
	}
}

// audience is who is to get a message.
type audience struct {
	sessions map[*session.Session]Options
	shares   map[string]subscribers // members of shared subscriptions, by filter
	matched  bool                   // somebody has subscribed
}

// audienceOf returns who is to get a message. A session with several subscriptions that
// match gets it once, at the highest QoS and with all identifiers (MQTT 5, 3.3.4).
func (t *Topics) audienceOf(m *Message) audience {
	a := t.collect(m)
	for s, o := range a.sessions {
		if len(o.IDs) > 1 {
			slices.Sort(o.IDs)
			o.IDs = slices.Compact(o.IDs)
			a.sessions[s] = o
		}
	}
	return a
}

// collect is audienceOf with identifiers as they are found, repeated and in no order. What
// it does for each subscription that matches is the same however many there are: mu is held.
func (t *Topics) collect(m *Message) (a audience) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	t.tree.match(m.Topic, func(n *filterNode) {
		for s, f := range n.subs {
			a.matched = true
			if f.NoLocal && m.From == s.Key { // [MQTT-3.8.3-3]
				continue
			}
			if a.sessions == nil {
				a.sessions = map[*session.Session]Options{}
			}
			o := a.sessions[s]
			o.QoS, o.Retain = max(o.QoS, f.QoS), o.Retain || f.RetainAsPublished
			if f.Identifier != 0 {
				o.IDs = append(o.IDs, f.Identifier)
			}
			a.sessions[s] = o
		}
		for filter, members := range n.shares {
			a.matched = true
			if a.shares == nil {
				a.shares = map[string]subscribers{}
			}
			a.shares[filter] = maps.Clone(members)
		}
	})
	return a
}

// fanOut puts a message into the queues of all who are to get it. It reports false if
// nobody has subscribed to its topic.
func (t *Topics) fanOut(m *Message) (matched bool) {
	a := t.audienceOf(m)
	for s, o := range a.sessions {
		if t.cfg.MayRead(s, m.Topic) {
			t.queues.Put(s, m, o)
		}
	}
	for filter, members := range a.shares {
		t.share(m, filter, members)
	}
	return a.matched
}

// share gives a message to one of the members of a shared subscription (MQTT 5, 4.8.2): to
// one that is connected and has room, if there is one.
func (t *Topics) share(m *Message, filter string, members subscribers) {
	online, offline := make([]*session.Session, 0, len(members)), []*session.Session(nil)
	for s := range members {
		if s.Attached() != nil {
			online = append(online, s)
		} else {
			offline = append(offline, s)
		}
	}
	for _, sessions := range [][]*session.Session{online, offline} {
		// Whose turn it is need not be a secret, but of those who are there, all are
		// to get as much.
		rand.Shuffle(len(sessions), func(i, j int) { sessions[i], sessions[j] = sessions[j], sessions[i] }) //nolint:gosec // see above
		for _, s := range sessions {
			if !t.cfg.MayRead(s, m.Topic) {
				continue
			}
			f := members[s]
			o := Options{QoS: f.QoS, Retain: f.RetainAsPublished, Share: filter}
			if f.Identifier != 0 {
				o.IDs = []int{f.Identifier}
			}
			if t.queues.Put(s, m, o) {
				return
			}
		}
	}
}

// orphaned gives somebody else what a session that has ended was given by a shared
// subscription.
func (t *Topics) orphaned(left []Orphan) {
	for _, o := range left {
		t.share(o.Message, o.Share, t.audienceOf(o.Message).shares[o.Share])
	}
}

// Publish retains a message if that is asked for, and fans it out. It reports false if
// nobody has subscribed to its topic.
func (t *Topics) Publish(m *Message) (matched bool) {
	if m.Retain {
		// Whoever is there gets the messages of a topic in the order in which they
		// are retained, the last of them last.
		defer t.retained.inOrder(m.Topic)()
		t.retained.retain(m, true)
	}
	return t.fanOut(m)
}

// PublishLatest is Publish for what the broker itself tells, of which only the latest
// matters. It is retained in memory only.
func (t *Topics) PublishLatest(topic string, payload []byte, qos byte) {
	m := &Message{Topic: topic, Payload: payload, QoS: qos, Retain: true, Latest: true}
	defer t.retained.inOrder(topic)()
	t.retained.retain(m, false)
	t.fanOut(m)
}
