// Package ledger records, outside the product, which messages were sent and
// acknowledged, what every subscriber received and what the archive holds.
// Check finds every contradiction between them. It guarantees that no lost,
// repeated, reordered or changed message goes unreported. Record events while
// the run lasts (Sent, Acked, Received, Archived), then call Check.
package ledger

import (
	"sync"
	"time"
)

// Message is one message that was sent. Its key is unique and is part of its
// content.
type Message struct {
	Key    string
	Sender string
	Topic  string
	QoS    byte
	Mid    string
	Number uint64 // number of the message among its sender's
	Digest uint64 // of the content, as it is to be archived and delivered

	sent        time.Time // before the first byte went out
	acked       bool
	republished bool // published again as a new message, so its place in the sender's order may differ
}

// Subscription is a topic whose messages a subscriber must receive.
type Subscription struct {
	Topic string
	QoS   byte
	// Since is the time of the SUBACK. Every message that was sent later must
	// come. The zero time means before the first message.
	Since time.Time
	// Pending means that there is no SUBACK yet. Until Confirm, messages may
	// come but need not.
	Pending bool
}

// Delivery is what a subscriber received.
type Delivery struct {
	Subscriber string
	Topic      string
	QoS        byte
	Dup        bool
	Conn       int // number of the subscriber's connection
	Content    Content
	Unreadable string // why Content is empty, or ""
}

// Row is one row of the archive.
type Row struct {
	Seq     uint64 // 0 if the archive has no seq
	Topic   string
	Sender  string // "" if the archive has no sender
	Mid     string
	Content Content
}

// Rules are the guarantees that Check holds the broker to.
type Rules struct {
	// Ordered means that messages have a seq and a prev, that the archive has
	// them too, and that the sender's own devices also get its direct
	// messages.
	Ordered bool
}

// Ledger is the record of one run. It is safe for concurrent use.
type Ledger struct {
	rules Rules

	mu         sync.Mutex // guards everything below
	messages   map[string]*Message
	order      []*Message
	acked      int
	subs       map[string]*subscriber
	names      []string // of subs, in the order of Subscribe
	archive    []*Row
	violations []string
}

type subscriber struct {
	name       string
	topics     map[string]*inbox
	deliveries int
}

// inbox is what a subscriber received on one topic.
type inbox struct {
	Subscription
	deliveries []*received
}

type received struct {
	message   *Message // nil if no such message was sent
	key       string
	seq       uint64
	prev      uint64
	unchanged bool // the content is the one that was sent
	qos       byte
	dup       bool
	conn      int
	count     int
}

// New returns an empty ledger.
func New(rules Rules) *Ledger {
	return &Ledger{rules: rules, messages: map[string]*Message{}, subs: map[string]*subscriber{}}
}

// Sent records a message, before it is given to the client.
func (l *Ledger) Sent(m *Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m.sent = time.Now()
	l.messages[m.Key] = m
	l.order = append(l.order, m)
}

// Republished records that a message is published again as a new one.
func (l *Ledger) Republished(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.messages[key]; m != nil {
		m.republished = true
	}
}

// Acked records that a message was acknowledged.
func (l *Ledger) Acked(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.messages[key]; m != nil && !m.acked {
		m.acked = true
		l.acked++
	}
}

// Subscribe records what a subscriber must receive. It is called again for
// further subscriptions of the same subscriber.
func (l *Ledger) Subscribe(name string, subs ...Subscription) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.subs[name]
	if s == nil {
		s = &subscriber{name: name, topics: map[string]*inbox{}}
		l.subs[name] = s
		l.names = append(l.names, name)
	}
	for _, sub := range subs {
		if s.topics[sub.Topic] == nil {
			s.topics[sub.Topic] = &inbox{Subscription: sub}
		}
	}
}

// Confirm records the SUBACK of a subscriber's pending subscriptions.
func (l *Ledger) Confirm(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, in := range l.subs[name].topics {
		if in.Pending {
			in.Pending, in.Since = false, time.Now()
		}
	}
}

// Received records a delivery.
func (l *Ledger) Received(d *Delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.subs[d.Subscriber]
	if s == nil || s.topics[d.Topic] == nil {
		l.addViolation("%s received a message on %s, which it has not subscribed to", d.Subscriber, d.Topic)
		return
	}
	if d.Unreadable != "" {
		l.addViolation("%s received on %s what is not a message: %s", d.Subscriber, d.Topic, d.Unreadable)
		return
	}
	m := l.messages[d.Content.Key]
	in := s.topics[d.Topic]
	in.deliveries = append(in.deliveries, &received{
		message: m, key: d.Content.Key, seq: d.Content.Seq, prev: d.Content.Prev, qos: d.QoS, dup: d.Dup, conn: d.Conn,
		unchanged: m != nil && d.Content.Digest == m.Digest && (!l.rules.Ordered || d.Content.From == m.Sender && d.Content.To == m.Topic),
	})
	s.deliveries++
}

// Archived records a row of the archive. Rows are recorded in the archive's
// order.
func (l *Ledger) Archived(r *Row) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.archive = append(l.archive, r)
}

// Violation records any other violation.
func (l *Ledger) Violation(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addViolation(format, args...)
}

// Totals returns how many messages were sent, acknowledged and received so far.
func (l *Ledger) Totals() (sent, acked, received int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.subs {
		received += s.deliveries
	}
	return len(l.order), l.acked, received
}

// Outstanding returns how many deliveries of acknowledged messages have not come.
func (l *Ledger) Outstanding() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, name := range l.names {
		for _, in := range l.subs[name].topics {
			have := map[string]bool{}
			for _, r := range in.deliveries {
				have[r.key] = true
			}
			for _, m := range l.order {
				if m.acked && !have[m.Key] && l.mustArrive(m, in) {
					n++
				}
			}
		}
	}
	return n
}

// mustArrive reports whether a stored message must come to the inbox.
func (l *Ledger) mustArrive(m *Message, in *inbox) bool {
	return l.isDeliveredOn(m, in.Topic) && !in.Pending && (in.Since.IsZero() || m.sent.After(in.Since))
}

// isDeliveredOn reports whether a message is delivered on the topic.
func (l *Ledger) isDeliveredOn(m *Message, topic string) bool {
	if m.Topic == topic {
		return true
	}
	return l.rules.Ordered && topic == "user/"+m.Sender && isDirect(m.Topic)
}

func isDirect(topic string) bool { return len(topic) > 5 && topic[:5] == "user/" }
