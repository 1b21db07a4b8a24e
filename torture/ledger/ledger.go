// Package ledger keeps account, outside of the product, of what was sent, what
// was acknowledged, what every subscriber received and what the archive holds,
// and finds everything that does not agree.
package ledger

import (
	"sync"
	"time"
)

// Message is one message that was sent. Its key is unique and stands in its
// content.
type Message struct {
	Key    string
	Sender string
	Topic  string
	QoS    byte
	Mid    string
	Number uint64 // counts the sender's messages
	Digest uint64 // of the content, as it is to be archived and delivered

	sent  time.Time // before the first byte went out
	acked bool
	again bool // was sent as a new message, so its place among the sender's may have changed
}

// Subscription is a topic that a subscriber is to have.
type Subscription struct {
	Topic string
	QoS   byte
	// Since is when it was acknowledged: every message sent later must come.
	// The zero time means that it was before the first message.
	Since time.Time
	// Pending: it is not acknowledged yet. Nothing must come, anything may,
	// until Confirm.
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
	Seq     uint64 // 0 if the archive has no such thing
	Topic   string
	Sender  string // "" if the archive has no such thing
	Mid     string
	Content Content
}

// Rules says what the broker has promised.
type Rules struct {
	// Ordered: messages have a seq and a prev, the archive has them too, and
	// every sender's direct messages come on its own topic as well.
	Ordered bool
}

// Ledger is the account. It is safe for concurrent use.
type Ledger struct {
	rules Rules

	mu       sync.Mutex // guards everything below
	messages map[string]*Message
	order    []*Message
	acked    int
	subs     map[string]*subscriber
	names    []string // of subs, in the order of Subscribe
	archive  []*Row
	odd      []string
}

type subscriber struct {
	name   string
	topics map[string]*inbox
	got    int
}

// inbox is what a subscriber received on one topic.
type inbox struct {
	Subscription
	got []*received
}

type received struct {
	m     *Message // nil if nobody sent it
	key   string
	seq   uint64
	prev  uint64
	same  bool // the content is what was sent
	qos   byte
	dup   bool
	conn  int
	count int
}

// New returns an empty ledger.
func New(rules Rules) *Ledger {
	return &Ledger{rules: rules, messages: map[string]*Message{}, subs: map[string]*subscriber{}}
}

// Sent notes a message, before it is handed to the client.
func (l *Ledger) Sent(m *Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m.sent = time.Now()
	l.messages[m.Key] = m
	l.order = append(l.order, m)
}

// Again notes that a message is sent as a new one.
func (l *Ledger) Again(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.messages[key]; m != nil {
		m.again = true
	}
}

// Acked notes that a message was acknowledged.
func (l *Ledger) Acked(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.messages[key]; m != nil && !m.acked {
		m.acked = true
		l.acked++
	}
}

// Subscribe notes what a subscriber is to have. It is called again for a
// subscriber that subscribes to more.
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

// Confirm notes that a subscriber's pending subscriptions are acknowledged now.
func (l *Ledger) Confirm(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, in := range l.subs[name].topics {
		if in.Pending {
			in.Pending, in.Since = false, time.Now()
		}
	}
}

// Received notes a delivery.
func (l *Ledger) Received(d *Delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.subs[d.Subscriber]
	if s == nil || s.topics[d.Topic] == nil {
		l.oddf("%s received a message on %s, which it has not subscribed to", d.Subscriber, d.Topic)
		return
	}
	if d.Unreadable != "" {
		l.oddf("%s received on %s what is not a message: %s", d.Subscriber, d.Topic, d.Unreadable)
		return
	}
	m := l.messages[d.Content.Key]
	in := s.topics[d.Topic]
	in.got = append(in.got, &received{
		m: m, key: d.Content.Key, seq: d.Content.Seq, prev: d.Content.Prev, qos: d.QoS, dup: d.Dup, conn: d.Conn,
		same: m != nil && d.Content.Digest == m.Digest && (!l.rules.Ordered || d.Content.From == m.Sender && d.Content.To == m.Topic),
	})
	s.got++
}

// Archived notes a row of the archive. Rows are noted in the archive's order.
func (l *Ledger) Archived(r *Row) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.archive = append(l.archive, r)
}

// Odd notes anything else that must not happen.
func (l *Ledger) Odd(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.oddf(format, args...)
}

// Totals returns how many messages were sent, acknowledged and received so far.
func (l *Ledger) Totals() (sent, acked, received int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.subs {
		received += s.got
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
			for _, r := range in.got {
				have[r.key] = true
			}
			for _, m := range l.order {
				if m.acked && !have[m.Key] && l.due(m, in) {
					n++
				}
			}
		}
	}
	return n
}

// due reports whether a message, if it was stored, must come to the inbox.
func (l *Ledger) due(m *Message, in *inbox) bool {
	return l.belongs(m, in.Topic) && !in.Pending && (in.Since.IsZero() || m.sent.After(in.Since))
}

// belongs reports whether a message is delivered on the topic.
func (l *Ledger) belongs(m *Message, topic string) bool {
	if m.Topic == topic {
		return true
	}
	return l.rules.Ordered && topic == "user/"+m.Sender && isDirect(m.Topic)
}

func isDirect(topic string) bool { return len(topic) > 5 && topic[:5] == "user/" }
