package broker

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/delivery"
)

// plainTopics serves the topics outside the chat. It has Mochi's tree of subscriptions; what
// a message does on its way is ours. A message is in the queue of
// every session that is to get it before it is acknowledged to its publisher, and a
// session is in the tree from its SUBSCRIBE to its end, connected or not.
type plainTopics struct {
	tree *mqtt.TopicsIndex
	// may reports whether a session's client may read a topic now.
	may func(s *delivery.Session, topic string) bool

	subscribers   sync.Map // id in the tree → *subscriber
	subscriptions *int64   // how many there are, for $SYS

	retained retained
	presence *presence
}

// subscriber is a session with subscriptions outside the chat.
type subscriber struct {
	session *delivery.Session

	mu     sync.RWMutex
	exact  map[string]delivery.Subscription // without wildcards, by filter, which is the topic
	wild   map[string]delivery.Subscription // with wildcards, by filter
	shared map[string]delivery.Subscription // with or without, by filter
}

// treeID is the name of a session in the tree. A session that begins anew under its key
// has another one, so that it gets nothing that the one before subscribed to.
func treeID(s *delivery.Session) string { return strconv.FormatUint(s.Serial, 36) }

// of returns who has an id in the tree, nil if it has ended.
func (p *plainTopics) of(id string) *subscriber {
	v, _ := p.subscribers.Load(id)
	sub, _ := v.(*subscriber)
	return sub
}

// Subscribed implements delivery.PlainTopics.
func (p *plainTopics) Subscribed(s *delivery.Session, f delivery.Subscription) {
	if tooDeep(f.Filter) {
		return // it was stored before that was refused
	}
	id := treeID(s)
	sub := p.of(id)
	if sub == nil {
		sub = &subscriber{
			session: s, exact: map[string]delivery.Subscription{}, wild: map[string]delivery.Subscription{}, shared: map[string]delivery.Subscription{},
		}
		p.subscribers.Store(id, sub)
	}
	sub.mu.Lock()
	switch {
	case mqtt.IsSharedFilter(f.Filter):
		sub.shared[f.Filter] = f
	case strings.ContainsAny(f.Filter, "+#"):
		sub.wild[f.Filter] = f
	default:
		sub.exact[f.Filter] = f
	}
	sub.mu.Unlock()
	if p.tree.Subscribe(id, packets.Subscription{Filter: f.Filter}) {
		atomic.AddInt64(p.subscriptions, 1)
	}
	if parent := parentLevel(f.Filter); parent != "" {
		p.tree.Subscribe(id, packets.Subscription{Filter: parent})
	}
}

// Unsubscribed implements delivery.PlainTopics.
func (p *plainTopics) Unsubscribed(s *delivery.Session, filter string) {
	id := treeID(s)
	if p.tree.Unsubscribe(filter, id) {
		atomic.AddInt64(p.subscriptions, -1)
	}
	if parent := parentLevel(filter); parent != "" {
		p.tree.Unsubscribe(parent, id)
	}
	sub := p.of(id)
	if sub == nil {
		return
	}
	sub.mu.Lock()
	defer sub.mu.Unlock()
	delete(sub.exact, filter)
	delete(sub.wild, filter)
	delete(sub.shared, filter)
	if len(sub.exact)+len(sub.wild)+len(sub.shared) == 0 {
		p.subscribers.Delete(id)
	}
}

// options returns how a message is to go to a subscriber, by all its subscriptions that
// match and are not shared: at the highest QoS, and with all identifiers (MQTT 5, 3.3.4).
// It reports false if none of them wants it.
func (sub *subscriber) options(m *delivery.PlainMessage) (o delivery.PlainOptions, wanted bool) {
	sub.mu.RLock()
	defer sub.mu.RUnlock()
	own := m.From == sub.session.Key
	take := func(f delivery.Subscription) {
		if f.NoLocal && own { // [MQTT-3.8.3-3]
			return
		}
		wanted = true
		o.QoS = max(o.QoS, f.QoS)
		o.Retain = o.Retain || f.RetainAsPublished
		if f.Identifier != 0 {
			o.IDs = append(o.IDs, f.Identifier)
		}
	}
	if f, ok := sub.exact[m.Topic]; ok {
		take(f)
	}
	for filter, f := range sub.wild {
		if matches(filter, m.Topic) {
			take(f)
		}
	}
	slices.Sort(o.IDs)
	o.IDs = slices.Compact(o.IDs)
	return o, wanted
}

// matching returns who has subscribed to a topic, by id in the tree, and the members of the
// shared subscriptions to it, by filter.
func (p *plainTopics) matching(topic string) (ids map[string]packets.Subscription, shared map[string][]string) {
	found := p.tree.Subscribers(topic)
	shared = make(map[string][]string, len(found.Shared))
	for filter, members := range found.Shared {
		if _, inner := cutShared(filter); !matches(inner, topic) {
			continue // the tree forgets about $ here
		}
		if filter = ofParentLevel(filter); filter == "" {
			maps.Copy(found.Subscriptions, members)
		} else {
			shared[filter] = slices.AppendSeq(shared[filter], maps.Keys(members))
		}
	}
	return found.Subscriptions, shared
}

// fanOut puts a message into the queues of all who are to get it. It reports false if
// nobody has subscribed to its topic.
func (p *plainTopics) fanOut(m *delivery.PlainMessage) (matched bool) {
	ids, shared := p.matching(m.Topic)
	for id := range ids {
		sub := p.of(id)
		if sub == nil {
			continue
		}
		matched = true
		if o, wanted := sub.options(m); wanted && p.may(sub.session, m.Topic) {
			sub.session.Queue(m, o)
		}
	}
	for filter, members := range shared {
		matched = true
		p.share(m, filter, members)
	}
	return matched
}

// share gives a message to one of the members of a shared subscription (MQTT 5, 4.8.2): to
// one that is connected and has room, if there is one.
func (p *plainTopics) share(m *delivery.PlainMessage, filter string, members []string) {
	var here, away []*subscriber
	for _, id := range members {
		switch sub := p.of(id); {
		case sub == nil || !p.may(sub.session, m.Topic):
		case sub.session.Attached() != nil:
			here = append(here, sub)
		default:
			away = append(away, sub)
		}
	}
	for _, subs := range [][]*subscriber{here, away} {
		// Whose turn it is need not be a secret, but of those who are there, all are
		// to get as much.
		rand.Shuffle(len(subs), func(i, j int) { subs[i], subs[j] = subs[j], subs[i] }) //nolint:gosec // see above
		for _, sub := range subs {
			sub.mu.RLock()
			f, ok := sub.shared[filter]
			sub.mu.RUnlock()
			if !ok {
				continue
			}
			o := delivery.PlainOptions{QoS: f.QoS, Retain: f.RetainAsPublished, Share: filter}
			if f.Identifier != 0 {
				o.IDs = []int{f.Identifier}
			}
			if sub.session.Queue(m, o) {
				return
			}
		}
	}
}

// Orphaned implements delivery.PlainTopics: somebody else gets what a session that has
// ended was given by a shared subscription.
func (p *plainTopics) Orphaned(left []delivery.Orphan) {
	for _, o := range left {
		if _, shared := p.matching(o.Message.Topic); len(shared[o.Share]) > 0 {
			p.share(o.Message, o.Share, shared[o.Share])
		}
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
func newPlain(topic string, payload []byte, qos byte, retain bool, props *packets.Properties) *delivery.PlainMessage {
	return &delivery.PlainMessage{
		Topic: topic, Payload: payload, QoS: qos, Retain: retain,
		Props: appendForwarded(nil, props), Expires: earlier(0, props.MessageExpiryInterval),
	}
}

// appendForwarded appends the properties of a PUBLISH that belong to the message and are
// passed on as they are (MQTT 5, 3.3.2.3).
func appendForwarded(dst []byte, p *packets.Properties) []byte {
	if p.PayloadFormatFlag {
		dst = append(dst, propPayloadFormat, p.PayloadFormat)
	}
	if p.ContentType != "" {
		dst = appendString(append(dst, propContentType), p.ContentType)
	}
	if p.ResponseTopic != "" {
		dst = appendString(append(dst, propResponseTopic), p.ResponseTopic)
	}
	if len(p.CorrelationData) > 0 {
		dst = appendString(append(dst, propCorrelationData), string(p.CorrelationData))
	}
	for _, u := range p.User { // in their order [MQTT-3.3.2-18]
		dst = appendString(appendString(append(dst, propUser), u.Key), u.Val)
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
	current := c.session.Publish(c.Conn, exchange, func() {
		msg := newPlain(m.topic, bytes.Clone(m.payload), m.qos, m.retain, &m.props)
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
	return id == nil || b.mayRead(id, topic)
}

// mayRead reports whether somebody may read a topic, or all that a filter matches.
func (b *Broker) mayRead(id *authhook.Identity, filter string) bool {
	ctx, cancel := b.ctx, context.CancelFunc(nil)
	if b.lookups {
		ctx, cancel = context.WithTimeout(b.ctx, subscribeTimeout)
		defer cancel()
	}
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
