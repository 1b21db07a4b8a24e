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

// willPublisher publishes the wills of clients that have gone.
type willPublisher struct {
	rights        *rights
	conns         *connections
	publisher     *publisher
	sessionExpiry func(*mqtt.Client) time.Duration
	waiting       pubsub.Wills // until their delay is over
}

// check returns why a will would be refused when it fires, packets.CodeSuccess if it
// would not: its client will not be there to be told. Who may publish where has been looked
// at before.
func (wp *willPublisher) check(cl *mqtt.Client, w *packets.ConnectParams) packets.Code {
	id := wp.rights.auth.Identity(cl)
	if !w.WillFlag || id == nil {
		return packets.CodeSuccess
	}
	var err error
	switch {
	case chat.IsBridgeState(w.WillTopic): // see willOf
	case chat.ParseTopic(w.WillTopic).Kind != chat.KindPlain:
		_, err = wp.publisher.limits.Parse(w.WillPayload, speaksForSystem(id.Role))
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

// fire publishes the will of a connection that has ended without a DISCONNECT: at
// once, or after its delay unless the session has a connection again by then; the end of
// the session ends the delay, too (MQTT 5, 3.1.2.5).
func (wp *willPublisher) fire(c *conn) {
	if c.will == nil || c.graceful.Load() || c.willDone.Swap(true) {
		return
	}
	id := c.holder
	if now := wp.rights.identity(c); now != nil {
		id = now
	}
	fire := func() { wp.publish(id, c) }
	delay := min(c.will.delay, wp.sessionExpiry(c.client))
	if delay == 0 {
		fire()
		return
	}
	// Its client may be back before the will begins to wait.
	next := wp.waiting.Wait(c.session.Key, c.Conn, delay, fire)
	back, over := c.session.Superseded(c.Conn), c.session.Over()
	if next == nil || (back || over) && wp.waiting.Cancel(c.session.Key, next) {
		if !back {
			fire()
		}
	}
}

// fireLast publishes, when the broker stops, the wills of those who are connected, but
// for those with a delay, since their clients can be back in time, and the wills that wait.
func (wp *willPublisher) fireLast() {
	wp.conns.each(func(c *conn) bool {
		if c.will != nil && c.will.delay > 0 {
			c.willDone.Store(true)
		}
		wp.fire(c)
		return true
	})
	wp.waiting.FireAll()
}

// publish publishes a will as if it came from its client now, checks and all.
func (wp *willPublisher) publish(id *authhook.Identity, c *conn) {
	w := c.will
	kind, err := wp.publisher.authorise(id, w.topic)
	if err == nil {
		_, err = wp.publisher.limiter.Publish(id) // who is gone cannot be slowed down
	}
	if err == nil {
		switch kind {
		case chat.KindPlain:
			if err = wp.publisher.topics.AdmitRetained(w.topic, w.payload, w.retain); err != nil {
				break
			}
			m := newPlain(w.topic, w.payload, w.qos, w.retain, &w.props, w.expiresAtOnce)
			m.From = c.session.Key
			wp.publisher.topics.Publish(m)
		case chat.KindUserSignal, chat.KindGroupSignal:
			err = wp.publisher.signal(id, w.topic, w.payload, &w.props)
		default:
			var rec *msglog.Record
			if rec, _, err = wp.publisher.record(id, w.topic, w.payload, &w.props); err == nil {
				rec.QoS = w.qos
				rec.Expires = expiry(rec.Expires, w.props.MessageExpiryInterval, w.expiresAtOnce)
				wp.publisher.queue.put(publication{rec: rec, topic: w.topic, mid: rec.Mid, qos: w.qos})
			}
		}
	}
	if err != nil {
		wp.publisher.engine.Signal(chat.ErrorTopic(id.Subject), asRefusal(err).Payload(w.topic, ""))
	}
}
