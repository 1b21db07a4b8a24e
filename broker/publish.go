package broker

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/pubsub"
	"mynah/chat"
)

// published is a PUBLISH of a client.
type published struct {
	topic   string
	payload []byte // valid until the next packet is read
	id      uint16
	qos     byte
	dup     bool
	retain  bool
	props   packets.Properties
	// expiresAtOnce says that there is a Message Expiry Interval and that it is 0.
	expiresAtOnce bool
}

// publisher deals with what clients publish, up to the queue.
type publisher struct {
	limits   chat.Limits
	limiter  *authhook.Limiter
	rights   *rights
	log      msglog.Reader
	engine   *delivery.Engine
	topics   *pubsub.Topics
	queue    *queue
	devices  *devices
	refusals *refusals
	metrics  *metrics
	renew    func(c *conn, token []byte) error // what $mynah/token is for
}

// publish deals with a PUBLISH: a message for the chat goes to the log, a signal to who is
// there, anything else into the queues of its subscribers. Acknowledgements of all of them
// go out in one order (MQTT 5, 4.6).
func (pub *publisher) publish(c *conn, m *published) {
	p := publication{c: c, topic: m.topic, id: m.id, qos: m.qos}
	id := pub.rights.identity(c)
	if id == nil {
		return // the token has ended and with it, in a moment, the connection
	}
	kind, err := pub.authorise(id, m.topic)
	if err == nil {
		err = pub.slowDown(c, id)
	}
	if err != nil && (m.dup || m.qos == 2) && (kind == chat.KindUser || kind == chat.KindGroup) {
		// It comes too fast, but it may be stored already. A client that is told
		// no would publish it again as new, and it would be there twice.
		p.unlessStored, err = asRefusal(err), nil
	}
	if err == nil && kind == chat.KindPlain {
		err = pub.topics.AdmitRetained(m.topic, m.payload, m.retain)
	}
	if err != nil && kind == chat.KindPlain && m.qos == 2 && c.session.Inbound.Published(m.id) {
		err = nil // it has been passed on already
	}
	if err == nil {
		switch kind {
		case chat.KindPlain:
			pub.publishPlain(p, m)
			return
		case chat.KindReserved:
			p.nobody = true // a bridge tells that it is connected
		case chat.KindRenew:
			err = pub.renew(c, m.payload)
		case chat.KindUserSignal, chat.KindGroupSignal:
			err = pub.signal(id, m.topic, m.payload, &m.props)
		default:
			p.rec, p.mid, err = pub.record(id, m.topic, m.payload, &m.props)
			if err != nil && p.rec != nil && (p.mid != "" || m.dup || m.qos == 2) {
				// What it is to change may have gone since it was stored.
				if p.unlessStored == nil {
					p.unlessStored = asRefusal(err)
				}
				err = nil
			}
		}
		if err == nil && m.retain && kind.OfChat() {
			pub.refusals.notRetained(c, m.topic, p.mid)
		}
	}
	switch {
	case err != nil:
		p.refusal = asRefusal(err)
		if p.mid == "" { // it may have been refused before anybody looked into it
			draft, _ := pub.limits.Parse(m.payload, false)
			p.mid = draft.Mid
		}
	case p.rec != nil:
		p.rec.QoS, p.rec.PacketID, p.rec.Dup, p.rec.Client = m.qos, m.id, m.dup, c.clientID
		p.rec.Ask = p.unlessStored != nil
		p.rec.Expires = expiry(p.rec.Expires, m.props.MessageExpiryInterval, m.expiresAtOnce)
		pub.recognise(c, p.rec)
	}
	pub.queue.put(p)
}

// recognise says of a message what is known here of whether it comes again.
func (pub *publisher) recognise(c *conn, r *msglog.Record) {
	if r.Mid != "" || r.QoS == 0 {
		return // its mid tells, or nothing
	}
	c.pace.tracked = true
	switch {
	case r.QoS == 2:
		_, last := pub.log.Bounds()
		pub.devices.opened(c.session.Key, r, last)
	case r.Dup:
		pub.devices.again(c.session.Key, r)
	}
}

// authorise reports what a topic is, and why the holder of the token may not publish to it,
// for which the kind is KindReserved. That kind without an error is the state of a bridge,
// which is acknowledged and goes nowhere.
func (pub *publisher) authorise(id *authhook.Identity, topic string) (chat.Kind, error) {
	if strings.ContainsAny(topic, "+#") {
		return chat.KindReserved, chat.Refuse(chat.CodeBadTopic, "a message is published to one topic; name it without + and #")
	}
	if pubsub.TooDeep(topic) {
		return chat.KindReserved, errTooDeep
	}
	if err := pub.rights.canPublish(id, topic); err != nil {
		if chat.IsBridgeState(topic) {
			return chat.KindReserved, nil
		}
		return chat.KindReserved, authhook.WhyNotPublish(id, topic, err)
	}
	return chat.ParseTopic(topic).Kind, nil
}

// slowDown counts a publish. If its sender is above the rate, it lets some time pass in
// which nothing is read from the connection; nobody else waits. It returns an error if
// that would take too long.
func (pub *publisher) slowDown(c *conn, id *authhook.Identity) error {
	wait, err := pub.limiter.Publish(id)
	if wait == 0 {
		return err
	}
	pub.metrics.slowed.Inc()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-pub.rights.ctx.Done():
	}
	c.pace.paused(time.Now())
	c.extendDeadline(pub.log) // whatever the client has sent meanwhile waits to be read
	return nil
}

var errTooDeep = chat.Refuse(chat.CodeBadTopic, "a topic has no more than "+strconv.Itoa(pubsub.MaxLevels)+" levels; join some of them")

// signal passes on a message that is not kept.
func (pub *publisher) signal(id *authhook.Identity, topic string, payload []byte, props *packets.Properties) error {
	with, err := travel(props)
	if err != nil {
		return err
	}
	draft, err := pub.limits.ParseWith(payload, speaksForSystem(id.Role), with.object)
	if err != nil {
		return err
	}
	if chat.ChangesSomething(draft.Type) {
		return errSignalChanges
	}
	m := chat.Message{From: id.Subject, To: topic, TS: time.Now().UnixMilli(), Tail: draft.Tail}
	envelope := m.AppendEnvelope(nil, 0)
	if most := pub.engine.Limits().PerConn / 2; len(envelope)+len(with.props) > most {
		return chat.Refuse(chat.CodeTooLarge, "a signal has no more than "+strconv.Itoa(most)+" bytes, since it is what is dropped first under pressure; publish to the topic without /signal")
	}
	pub.engine.SignalWith(topic, with.props, envelope)
	return nil
}

// speaksForSystem reports whether a role may send notices.
func speaksForSystem(r authhook.Role) bool {
	return r == authhook.RoleService || r == authhook.RoleAdmin
}

var errNotDecided = chat.Refuse(chat.CodeUnavailable, "the server cannot decide at the moment; try again")

// asRefusal returns what a client may know of an error.
func asRefusal(err error) *chat.Error {
	if refusal, ok := errors.AsType[*chat.Error](err); ok {
		return refusal
	}
	return errNotDecided
}
