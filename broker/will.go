package broker

import (
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/msglog"
	"mynah/chat"
)

// will is a will message (MQTT 5, 3.1.2.5). Mochi does not get to know it: it would
// publish it without asking anybody, and past the log.
type will struct {
	topic   string
	payload []byte
	qos     byte
	retain  bool
	delay   time.Duration
	props   packets.Properties
}

// takeWill takes the will from a CONNECT, and from Mochi.
func (c *conn) takeWill(cl *mqtt.Client, pk *packets.Packet) {
	cl.Properties.Will = mqtt.Will{}
	w := &pk.Connect
	if !w.WillFlag {
		return
	}
	c.will = &will{
		topic: w.WillTopic, payload: w.WillPayload, qos: w.WillQos, retain: w.WillRetain,
		delay: time.Duration(w.WillProperties.WillDelayInterval) * time.Second, props: w.WillProperties,
	}
}

// fireWill publishes the will of a connection that has ended without a DISCONNECT: at
// once, or after its delay unless the session has a connection again by then (MQTT 5,
// 3.1.2.5).
func (b *Broker) fireWill(c *conn) {
	if c.will == nil || c.graceful || b.stopping.Load() {
		return
	}
	id := c.holder
	if now := b.identity(c); now != nil {
		id = now
	}
	delay := min(c.will.delay, b.sessionExpiry(c.client))
	if delay == 0 {
		b.publishWill(id, c)
		return
	}
	time.AfterFunc(delay, func() {
		if !c.session.Superseded(c.Conn) && !b.stopping.Load() {
			b.publishWill(id, c)
		}
	})
}

// publishWill publishes a will as if it came from its client now, checks and all.
func (b *Broker) publishWill(id *authhook.Identity, c *conn) {
	w := c.will
	kind, err := b.admit(id, w.topic)
	if err == nil {
		switch kind {
		case chat.KindPlain:
			b.plain.publish(newPlain(w.topic, w.payload, w.qos, w.retain, w.props), c.session.Key)
		case chat.KindUserSignal, chat.KindGroupSignal:
			err = b.signal(id, w.topic, w.payload)
		default:
			var rec *msglog.Record
			if rec, _, err = b.record(id, w.topic, w.payload); err == nil {
				rec.QoS = w.qos
				rec.Expires = earlier(rec.Expires, w.props.MessageExpiryInterval)
				b.queue.put(publication{rec: rec, topic: w.topic, mid: rec.Mid, qos: w.qos})
			}
		}
	}
	if err != nil {
		b.engine.Signal(chat.ErrorTopic(id.Subject), asRefusal(err).Payload(w.topic, ""))
	}
}
