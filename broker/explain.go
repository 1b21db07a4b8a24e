package broker

import (
	"time"

	"mynah/chat"
)

// explanation tells somebody, on user/<id>/error, why a publish was refused for which the
// protocol has no negative acknowledgement: at QoS 0, and with MQTT 3.1.1.
type explanation struct {
	to      string
	payload []byte
}

// Bounds of explanations, which are signals: all sessions of their subject may want each.
const (
	maxExplanations       = 1024 // that wait
	explanationsPerSecond = 100  // of a connection
)

// explain has a refusal explained, soon: the committer, for whom everybody's acknowledgements
// wait, is not to visit sessions for it. What is too much is dropped.
func (b *Broker) explain(p *publication) {
	c := p.c
	if now := time.Now(); now.Sub(c.explainedSince) >= time.Second {
		c.explainedSince, c.explained = now, 0
	}
	if c.explained++; c.explained <= explanationsPerSecond {
		select {
		case b.explanations <- explanation{c.subject(), p.refusal.Payload(p.topic, p.mid)}:
			return
		default:
		}
	}
	b.engine.Stats().Dropped.Add(1)
}

// explainRetain tells a client, once a connection, that a message to a chat topic is not
// retained. The message itself is accepted.
func (b *Broker) explainRetain(c *conn, topic, mid string) {
	if c.retainExplained {
		return
	}
	c.retainExplained = true
	b.engine.Signal(chat.ErrorTopic(c.subject()), errNotRetained.Payload(topic, mid))
}

var errNotRetained = chat.Refuse(chat.CodeNotRetained,
	"the message is accepted, but messages of the chat are not retained: a session gets what it has missed, and the history has the rest")

// tellExplanations tells them until the committer has ended.
func (b *Broker) tellExplanations() {
	for e := range b.explanations {
		b.engine.Signal(chat.ErrorTopic(e.to), e.payload)
	}
}
