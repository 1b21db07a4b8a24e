package broker

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/delivery"
	"mynah/broker/packet"
	"mynah/broker/session"
)

// plainTopics serves the topics outside the chat. A message is in the queue of every session
// that is to get it before it is acknowledged to its publisher, and a session is in the tree
// from its SUBSCRIBE to its end, connected or not.
type plainTopics struct {
	// may reports whether a session's client may read a topic now.
	may func(s *delivery.Session, topic string) bool

	mu   sync.RWMutex
	tree filterTree

	retained retained
	presence *presence
}

// Subscribed implements delivery.PlainTopics.
func (p *plainTopics) Subscribed(s *delivery.Session, f session.Subscription) {
	if tooDeep(f.Filter) {
		return // it was stored before that was refused
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tree.put(s, f)
}

// Unsubscribed implements delivery.PlainTopics.
func (p *plainTopics) Unsubscribed(s *delivery.Session, filter string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tree.remove(s, filter)
}

// audience is who is to get a message.
type audience struct {
	sessions map[*delivery.Session]delivery.PlainOptions
	shares   map[string]subscribers // members of shared subscriptions, by filter
	matched  bool                   // somebody has subscribed
}

// audienceOf returns who is to get a message. A session with several subscriptions that
// match gets it once, at the highest QoS and with all identifiers (MQTT 5, 3.3.4).
func (p *plainTopics) audienceOf(m *delivery.PlainMessage) (a audience) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	p.tree.match(m.Topic, func(n *filterNode) {
		for s, f := range n.subs {
			a.matched = true
			if f.NoLocal && m.From == s.Key { // [MQTT-3.8.3-3]
				continue
			}
			if a.sessions == nil {
				a.sessions = map[*delivery.Session]delivery.PlainOptions{}
			}
			o := a.sessions[s]
			o.QoS, o.Retain = max(o.QoS, f.QoS), o.Retain || f.RetainAsPublished
			if f.Identifier != 0 && !slices.Contains(o.IDs, f.Identifier) {
				o.IDs = append(o.IDs, f.Identifier)
			}
			a.sessions[s] = o
		}
		for filter, members := range n.shares {
			a.matched = true
			if a.shares == nil {
				a.shares = map[string]subscribers{}
			}
			a.shares[filter] = maps.Clone(members)
		}
	})
	return a
}

// fanOut puts a message into the queues of all who are to get it. It reports false if
// nobody has subscribed to its topic.
func (p *plainTopics) fanOut(m *delivery.PlainMessage) (matched bool) {
	a := p.audienceOf(m)
	for s, o := range a.sessions {
		slices.Sort(o.IDs)
		if p.may(s, m.Topic) {
			s.Queue(m, o)
		}
	}
	for filter, members := range a.shares {
		p.share(m, filter, members)
	}
	return a.matched
}

// share gives a message to one of the members of a shared subscription (MQTT 5, 4.8.2): to
// one that is connected and has room, if there is one.
func (p *plainTopics) share(m *delivery.PlainMessage, filter string, members subscribers) {
	here, away := make([]*delivery.Session, 0, len(members)), []*delivery.Session(nil)
	for s := range members {
		if s.Attached() != nil {
			here = append(here, s)
		} else {
			away = append(away, s)
		}
	}
	for _, sessions := range [][]*delivery.Session{here, away} {
		// Whose turn it is need not be a secret, but of those who are there, all are
		// to get as much.
		rand.Shuffle(len(sessions), func(i, j int) { sessions[i], sessions[j] = sessions[j], sessions[i] }) //nolint:gosec // see above
		for _, s := range sessions {
			if !p.may(s, m.Topic) {
				continue
			}
			f := members[s]
			o := delivery.PlainOptions{QoS: f.QoS, Retain: f.RetainAsPublished, Share: filter}
			if f.Identifier != 0 {
				o.IDs = []int{f.Identifier}
			}
			if s.Queue(m, o) {
				return
			}
		}
	}
}

// Orphaned implements delivery.PlainTopics: somebody else gets what a session that has
// ended was given by a shared subscription.
func (p *plainTopics) Orphaned(left []delivery.Orphan) {
	for _, o := range left {
		p.share(o.Message, o.Share, p.audienceOf(o.Message).shares[o.Share])
	}
}

// publish retains a message if that is asked for, and fans it out. It reports false if
// nobody has subscribed to its topic.
func (p *plainTopics) publish(m *delivery.PlainMessage) (matched bool) {
	if m.Retain {
		// Whoever is there gets the messages of a topic in the order in which they
		// are retained, the last of them last.
		defer p.retained.inOrder(m.Topic)()
		p.retained.retain(m, true)
	}
	return p.fanOut(m)
}

// publishLatest is publish for what the broker itself tells, of which only the latest
// matters.
func (p *plainTopics) publishLatest(topic string, payload []byte, qos byte) {
	m := &delivery.PlainMessage{Topic: topic, Payload: payload, QoS: qos, Retain: true, Latest: true}
	defer p.retained.inOrder(topic)()
	p.retained.retain(m, false)
	p.fanOut(m)
}

// newPlain returns a message of a client.
func newPlain(topic string, payload []byte, qos byte, retain bool, props *packets.Properties, expiresAtOnce bool) *delivery.PlainMessage {
	return &delivery.PlainMessage{
		Topic: topic, Payload: payload, QoS: qos, Retain: retain,
		Props: appendForwarded(nil, props), Expires: expiry(0, props.MessageExpiryInterval, expiresAtOnce),
	}
}

// appendForwarded appends the properties of a PUBLISH that belong to the message and are
// passed on as they are (MQTT 5, 3.3.2.3).
func appendForwarded(dst []byte, p *packets.Properties) []byte {
	if p.PayloadFormatFlag {
		dst = append(dst, packet.PayloadFormat, p.PayloadFormat)
	}
	if p.ContentType != "" {
		dst = appendString(append(dst, packet.ContentType), p.ContentType)
	}
	if p.ResponseTopic != "" {
		dst = appendString(append(dst, packet.ResponseTopic), p.ResponseTopic)
	}
	if len(p.CorrelationData) > 0 {
		dst = appendString(append(dst, packet.CorrelationData), string(p.CorrelationData))
	}
	for _, u := range p.User { // in their order [MQTT-3.3.2-18]
		dst = appendString(appendString(append(dst, packet.User), u.Key), u.Val)
	}
	return dst
}

// publishPlain passes on a PUBLISH to a topic outside the chat and then has it acknowledged,
// behind what the client has published before.
func (b *Broker) publishPlain(p publication, m *published) {
	c := p.c
	var exchange uint16
	if m.qos == 2 {
		exchange = m.id
	}
	current := c.session.Inbound.Publish(exchange, c.hasSession, func() {
		msg := newPlain(m.topic, bytes.Clone(m.payload), m.qos, m.retain, &m.props, m.expiresAtOnce)
		msg.From = c.session.Key
		p.nobody = !b.plain.publish(msg)
	})
	if current && m.qos > 0 {
		b.queue.put(p)
	}
}

// mayReceive reports whether a session's client may read a topic by the token that it has
// now. What comes while it is away is kept, and asked about when it is back.
func (b *Broker) mayReceive(s *delivery.Session, topic string) bool {
	v, _ := b.holders.Load(s.Key)
	c, _ := v.(*conn)
	if c == nil || c.session != s {
		return true
	}
	id := b.identity(c)
	if id == nil {
		return true
	}
	ctx, cancel := b.ctx, context.CancelFunc(nil)
	if b.lookups {
		ctx, cancel = context.WithTimeout(b.ctx, subscribeTimeout)
		defer cancel()
	}
	return b.mayRead(ctx, id, topic)
}

// mayRead reports whether somebody may read a topic, or all that a filter matches.
func (b *Broker) mayRead(ctx context.Context, id *authhook.Identity, filter string) bool {
	return b.policy.CanSubscribe(ctx, id, filter) == nil
}

// forgetForbidden takes out of a session's queue what its client may not read any more.
func (b *Broker) forgetForbidden(s *delivery.Session) {
	forbidden := map[string]struct{}{}
	for _, topic := range s.PlainTopics() {
		if !b.mayReceive(s, topic) {
			forbidden[topic] = struct{}{}
		}
	}
	if len(forbidden) > 0 {
		s.ForgetPlain(forbidden)
	}
}
