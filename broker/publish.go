package broker

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/msglog"
	"mynah/chat"
)

// publishTimeout bounds what a publish waits for the directory when it has to look
// something up.
const publishTimeout = 2 * time.Second

// publish deals with a PUBLISH and returns what is left of it for Mochi: the packet
// itself if its topic is outside the chat and the client may publish there, or if it
// breaks a rule of MQTT, which Mochi then answers; otherwise nothing.
func (b *Broker) publish(c *conn, pk packets.Packet) packets.Packet {
	qos := pk.FixedHeader.Qos
	if (qos > 0) != (pk.PacketID > 0) || pk.TopicName == "" || pk.Properties.TopicAliasFlag ||
		len(pk.Properties.SubscriptionIdentifier) > 0 {
		return pk
	}
	p := publication{c: c, topic: pk.TopicName, id: pk.PacketID, qos: qos}
	dup := pk.FixedHeader.Dup
	if qos == 2 {
		if c.releasing == nil {
			c.releasing = map[uint16]struct{}{}
		}
		// Until its PUBREL, whatever comes under this id is the same message.
		dup = dup || c.releases(pk.PacketID)
	}

	id := b.identity(c)
	if id == nil {
		return nothing // the token has ended and with it, in a moment, the connection
	}
	kind, err := b.admit(id, pk.TopicName)
	if err == nil {
		switch kind {
		case chat.KindPlain:
			return pk
		case chat.KindRenew:
			err = b.renew(c, pk.Payload)
		case chat.KindUserSignal, chat.KindGroupSignal:
			err = b.signal(id, pk.TopicName, pk.Payload)
		default:
			p.rec, err = b.record(id, pk.TopicName, pk.Payload)
		}
	}
	switch {
	case err != nil:
		p.refusal = asRefusal(err)
		if p.rec != nil {
			p.mid = p.rec.Mid
		}
	case p.rec != nil:
		p.mid = p.rec.Mid
		p.rec.QoS, p.rec.PacketID, p.rec.Dup, p.rec.Client = qos, pk.PacketID, dup, c.clientID
		p.rec.Expires = earlier(p.rec.Expires, pk.Properties.MessageExpiryInterval)
	}
	if qos == 2 {
		c.releasing[pk.PacketID] = struct{}{}
	}
	b.queue.put(p)
	return nothing
}

// admit reports what a topic is, and why the holder of the token may not publish to it
// at all or just now.
func (b *Broker) admit(id *authhook.Identity, topic string) (chat.Kind, error) {
	if strings.ContainsAny(topic, "+#") {
		return chat.KindReserved, chat.Refuse(chat.CodeBadTopic, "a message is published to one topic, without wildcards")
	}
	ctx, cancel := b.ctx, context.CancelFunc(nil)
	if b.lookups {
		ctx, cancel = context.WithTimeout(b.ctx, publishTimeout)
		defer cancel()
	}
	if err := b.policy.CanPublish(ctx, id, topic); err != nil {
		return chat.KindReserved, err
	}
	if err := b.cfg.Limiter.AllowPublish(id); err != nil {
		return chat.KindReserved, err
	}
	return chat.ParseTopic(topic).Kind, nil
}

// record parses a message for the log.
func (b *Broker) record(id *authhook.Identity, topic string, payload []byte) (*msglog.Record, error) {
	draft, err := b.cfg.Limits.Parse(payload, speaksForSystem(id.Role))
	if err != nil {
		return nil, err
	}
	digest := xxhash.New()
	_, _ = digest.WriteString(topic)
	_, _ = digest.Write([]byte{0})
	_, _ = digest.Write(payload)
	return &msglog.Record{
		Message: chat.Message{
			From: id.Subject, To: topic, Type: draft.Type, Mid: draft.Mid, Expires: draft.Expires, Tail: draft.Tail,
		},
		Digest: digest.Sum64(),
	}, nil
}

// signal passes on a message that is not kept.
func (b *Broker) signal(id *authhook.Identity, topic string, payload []byte) error {
	draft, err := b.cfg.Limits.Parse(payload, speaksForSystem(id.Role))
	if err != nil {
		return err
	}
	m := chat.Message{From: id.Subject, To: topic, TS: time.Now().UnixMilli(), Tail: draft.Tail}
	b.engine.Signal(topic, m.AppendEnvelope(nil, 0))
	return nil
}

// renew lets a client stay with a fresh token of the same holder.
func (b *Broker) renew(c *conn, token []byte) error {
	ctx, cancel := context.WithTimeout(b.ctx, subscribeTimeout)
	defer cancel()
	id, err := b.auth.Renew(ctx, c.client, strings.TrimSpace(string(token)))
	if err != nil {
		b.logger.Info("a token for renewal was refused", "subject", c.subject(), "client_id", c.clientID, "reason", err)
		return authhook.ClientError(err)
	}
	groups, err := b.groups(id)
	if err != nil {
		return err
	}
	return c.session.SetGroups(groups)
}

// speaksForSystem reports whether a role may send notices.
func speaksForSystem(r authhook.Role) bool {
	return r == authhook.RoleService || r == authhook.RoleAdmin
}

// earlier returns the sooner of a message's own expiry and the one that follows from
// its Message Expiry Interval in seconds (MQTT 5, 3.3.2.3.3); 0 is never.
func earlier(expires int64, interval uint32) int64 {
	if interval == 0 {
		return expires
	}
	at := time.Now().UnixMilli() + int64(interval)*1000
	if expires == 0 {
		return at
	}
	return min(expires, at)
}

// asRefusal returns what a client may know of an error.
func asRefusal(err error) *chat.Error {
	var refusal *chat.Error
	if errors.As(err, &refusal) {
		return refusal
	}
	return chat.Refuse(chat.CodeUnavailable, "the server cannot decide at the moment; try again")
}

// takeWill takes a will on a chat topic from Mochi, which would publish it past the log.
func (c *conn) takeWill(cl *mqtt.Client) {
	w := &cl.Properties.Will
	if w.Flag == 0 || chat.ParseTopic(w.TopicName).Kind == chat.KindPlain {
		return
	}
	c.will = &will{
		topic: w.TopicName, payload: w.Payload, qos: w.Qos,
		delay: time.Duration(w.WillDelayInterval) * time.Second,
	}
	cl.Properties.Will = mqtt.Will{}
}

// fireWill publishes the will of a connection that has ended without a DISCONNECT: at
// once, or after its delay unless the session has a connection again by then (MQTT 5,
// 3.1.2.5).
func (b *Broker) fireWill(c *conn) {
	if c.will == nil || c.graceful || b.stopping.Load() {
		return
	}
	id := b.auth.Identity(c.client)
	if id == nil {
		id = c.holder
	}
	delay := min(c.will.delay, b.sessionExpiry(c.client))
	if delay == 0 {
		b.publishWill(id, c)
		return
	}
	time.AfterFunc(delay, func() {
		if c.session.Attached() == nil && !b.stopping.Load() {
			b.publishWill(id, c)
		}
	})
}

func (b *Broker) publishWill(id *authhook.Identity, c *conn) {
	w := c.will
	kind, err := b.admit(id, w.topic)
	if err == nil {
		switch kind {
		case chat.KindUserSignal, chat.KindGroupSignal:
			err = b.signal(id, w.topic, w.payload)
		default:
			var rec *msglog.Record
			if rec, err = b.record(id, w.topic, w.payload); err == nil {
				rec.QoS = w.qos
				b.queue.put(publication{rec: rec, topic: w.topic, mid: rec.Mid, qos: w.qos})
			}
		}
	}
	if err != nil {
		refusal := asRefusal(err)
		b.engine.Signal(chat.ErrorTopic(id.Subject), refusal.Payload(w.topic, ""))
	}
}
