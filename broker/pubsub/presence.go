package pubsub

import (
	"strings"

	"mynah/chat"
)

// Presence says who is online. What it says of a subject is the retained message of the
// subject's presence topic, made when somebody is to get it.
type Presence interface {
	// InMemory returns the payload if it is known without waiting for a disk or for
	// anybody else. It is called with locks of sessions held.
	InMemory(subject string) (payload []byte, known bool)
	// LookUp returns the payload, nil if there is nothing to say. It is called without
	// locks.
	LookUp(subject string) []byte
	// Subjects calls fn for each subject of which there is something to say.
	Subjects(fn func(subject string))
}

// presencePrefix begins the topics of presence.
const presencePrefix = "presence/"

// presenceQoS is at which QoS presence is published.
const presenceQoS = 1

// presenceMessage returns the message of a presence topic, nil if there is nothing to say.
func presenceMessage(topic string, payload []byte) *Message {
	if payload == nil {
		return nil
	}
	return &Message{Topic: topic, Payload: payload, QoS: presenceQoS, Retain: true}
}

// PublishPresence tells whoever has subscribed that a subject has come or gone. What they are
// told is what Presence says when it is their turn.
func (t *Topics) PublishPresence(subject string) {
	t.fanOut(&Message{Topic: chat.PresenceTopic(subject), QoS: presenceQoS, Retain: true, Latest: true})
}

// presenceTopics returns the presence topics that a filter matches and of which there is
// something to say now. Whoever comes later is told of by PublishPresence: a subscriber would
// hear of it twice otherwise. It may wait for the disk.
func (t *Topics) presenceTopics(filter string) (topics []string) {
	if topic := chat.ParseTopic(filter); topic.Kind == chat.KindPresence {
		if t.cfg.Presence.LookUp(topic.ID) == nil {
			return nil
		}
		return []string{filter}
	}
	if !strings.HasPrefix(filter, presencePrefix) {
		return nil // see hidden
	}
	t.cfg.Presence.Subjects(func(subject string) {
		if topic := chat.PresenceTopic(subject); matches(filter, topic) {
			topics = append(topics, topic)
		}
	})
	return topics
}
