package broker

import (
	"time"

	"mynah/broker/delivery"
	"mynah/chat"
)

// refusalNotice tells somebody, on user/<id>/error, why a publish was refused for which the
// protocol has no negative acknowledgement: at QoS 0, and with MQTT 3.1.1.
type refusalNotice struct {
	to      string
	payload []byte
}

// Bounds of refusal notices, which are signals: all sessions of their subject may want each.
const (
	maxRefusalNotices       = 1024 // that wait
	refusalNoticesPerSecond = 100  // of a connection
)

// refusals tells publishers why they were refused where an acknowledgement cannot.
type refusals struct {
	engine  *delivery.Engine
	waiting chan refusalNotice // closed by the committer when it ends
}

// enqueue has a refusal told soon: the committer, for whom everybody's acknowledgements wait,
// is not to visit sessions for it. What is too much is dropped.
func (r *refusals) enqueue(p *publication) {
	c := p.c
	if now := time.Now(); now.Sub(c.noticesSince) >= time.Second {
		c.noticesSince, c.notices = now, 0
	}
	if c.notices++; c.notices <= refusalNoticesPerSecond {
		select {
		case r.waiting <- refusalNotice{c.subject(), p.refusal.Payload(p.topic, p.mid)}:
			return
		default:
		}
	}
	r.engine.Stats().Dropped.Add(1)
}

// notRetained tells a client, once a connection, that a message to a chat topic is not
// retained. The message itself is accepted.
func (r *refusals) notRetained(c *conn, topic, mid string) {
	if c.toldNotRetained {
		return
	}
	c.toldNotRetained = true
	r.engine.Signal(chat.ErrorTopic(c.subject()), errNotRetained.Payload(topic, mid))
}

var errNotRetained = chat.Refuse(chat.CodeNotRetained,
	"the message is accepted, but messages of the chat are not retained: a session gets what it has missed, and the history has the rest")

// run sends the notices until the committer has ended.
func (r *refusals) run() {
	for n := range r.waiting {
		r.engine.Signal(chat.ErrorTopic(n.to), n.payload)
	}
}
