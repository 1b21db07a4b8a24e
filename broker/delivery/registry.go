package delivery

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"mynah/broker/msglog"
	"mynah/broker/session"
	"mynah/chat"
)

// Filters that stand for every user's or every group's topic. Only privileged
// roles get to subscribe to them.
const (
	allUsers       = "user/#"  // what is logged on them
	allGroups      = "group/#" // the same
	allUserSignals = "user/+/signal"
)

// Filters that stand for the groups of the subscriber.
const (
	ownGroups       = "group/+"
	ownGroupSignals = "group/+/signal"
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

// topicSub is a session's subscription to one delivery topic: the sum of its filters
// that stand for the topic.
type topicSub struct {
	session *Session
	topic   string
	signal  bool                  // not logged
	entry   atomic.Pointer[entry] // nil while the session is not attached; set with subsMu held
	index   int                   // in entry.subs; guarded by entry.mu

	// Messages up to here are from before the subscription. It is set once,
	// before the pump gets to see the subscription.
	since uint64

	// Guarded by session.mu. ids is replaced, never changed.
	qos     byte
	noLocal bool
	ids     []int // MQTT 5 subscription identifiers
}

// expand returns the delivery topics that the filters stand for, given the subscriber
// and its groups. Others' topics are only for those who may read any. It is asked anew
// with every connection, since the next token may say less than the one with which the
// session subscribed. Overlapping filters are joined: the highest QoS counts
// [MQTT-3.3.4-2], all identifiers are told, and No Local holds if all ask for it.
func expand(filters map[string]session.Subscription, subject string, groups map[string]struct{}, anyTopic bool) map[string]*topicSub {
	topics := make(map[string]*topicSub, len(filters))
	add := func(topic string, signal bool, f session.Subscription) {
		t := topics[topic]
		if t == nil {
			t = &topicSub{topic: topic, signal: signal, noLocal: true}
			topics[topic] = t
		}
		t.join(f.QoS, f.NoLocal, f.Identifier)
	}
	for filter, f := range filters {
		switch filter {
		case ownGroups:
			for g := range groups {
				add(chat.GroupTopic(g), false, f)
			}
		case ownGroupSignals:
			for g := range groups {
				add(chat.GroupTopic(g)+"/signal", true, f)
			}
		case allUsers, "user/+":
			if anyTopic {
				add(allUsers, false, f)
			}
		case allGroups:
			if anyTopic {
				add(allGroups, false, f)
			}
		case allUserSignals:
			if anyTopic {
				add(allUserSignals, true, f)
			}
		default:
			switch t := chat.ParseTopic(filter); t.Kind {
			case chat.KindUser, chat.KindUserSignal, chat.KindUserError:
				if t.ID == subject || anyTopic {
					add(filter, t.Kind != chat.KindUser, f)
				}
			case chat.KindGroup, chat.KindGroupSignal:
				// The filter of somebody who was removed from the group stays,
				// and works again when it is taken back.
				if _, member := groups[t.ID]; member || anyTopic {
					add(filter, t.Kind == chat.KindGroupSignal, f)
				}
			}
		}
	}
	for topic, t := range topics {
		for _, all := range [...]string{allUsers, allGroups} {
			wild := topics[all]
			if wild == nil || t == wild || t.signal || !strings.HasPrefix(topic, all[:len(all)-1]) {
				continue
			}
			t.join(wild.qos, wild.noLocal, wild.ids...)
		}
	}
	return topics
}

// join adds what another filter asks for.
func (t *topicSub) join(qos byte, noLocal bool, ids ...int) {
	t.qos = max(t.qos, qos)
	t.noLocal = t.noLocal && noLocal
	for _, id := range ids {
		if at, had := slices.BinarySearch(t.ids, id); id != 0 && !had {
			t.ids = slices.Insert(t.ids, at, id)
		}
	}
}

// register adds a subscription of an attached session to its topic.
func (e *Engine) register(t *topicSub) {
	e.mu.Lock()
	defer e.mu.Unlock()
	en := e.topics[t.topic]
	if en == nil {
		_, last := e.log.Bounds()
		en = &entry{topic: t.topic, recentFrom: last}
		e.topics[t.topic] = en
	}
	en.mu.Lock()
	defer en.mu.Unlock()
	t.index = len(en.subs)
	t.entry.Store(en)
	en.subs = append(en.subs, t)
}

// unregister takes it out again.
func (e *Engine) unregister(t *topicSub) {
	en := t.entry.Load()
	if en == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	en.mu.Lock()
	defer en.mu.Unlock()
	last := len(en.subs) - 1
	moved := en.subs[last]
	en.subs[t.index], moved.index = moved, t.index
	en.subs[last] = nil
	en.subs = en.subs[:last]
	t.entry.Store(nil)
	if last == 0 {
		delete(e.topics, t.topic)
	}
}

// entryOf returns the entry of a topic, nil if nobody attached subscribes to it.
func (e *Engine) entryOf(topic string) *entry {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.topics[topic]
}
