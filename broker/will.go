package broker

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/session"
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
	case tooDeep(w.WillTopic):
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

// wills holds the wills that wait for their delay, by session.
type wills struct {
	mu      sync.Mutex
	waiting map[session.Key]*waitingWill
}

type waitingWill struct {
	conn  *outbox.Conn // whose it is
	timer *time.Timer
	fire  func()
}

// wait has fire called after a delay, unless the session's client is back by then. It
// returns nil if the client is so far back that the will of its next connection waits.
func (w *wills) wait(k session.Key, conn *outbox.Conn, delay time.Duration, fire func()) *waitingWill {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = make(map[session.Key]*waitingWill)
	}
	if other := w.waiting[k]; other != nil && other.conn.After(conn) {
		return nil
	}
	next := &waitingWill{conn: conn, fire: fire}
	next.timer = time.AfterFunc(delay, func() {
		if w.take(k, next) {
			fire()
		}
	})
	w.waiting[k] = next
	return next
}

// take takes a will out. It reports false if it is not there any more.
func (w *wills) take(k session.Key, is *waitingWill) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if is.timer.Stop(); w.waiting[k] != is {
		return false
	}
	delete(w.waiting, k)
	return true
}

// back says that a session's client is back: a will that waits is not sent, or is sent at
// once if the client is back with another session.
func (w *wills) back(k session.Key, resumed bool) {
	w.mu.Lock()
	next := w.waiting[k]
	delete(w.waiting, k)
	w.mu.Unlock()
	if next == nil {
		return
	}
	next.timer.Stop()
	if !resumed {
		next.fire()
	}
}

// ended sends the will of a session that has ended: there is nobody to wait for, and a
// client that makes session after session is not to leave a will in memory for each.
func (w *wills) ended(k session.Key) {
	w.mu.Lock()
	next := w.waiting[k]
	delete(w.waiting, k)
	w.mu.Unlock()
	if next != nil {
		next.timer.Stop()
		go next.fire() // not with the locks of the session
	}
}

// all sends all that wait.
func (w *wills) all() {
	w.mu.Lock()
	waiting := w.waiting
	w.waiting = nil
	w.mu.Unlock()
	for _, next := range waiting {
		next.timer.Stop()
		next.fire()
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
	next := b.wills.wait(c.session.Key, c.Conn, delay, fire)
	back, over := c.session.Superseded(c.Conn), c.session.Over()
	if next == nil || (back || over) && b.wills.take(c.session.Key, next) {
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
	b.wills.all()
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
			if err = b.plain.retained.admit(w.topic, w.payload, w.retain); err != nil {
				break
			}
			m := newPlain(w.topic, w.payload, w.qos, w.retain, &w.props, w.expiresAtOnce)
			m.From = c.session.Key
			b.plain.publish(m)
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
