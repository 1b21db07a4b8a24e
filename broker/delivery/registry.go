package delivery

import (
	"sync"
	"sync/atomic"

	"mynah/broker/msglog"
)

// entry is a topic with the attached sessions that subscribe to it.
type entry struct {
	topic string

	mu   sync.RWMutex
	subs []*topicSub
	// recent holds the newest messages of the topic: all those after seq
	// recentFrom that the engine has started to deliver.
	recent     []*msglog.Record
	recentFrom uint64
}

// topicSub is a session's subscription to one topic of the chat: the sum of its filters that
// stand for the topic.
type topicSub struct {
	feed   *feed
	topic  string
	signal bool                  // not logged
	entry  atomic.Pointer[entry] // nil while the session is not attached; set with Changes held
	index  int                   // in entry.subs; guarded by entry.mu

	// Messages up to here are from before the subscription. It is set once,
	// before the pump gets to see the subscription.
	since uint64

	// Guarded by the session's Mu. ids is replaced, never changed.
	qos     byte
	noLocal bool
	ids     []int // MQTT 5 subscription identifiers
}

// registry finds the attached sessions that subscribe to a topic.
type registry struct {
	log    msglog.Reader
	mu     sync.RWMutex
	topics map[string]*entry
}

// add adds a subscription of an attached session to its topic.
func (r *registry) add(t *topicSub) {
	r.mu.Lock()
	defer r.mu.Unlock()
	en := r.topics[t.topic]
	if en == nil {
		_, last := r.log.Bounds()
		en = &entry{topic: t.topic, recentFrom: last}
		r.topics[t.topic] = en
	}
	en.mu.Lock()
	defer en.mu.Unlock()
	t.index = len(en.subs)
	t.entry.Store(en)
	en.subs = append(en.subs, t)
}

// remove takes it out again.
func (r *registry) remove(t *topicSub) {
	en := t.entry.Load()
	if en == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	en.mu.Lock()
	defer en.mu.Unlock()
	last := len(en.subs) - 1
	moved := en.subs[last]
	en.subs[t.index], moved.index = moved, t.index
	en.subs[last] = nil
	en.subs = en.subs[:last]
	t.entry.Store(nil)
	if last == 0 {
		delete(r.topics, t.topic)
	}
}

// get returns the entry of a topic, nil if nobody attached subscribes to it.
func (r *registry) get(topic string) *entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.topics[topic]
}

// pair returns the entries of two topics; the second may be "" for none.
func (r *registry) pair(topic, other string) (en, also *entry) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if en = r.topics[topic]; other != "" {
		also = r.topics[other]
	}
	return en, also
}

// audience returns how many attached sessions subscribe to a topic.
func (r *registry) audience(topic string) int {
	en := r.get(topic)
	if en == nil {
		return 0
	}
	en.mu.RLock()
	defer en.mu.RUnlock()
	return len(en.subs)
}
