package broker

import (
	"bytes"
	"slices"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/msglog"
	"mynah/broker/pubsub"
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
	// expiresAtOnce says that there is a Message Expiry Interval and that it is 0.
	expiresAtOnce bool
}

// checkWill returns why a will would be refused when it fires, packets.CodeSuccess if it
// would not: its client will not be there to be told. Who may publish where has been looked
// at before.
func (b *Broker) checkWill(cl *mqtt.Client, w *packets.ConnectParams) packets.Code {
	id := b.auth.Identity(cl)
	if !w.WillFlag || id == nil {
		return packets.CodeSuccess
	}
	var err error
	switch {
	case chat.IsBridgeState(w.WillTopic): // see willOf
	case chat.ParseTopic(w.WillTopic).Kind != chat.KindPlain:
		_, err = b.cfg.Limits.Parse(w.WillPayload, speaksForSystem(id.Role))
	case pubsub.TooDeep(w.WillTopic):
		err = errTooDeep
	}
	if err == nil {
		return packets.CodeSuccess
	}
	refusal := asRefusal(err)
	return packets.Code{Code: reasonOf(refusal).Code, Reason: "the will: " + refusal.Error()}
}

// willOf returns the will of a CONNECT, nil if it has none or is a bridge whose will tells that
// it is gone, which nobody here is told. It shares no memory with it.
func willOf(w *packets.ConnectParams, expiresAtOnce bool) *will {
	if !w.WillFlag || chat.IsBridgeState(w.WillTopic) {
		return nil
	}
	props := w.WillProperties
	props.ContentType, props.ResponseTopic = strings.Clone(props.ContentType), strings.Clone(props.ResponseTopic)
	props.CorrelationData = bytes.Clone(props.CorrelationData)
	props.User = slices.Clone(props.User)
	for i, u := range props.User {
		props.User[i] = packets.UserProperty{Key: strings.Clone(u.Key), Val: strings.Clone(u.Val)}
	}
	return &will{
		topic: strings.Clone(w.WillTopic), payload: bytes.Clone(w.WillPayload), qos: w.WillQos, retain: w.WillRetain,
		delay: time.Duration(w.WillProperties.WillDelayInterval) * time.Second, props: props,
		expiresAtOnce: expiresAtOnce,
	}
}

// fireWill publishes the will of a connection that has ended without a DISCONNECT: at
// once, or after its delay unless the session has a connection again by then; the end of
// the session ends the delay, too (MQTT 5, 3.1.2.5).
func (b *Broker) fireWill(c *conn) {
	if c.will == nil || c.graceful.Load() || c.willDone.Swap(true) {
		return
	}
	id := c.holder
	if now := b.identity(c); now != nil {
		id = now
	}
	fire := func() { b.publishWill(id, c) }
	delay := min(c.will.delay, b.sessionExpiry(c.client))
	if delay == 0 {
		fire()
		return
	}
	// Its client may be back before the will begins to wait.
	next := b.wills.Wait(c.session.Key, c.Conn, delay, fire)
	back, over := c.session.Superseded(c.Conn), c.session.Over()
	if next == nil || (back || over) && b.wills.Cancel(c.session.Key, next) {
		if !back {
			fire()
		}
	}
}

// lastWills publishes, when the broker stops, the wills of those who are connected, but
// for those with a delay, since their clients can be back in time, and the wills that wait.
func (b *Broker) lastWills() {
	b.conns.Range(func(_, v any) bool {
		c := v.(*conn) //nolint:forcetypeassert // conns holds nothing else
		if c.will != nil && c.will.delay > 0 {
			c.willDone.Store(true)
		}
		b.fireWill(c)
		return true
	})
	b.wills.FireAll()
}

// publishWill publishes a will as if it came from its client now, checks and all.
func (b *Broker) publishWill(id *authhook.Identity, c *conn) {
	w := c.will
	kind, err := b.admit(id, w.topic)
	if err == nil {
		_, err = b.cfg.Limiter.Publish(id) // who is gone cannot be slowed down
	}
	if err == nil {
		switch kind {
		case chat.KindPlain:
			if err = b.topics.AdmitRetained(w.topic, w.payload, w.retain); err != nil {
				break
			}
			m := newPlain(w.topic, w.payload, w.qos, w.retain, &w.props, w.expiresAtOnce)
			m.From = c.session.Key
			b.topics.Publish(m)
		case chat.KindUserSignal, chat.KindGroupSignal:
			err = b.signal(id, w.topic, w.payload, &w.props)
		default:
			var rec *msglog.Record
			if rec, _, err = b.record(id, w.topic, w.payload, &w.props); err == nil {
				rec.QoS = w.qos
				rec.Expires = expiry(rec.Expires, w.props.MessageExpiryInterval, w.expiresAtOnce)
				b.queue.put(publication{rec: rec, topic: w.topic, mid: rec.Mid, qos: w.qos})
			}
		}
	}
	if err != nil {
		b.engine.Signal(chat.ErrorTopic(id.Subject), asRefusal(err).Payload(w.topic, ""))
	}
}
