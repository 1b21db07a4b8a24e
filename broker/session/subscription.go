package session

import (
	"maps"
	"slices"
	"strings"

	"mynah/chat"
)

// Subscription is one filter of a session with its options (MQTT 5, 3.8.3.1).
type Subscription struct {
	Filter     string `json:"filter"`
	QoS        byte   `json:"qos"`
	NoLocal    bool   `json:"no_local,omitempty"`
	Identifier int    `json:"id,omitempty"` // 0 for none
	// RetainAsPublished and RetainHandling matter outside the chat only.
	RetainAsPublished bool `json:"rap,omitempty"`
	RetainHandling    byte `json:"rh,omitempty"`
}

// IsChatFilter reports whether a subscription's filter is served from the log or by
// signals, and is none outside the chat.
func IsChatFilter(filter string) bool {
	return strings.HasPrefix(filter, "user/") || strings.HasPrefix(filter, "group/")
}

// Filters that stand for every user's or every group's topic. Only privileged roles get to
// subscribe to them.
const (
	AllUsers       = "user/#"  // what is logged on them
	AllGroups      = "group/#" // the same
	AllUserSignals = "user/+/signal"
)

// Filters that stand for the groups of the subscriber.
const (
	ownGroups       = "group/+"
	ownGroupSignals = "group/+/signal"
)

// Topic is a topic of the chat by which a session gets messages, or AllUsers, AllGroups or
// AllUserSignals, with the sum of what its filters ask for there.
type Topic struct {
	Signal  bool // it is not logged
	QoS     byte
	NoLocal bool
	IDs     []int // MQTT 5 subscription identifiers, in order and each once
}

// Topics returns the topics of the chat that the session's filters stand for, given the
// subscriber and its groups. Others' topics are only for those who may read any. It is asked
// anew with every connection, since the next token may say less than the one with which the
// session subscribed. Overlapping filters are joined: the highest QoS counts [MQTT-3.3.4-2],
// all identifiers are told, and No Local holds if all ask for it. Changes is held.
func (s *Session) Topics() map[string]*Topic {
	topics := make(map[string]*Topic, len(s.Filters))
	add := func(name string, signal bool, f Subscription) {
		t := topics[name]
		if t == nil {
			t = &Topic{Signal: signal, NoLocal: true}
			topics[name] = t
		}
		t.join(f.QoS, f.NoLocal, f.Identifier)
	}
	for filter, f := range s.Filters {
		switch filter {
		case ownGroups:
			for g := range s.Groups {
				add(chat.GroupTopic(g), false, f)
			}
		case ownGroupSignals:
			for g := range s.Groups {
				add(chat.GroupTopic(g)+"/signal", true, f)
			}
		case AllUsers, "user/+":
			if s.AnyTopic {
				add(AllUsers, false, f)
			}
		case AllGroups:
			if s.AnyTopic {
				add(AllGroups, false, f)
			}
		case AllUserSignals:
			if s.AnyTopic {
				add(AllUserSignals, true, f)
			}
		default:
			switch t := chat.ParseTopic(filter); t.Kind {
			case chat.KindUser, chat.KindUserSignal, chat.KindUserError:
				if t.ID == s.Subject || s.AnyTopic {
					add(filter, t.Kind != chat.KindUser, f)
				}
			case chat.KindGroup, chat.KindGroupSignal:
				// The filter of somebody who was removed from the group stays,
				// and works again when it is taken back.
				if _, member := s.Groups[t.ID]; member || s.AnyTopic {
					add(filter, t.Kind == chat.KindGroupSignal, f)
				}
			}
		}
	}
	for name, t := range topics {
		for _, all := range [...]string{AllUsers, AllGroups} {
			wild := topics[all]
			if wild == nil || t == wild || t.Signal || !strings.HasPrefix(name, all[:len(all)-1]) {
				continue
			}
			t.join(wild.QoS, wild.NoLocal, wild.IDs...)
		}
	}
	return topics
}

// join adds what another filter asks for.
func (t *Topic) join(qos byte, noLocal bool, ids ...int) {
	t.QoS = max(t.QoS, qos)
	t.NoLocal = t.NoLocal && noLocal
	for _, id := range ids {
		if at, had := slices.BinarySearch(t.IDs, id); id != 0 && !had {
			t.IDs = slices.Insert(t.IDs, at, id)
		}
	}
}

// Subscriptions returns the session's subscriptions.
func (s *Session) Subscriptions() []Subscription {
	s.Changes.Lock()
	defer s.Changes.Unlock()
	return slices.Collect(maps.Values(s.Filters))
}

// GroupIDs returns the groups that the session knows its subject to be in.
func (s *Session) GroupIDs() []string {
	s.Changes.Lock()
	defer s.Changes.Unlock()
	return slices.Collect(maps.Keys(s.Groups))
}
