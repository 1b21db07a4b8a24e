package broker

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/msglog"
	"mynah/broker/pubsub"
	"mynah/chat"
)

// publishTimeout bounds what a publish waits for the directory when it has to look
// something up.
const publishTimeout = 2 * time.Second

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

// publish deals with a PUBLISH: a message for the chat goes to the log, a signal to who is
// there, anything else into the queues of its subscribers. Acknowledgements of all of them
// go out in one order (MQTT 5, 4.6).
func (b *Broker) publish(c *conn, m *published) {
	p := publication{c: c, topic: m.topic, id: m.id, qos: m.qos}
	id := b.identity(c)
	if id == nil {
		return // the token has ended and with it, in a moment, the connection
	}
	kind, err := b.admit(id, m.topic)
	if err == nil {
		err = b.slowDown(c, id)
	}
	if err != nil && (m.dup || m.qos == 2) && (kind == chat.KindUser || kind == chat.KindGroup) {
		// It comes too fast, but it may be stored already. A client that is told
		// no would publish it again as new, and it would be there twice.
		p.unlessStored, err = asRefusal(err), nil
	}
	if err == nil && kind == chat.KindPlain {
		err = b.topics.AdmitRetained(m.topic, m.payload, m.retain)
	}
	if err != nil && kind == chat.KindPlain && m.qos == 2 && c.session.Inbound.Published(m.id) {
		err = nil // it has been passed on already
	}
	if err == nil {
		switch kind {
		case chat.KindPlain:
			b.publishPlain(p, m)
			return
		case chat.KindReserved:
			p.nobody = true // a bridge tells that it is connected
		case chat.KindRenew:
			err = b.renew(c, m.payload)
		case chat.KindUserSignal, chat.KindGroupSignal:
			err = b.signal(id, m.topic, m.payload, &m.props)
		default:
			p.rec, p.mid, err = b.record(id, m.topic, m.payload, &m.props)
			if err != nil && p.rec != nil && (p.mid != "" || m.dup || m.qos == 2) {
				// What it is to change may have gone since it was stored.
				if p.unlessStored == nil {
					p.unlessStored = asRefusal(err)
				}
				err = nil
			}
		}
		if err == nil && m.retain && kind.OfChat() {
			b.explainRetain(c, m.topic, p.mid)
		}
	}
	switch {
	case err != nil:
		p.refusal = asRefusal(err)
		if p.mid == "" { // it may have been refused before anybody looked into it
			draft, _ := b.cfg.Limits.Parse(m.payload, false)
			p.mid = draft.Mid
		}
	case p.rec != nil:
		p.rec.QoS, p.rec.PacketID, p.rec.Dup, p.rec.Client = m.qos, m.id, m.dup, c.clientID
		p.rec.Ask = p.unlessStored != nil
		p.rec.Expires = expiry(p.rec.Expires, m.props.MessageExpiryInterval, m.expiresAtOnce)
		b.recognise(c, p.rec)
	}
	b.queue.put(p)
}

// recognise says of a message what is known here of whether it comes again.
func (b *Broker) recognise(c *conn, r *msglog.Record) {
	if r.Mid != "" || r.QoS == 0 {
		return // its mid tells, or nothing
	}
	c.pace.tracked = true
	switch {
	case r.QoS == 2:
		_, last := b.log.Bounds()
		b.devices.opened(c.session.Key, r, last)
	case r.Dup:
		b.devices.again(c.session.Key, r)
	}
}

// admit reports what a topic is, and why the holder of the token may not publish to it,
// for which the kind is KindReserved. That kind without an error is the state of a bridge,
// which is acknowledged and goes nowhere.
func (b *Broker) admit(id *authhook.Identity, topic string) (chat.Kind, error) {
	if strings.ContainsAny(topic, "+#") {
		return chat.KindReserved, chat.Refuse(chat.CodeBadTopic, "a message is published to one topic; name it without + and #")
	}
	if pubsub.TooDeep(topic) {
		return chat.KindReserved, errTooDeep
	}
	ctx, cancel := b.ctx, context.CancelFunc(nil)
	if b.lookups {
		ctx, cancel = context.WithTimeout(b.ctx, publishTimeout)
		defer cancel()
	}
	if err := b.policy.CanPublish(ctx, id, topic); err != nil {
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
func (b *Broker) slowDown(c *conn, id *authhook.Identity) error {
	wait, err := b.cfg.Limiter.Publish(id)
	if wait == 0 {
		return err
	}
	b.metrics.slowed.Inc()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-b.ctx.Done():
	}
	c.pace.paused(time.Now())
	b.extend(c) // whatever the client has sent meanwhile waits to be read
	return nil
}

var errTooDeep = chat.Refuse(chat.CodeBadTopic, "a topic has no more than "+strconv.Itoa(pubsub.MaxLevels)+" levels; join some of them")

// signal passes on a message that is not kept.
func (b *Broker) signal(id *authhook.Identity, topic string, payload []byte, props *packets.Properties) error {
	with, err := travel(props)
	if err != nil {
		return err
	}
	draft, err := b.cfg.Limits.ParseWith(payload, speaksForSystem(id.Role), with.object)
	if err != nil {
		return err
	}
	if chat.ChangesSomething(draft.Type) {
		return errSignalChanges
	}
	m := chat.Message{From: id.Subject, To: topic, TS: time.Now().UnixMilli(), Tail: draft.Tail}
	envelope := m.AppendEnvelope(nil, 0)
	if most := b.engine.Limits().PerConn / 2; len(envelope)+len(with.props) > most {
		return chat.Refuse(chat.CodeTooLarge, "a signal has no more than "+strconv.Itoa(most)+" bytes, since it is what is dropped first under pressure; publish to the topic without /signal")
	}
	b.engine.SignalWith(topic, with.props, envelope)
	return nil
}

// renew lets a client stay with a fresh token of the same holder.
func (b *Broker) renew(c *conn, token []byte) error {
	ctx, cancel := context.WithTimeout(b.ctx, subscribeTimeout)
	defer cancel()
	old := b.identity(c)
	if old == nil {
		return errNotDecided // its token ends this moment
	}
	id, err := b.auth.Renew(ctx, c.client, strings.TrimSpace(string(token)))
	if err != nil {
		c.renewalsRefused.Do(func() {
			b.logger.Info("a token for renewal was refused", "subject", c.subject(), "client_id", c.clientID, "reason", err)
		})
		return authhook.ClientError(err)
	}
	b.forgetForbidden(c.session)
	groups, unknown := b.groups(id)
	if unknown != nil {
		// Those of the old token are gone for certain; what the directory said stays.
		b.logger.Warn("the groups of a client with a fresh token cannot be looked up; it keeps those that it had not from its old token",
			"subject", c.subject(), "error", unknown)
		kept := slices.DeleteFunc(c.session.Groups(), func(g string) bool { return slices.Contains(old.Groups, g) })
		groups = append(kept, groups...)
	}
	return c.session.SetGroups(groups)
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
