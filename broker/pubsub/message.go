package pubsub

import "mynah/broker/session"

// Message is a message on a topic outside the chat. It is not changed once a session has been
// given it, and shared by all that have.
type Message struct {
	Topic   string
	Payload []byte
	Props   []byte // MQTT 5 properties as in a PUBLISH (3.3.2.3), but for Message Expiry Interval and Subscription Identifier
	QoS     byte
	Retain  bool        // it was published as a retained message
	Expires int64       // milliseconds since 1970 from which on nobody is to get it, 0 for never, or chat.AtOnce
	From    session.Key // whose session published it; zero for the broker itself
	// Latest says that only the last one on the topic is worth having. It is retained:
	// who gets it late gets what is retained by then.
	Latest bool
}

// Options is how a session is to get a message.
type Options struct {
	QoS    byte   // of the subscription
	Retain bool   // keep the message's retain flag (Retain As Published)
	IDs    []int  // subscription identifiers; not changed afterwards
	Share  string // filter of the shared subscription by which the session was chosen, "" for none
}

// Orphan is a message for a shared subscription whose session ended (MQTT 5, 4.8.2).
type Orphan struct {
	Message *Message
	Share   string // filter of the shared subscription
}

// messageOverhead is about what a waiting message costs beside its bytes.
const messageOverhead = 128

func (m *Message) cost() int {
	return len(m.Topic) + len(m.Payload) + len(m.Props) + messageOverhead
}

func (m *Message) expired(now int64) bool { return m.Expires != 0 && m.Expires <= now }
