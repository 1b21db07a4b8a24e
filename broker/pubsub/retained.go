package pubsub

import (
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"mynah/broker/packet"
	"mynah/broker/session"
	"mynah/broker/state"
	"mynah/chat"
)

// retainedPrefix begins the keys of retained messages.
const retainedPrefix = "retained/"

// retainedOverhead is about what a retained message costs beside its bytes.
const retainedOverhead = 512

// retained are the retained messages of topics outside the chat (MQTT 5, 3.3.1.3), in memory
// and, but for the broker's own, on disk. Those of presence are not among them: see Presence.
type retained struct {
	store    state.Store
	logger   *slog.Logger
	maxBytes int64        // of all messages together
	failing  atomic.Int64 // when it was last logged that storing fails, in seconds since 1970

	// order is held from retaining a message to the end of its fan-out, one of them for
	// each topic.
	order [64]sync.Mutex

	mu       sync.RWMutex
	messages topicTree[*Message]
	bytes    int64
	own      int // how many of the messages are the broker's own, on topics with $
}

// inOrder locks a topic and returns what unlocks it.
func (r *retained) inOrder(topic string) (unlock func()) {
	mu := &r.order[xxhash.Sum64String(topic)%uint64(len(r.order))]
	mu.Lock()
	return mu.Unlock
}

// storedRetained is a retained message as it is stored.
type storedRetained struct {
	Topic   string `json:"topic"`
	Payload []byte `json:"payload"`
	QoS     byte   `json:"qos"`
	Expires int64  `json:"expires,omitempty"` // milliseconds since 1970, 0 for never
	Props   []byte `json:"props,omitempty"`   // MQTT 5 properties as in a PUBLISH
}

func retainedCost(topic string, payload []byte) int64 {
	return int64(len(topic) + len(payload) + retainedOverhead)
}

// admit reports why a message cannot be retained, if it is to be.
func (r *retained) admit(topic string, payload []byte, retain bool) error {
	if !retain || len(payload) == 0 {
		return nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	more := retainedCost(topic, payload)
	if old, ok := r.messages.get(topic); ok {
		more -= retainedCost(topic, old.Payload)
	}
	if more > 0 && r.bytes+more > r.maxBytes {
		return chat.Refuse(chat.CodeTooLarge, "the server retains as many messages as it can; take back others with an empty payload")
	}
	return nil
}

// retain replaces the retained message of a topic, or deletes it if the payload is
// empty or is for nobody who comes later. With keep, that survives a restart.
func (r *retained) retain(m *Message, keep bool) {
	r.mu.Lock()
	own := strings.HasPrefix(m.Topic, "$")
	if old, ok := r.messages.get(m.Topic); ok {
		r.bytes -= retainedCost(m.Topic, old.Payload)
		if own {
			r.own--
		}
	}
	keeps := len(m.Payload) > 0 && m.Expires != chat.AtOnce
	if keeps {
		r.messages.put(m.Topic, m)
		r.bytes += retainedCost(m.Topic, m.Payload)
		if own {
			r.own++
		}
	} else {
		r.messages.remove(m.Topic)
	}
	r.mu.Unlock()
	if !keep {
		return
	}
	op := state.Op{Key: retainedPrefix + m.Topic, Delete: !keeps}
	if !op.Delete {
		v, err := json.Marshal(storedRetained{m.Topic, m.Payload, m.QoS, m.Expires, m.Props})
		if err != nil {
			return // it has nothing that JSON does not
		}
		op.Value = v
	}
	durably := m.QoS > 0 // its acknowledgement says so
	if err := r.store.Apply([]state.Op{op}, durably); err != nil {
		r.logFailure(m.Topic, err)
	}
}

// logFailure logs, at most once a minute, that retained messages cannot be stored.
func (r *retained) logFailure(topic string, err error) {
	now := time.Now().Unix()
	if last := r.failing.Load(); now-last >= 60 && r.failing.CompareAndSwap(last, now) {
		r.logger.Warn("cannot store retained messages; after a restart they will be as they were before",
			"topic", topic, "error", err)
	}
}

// count returns how many there are of clients.
func (r *retained) count() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.messages.len() - r.own
}

// get returns the retained message of a topic that has not expired, nil if there is none.
func (r *retained) get(topic string) *Message {
	r.mu.RLock()
	defer r.mu.RUnlock()
	m, _ := r.messages.get(topic)
	if m == nil || m.Expires > 0 && m.Expires <= time.Now().UnixMilli() {
		return nil
	}
	return m
}

// match returns the topics with retained messages that a filter matches.
func (r *retained) match(filter string) (topics []string) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.messages.match(filter, func(topic string, _ *Message) { topics = append(topics, topic) })
	return topics
}

// Retained implements RetainedSource.
func (t *Topics) Retained(topic string) (m *Message, known bool) {
	if p := chat.ParseTopic(topic); p.Kind == chat.KindPresence {
		payload, known := t.cfg.Presence.InMemory(p.ID)
		return presenceMessage(topic, payload), known
	}
	return t.retained.get(topic), true
}

// LookUpRetained implements RetainedSource.
func (t *Topics) LookUpRetained(topic string) *Message {
	p := chat.ParseTopic(topic)
	if p.Kind != chat.KindPresence {
		return nil // all others are in memory
	}
	return presenceMessage(topic, t.cfg.Presence.LookUp(p.ID))
}

// AdmitRetained reports why a message cannot be retained, if it is to be.
func (t *Topics) AdmitRetained(topic string, payload []byte, retain bool) error {
	return t.retained.admit(topic, payload, retain)
}

// RetainedFor returns the topics that a filter matches, that have retained messages and that
// the session's client may read, in order.
func (t *Topics) RetainedFor(s *session.Session, filter string) []string {
	topics := append(t.retained.match(filter), t.presenceTopics(filter)...)
	topics = slices.DeleteFunc(topics, func(topic string) bool { return !t.cfg.MayRead(s, topic) })
	slices.Sort(topics)
	return topics
}

// RetainedCount returns how many messages of clients are retained.
func (t *Topics) RetainedCount() int { return t.retained.count() }

// ForgetExpired forgets the retained messages whose time was over at now, in milliseconds
// since 1970.
func (t *Topics) ForgetExpired(now int64) { t.retained.forgetExpired(now) }

// forgetExpired forgets the retained messages whose time was over at now, in milliseconds
// since 1970. Nobody has been sent them since.
func (r *retained) forgetExpired(now int64) {
	var over []string
	r.mu.RLock()
	r.messages.match("#", func(topic string, m *Message) {
		if m.Expires > 0 && m.Expires <= now {
			over = append(over, topic)
		}
	})
	r.mu.RUnlock()
	for _, topic := range over {
		func() {
			defer r.inOrder(topic)()
			r.mu.RLock()
			m, _ := r.messages.get(topic)
			r.mu.RUnlock()
			if m != nil && m.Expires > 0 && m.Expires <= now {
				r.retain(&Message{Topic: topic}, true)
			}
		}()
	}
}

// restore brings back the retained messages that were stored.
func (r *retained) restore() error {
	now := time.Now().UnixMilli()
	return r.store.Scan(retainedPrefix, func(_ string, value []byte) bool {
		var m storedRetained
		if json.Unmarshal(value, &m) == nil && (m.Expires == 0 || m.Expires > now) && !TooDeep(m.Topic) && packet.ValidTopic(m.Topic) {
			r.retain(&Message{
				Topic: m.Topic, Payload: m.Payload, QoS: m.QoS, Retain: true, Props: m.Props, Expires: m.Expires,
			}, false)
		}
		return true
	})
}
