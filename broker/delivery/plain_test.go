package delivery_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/pubsub"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// plainTopics notes what an engine tells it.
type plainTopics struct {
	mu       sync.Mutex
	subs     map[string]bool // subject and filter
	retained map[string]*pubsub.Message
	orphans  []pubsub.Orphan
	disk     chan struct{} // what is retained below plant/disk is looked for on a disk that hangs until this is closed; nil for in memory
}

func newPlainTopics() *plainTopics {
	return &plainTopics{subs: map[string]bool{}, retained: map[string]*pubsub.Message{}}
}

func (p *plainTopics) Subscribed(s *session.Session, sub session.Subscription) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.subs[fmt.Sprintf("%p %s", s, sub.Filter)] = true
}

func (p *plainTopics) Unsubscribed(s *session.Session, filters ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range filters {
		delete(p.subs, fmt.Sprintf("%p %s", s, f))
	}
}

func (p *plainTopics) Retained(topic string) (m *pubsub.Message, known bool) {
	if p.disk != nil && strings.HasPrefix(topic, "plant/disk/") {
		return nil, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.retained[topic], true
}

func (p *plainTopics) LookUpRetained(topic string) *pubsub.Message {
	<-p.disk
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.retained[topic]
}

func (p *plainTopics) orphaned(left []pubsub.Orphan) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.orphans = append(p.orphans, left...)
}

func (p *plainTopics) retain(m *pubsub.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retained[m.Topic] = m
}

// plainMessage returns a message whose payload is a number.
func plainMessage(qos byte, i int) *pubsub.Message {
	return &pubsub.Message{Topic: "plant/x", QoS: qos, Payload: fmt.Append(nil, i)}
}

// options of a subscription at QoS 2.
var atMost2 = pubsub.Options{QoS: 2}

// wantPlain waits for the messages of a topic outside the chat and compares them.
func (p *peer) wantPlain(tb testing.TB, want ...string) []arrival {
	tb.Helper()
	var got []arrival
	waitfor.MustHold(tb, fmt.Sprintf("%d plain messages", len(want)), func() bool {
		got = slices.DeleteFunc(p.arrivals(), func(a arrival) bool { return !strings.HasPrefix(a.topic, "plant/") })
		return len(got) >= len(want)
	})
	for i, a := range got {
		if i >= len(want) || a.payload != want[i] {
			tb.Fatalf("message %d is %q; want %q", i, a.payload, want)
		}
	}
	return got
}

func numbers(from, to int) (s []string) {
	for i := from; i < to; i++ {
		s = append(s, fmt.Sprint(i))
	}
	return s
}

// Messages of the log and others share a client's Receive Maximum and its outbox. Whoever
// makes room for one makes it for the other: nothing waits for ever, whatever the order in
// which messages and acknowledgements come.
func TestPlainAndLogShareTheWindow(t *testing.T) {
	t.Parallel()
	for _, limit := range []uint16{1, 2, 3, 40} {
		for _, perConn := range []int{300, 256 << 10} {
			t.Run(fmt.Sprintf("%d messages, %d bytes", limit, perConn), func(t *testing.T) {
				t.Parallel()
				r := mustRig(t, delivery.Config{Limits: &outbox.Limits{PerConn: perConn}})
				p := r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour, ReceiveMaximum: limit},
					session.Subscription{Filter: "user/alice", QoS: 2})
				const n = 400
				var wg sync.WaitGroup
				wg.Go(func() {
					for i := range n {
						r.queues.Put(&p.session.Session, plainMessage(byte(1+i%2), i), atMost2)
					}
				})
				var seqs []uint64
				for i := range n {
					seqs = append(seqs, r.publish(byte(i%3), "bob", "user/alice")[0].Seq)
				}
				wg.Wait()
				p.wantPlain(t, numbers(0, n)...)
				var got []uint64
				waitfor.MustHold(t, "the log's", func() bool {
					got = got[:0]
					for _, a := range p.arrivals() {
						if a.seq != 0 {
							got = append(got, a.seq)
						}
					}
					return len(got) >= n
				})
				if !slices.Equal(got, seqs) {
					t.Errorf("got seqs %v", got)
				}
			})
		}
	}
}

// While a client takes less than there is, the log and the other topics take turns: a
// backlog of one does not hold up the other.
func TestPlainAndLogTakeTurns(t *testing.T) {
	t.Parallel()
	for _, limit := range []uint16{1, 8} {
		r := mustRig(t, delivery.Config{Limits: &outbox.Limits{PerConn: 2 << 10}})
		start := func(name string) *peer {
			p := r.online(delivery.Attachment{Key: key(name), Expiry: time.Hour, ReceiveMaximum: limit},
				session.Subscription{Filter: "user/" + name, QoS: 1})
			p.pause(true)
			return p
		}
		const many, few = 1500, 5
		// position returns where the last of the few came.
		position := func(p *peer, is func(arrival) bool) int {
			p.pause(false)
			waitfor.MustHold(t, "all messages", func() bool { return p.count() == many+few })
			last := 0
			for i, a := range p.arrivals() {
				if is(a) {
					last = i
				}
			}
			return last
		}
		p := start("logful")
		for range many {
			r.publish(1, "bob", "user/logful")
		}
		for i := range few {
			r.queues.Put(&p.session.Session, plainMessage(1, i), atMost2)
		}
		if at := position(p, func(a arrival) bool { return a.seq == 0 }); at > many/2 {
			t.Errorf("limit %d: what is not of the log came at %d of %d", limit, at, many)
		}
		p = start("plainful")
		for i := range many {
			r.queues.Put(&p.session.Session, plainMessage(1, i), atMost2)
		}
		for range few {
			r.publish(1, "bob", "user/plainful")
		}
		if at := position(p, func(a arrival) bool { return a.seq != 0 }); at > many/2 {
			t.Errorf("limit %d: what is of the log came at %d of %d", limit, at, many)
		}
	}
}

// Connections come and go at random while messages flow, with another Receive Maximum each
// time and clients that stop reading: at QoS 1 every message arrives, in order but for
// repetitions, and when all is done nothing is held any more.
func TestPlainOverManyConnections(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{Limits: &outbox.Limits{PerConn: 400}})
	rnd := rand.New(rand.NewPCG(1, 2))
	a := func() delivery.Attachment {
		return delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true, ReceiveMaximum: uint16(1 + rnd.IntN(6))} //nolint:gosec // small
	}
	const n = 3000
	p := r.online(a(), session.Subscription{Filter: "user/alice", QoS: 1})
	session := &p.session.Session
	var queued atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			if !r.queues.Put(session, plainMessage(1, i), atMost2) {
				t.Error("a message was not taken")
			}
			queued.Add(1)
			if i%10 == 0 {
				r.publish(1, "bob", "user/alice")
			}
		}
	})
	next := 0
	check := func(p *peer) {
		for _, got := range p.arrivals() {
			var i int
			if _, err := fmt.Sscan(got.payload, &i); err != nil || got.topic != "plant/x" {
				continue
			}
			if i > next {
				t.Fatalf("got %d, want %d", i, next)
			}
			next = max(next, i+1)
		}
	}
	for queued.Load() < n || r.queues.Held() > 0 {
		some := rnd.IntN(200)
		waitfor.MustHold(t, "some messages", func() bool {
			return p.count() > some || queued.Load() == n && r.queues.Held() == 0
		})
		p.pause(rnd.IntN(2) == 0)
		old := p
		p = r.online(a()) // takes over
		old.pause(false)
		waitfor.MustHold(t, "the old connection has ended", old.closed)
		waitfor.MustHold(t, "its last messages", func() bool { before := len(old.arrivals()); return len(old.arrivals()) == before })
		check(old)
	}
	wg.Wait()
	check(p)
	if next != n {
		t.Errorf("the last message is %d, want %d", next-1, n-1)
	}
}

// A session holds as much as it may and not more; what it drops is counted. Expired
// messages make room, and whoever has nothing waiting is not cut by what others hold.
func TestPlainBounds(t *testing.T) {
	t.Parallel()
	var now atomic.Int64
	now.Store(time.Now().UnixMilli())
	r := mustRigWith(t, delivery.Config{Now: func() time.Time { return time.UnixMilli(now.Load()) }},
		pubsub.QueuesConfig{Messages: 10, Bytes: 4000, Total: 6000})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	p := r.online(a)
	p.offline(time.Hour)
	queue := func(s *delivery.Session, m *pubsub.Message, want bool) {
		t.Helper()
		if got := r.queues.Put(&s.Session, m, atMost2); got != want {
			t.Errorf("%.10s: taken %v, want %v", m.Payload, got, want)
		}
	}
	queue(p.session, plainMessage(0, 0), false) // not for whoever is away, and not counted
	for i := range 9 {
		queue(p.session, plainMessage(1, i), true)
	}
	soon := plainMessage(1, 9)
	soon.Expires = now.Load() + 1000
	queue(p.session, soon, true)
	queue(p.session, plainMessage(1, 10), false)
	now.Add(1000)
	queue(p.session, plainMessage(1, 10), true) // in the place of the one that has expired
	queue(p.session, plainMessage(1, 11), false)
	if n := r.queues.Stats().Dropped.Load(); n != 2 {
		t.Errorf("%d are counted as dropped, want 2", n)
	}
	r.online(a).wantPlain(t, append(numbers(0, 9), "10")...)
	waitfor.MustHold(t, "all is acknowledged", func() bool { return r.queues.Held() == 0 })

	big := &pubsub.Message{Topic: "plant/x", QoS: 1, Payload: make([]byte, 3000)}
	bob, carol := r.online(delivery.Attachment{Key: key("bob"), Expiry: time.Hour}), r.online(delivery.Attachment{Key: key("carol"), Expiry: time.Hour})
	bob.offline(time.Hour)
	carol.offline(time.Hour)
	queue(bob.session, big, true)
	queue(bob.session, big, false) // its own bytes
	queue(carol.session, big, true)
	queue(carol.session, plainMessage(1, 1), false) // all together
	r.online(delivery.Attachment{Key: key("bob")}).session.Detach(nil, 0)
}

// Whoever fills all its sessions leaves room for the little that others have waiting.
func TestPlainRoomForOthers(t *testing.T) {
	t.Parallel()
	r := mustRigWith(t, delivery.Config{}, pubsub.QueuesConfig{Bytes: 20_000, Total: 640_000})
	away := func(name string) *delivery.Session {
		p := r.online(delivery.Attachment{Key: key(name), Expiry: time.Hour})
		p.offline(time.Hour)
		return p.session
	}
	big := &pubsub.Message{Topic: "plant/x", QoS: 1, Payload: make([]byte, 100)}
	for i := range 50 {
		greedy := away(fmt.Sprint("greedy", i))
		for r.queues.Put(&greedy.Session, big, atMost2) {
		}
	}
	other := away("other")
	for i := range 20 {
		if !r.queues.Put(&other.Session, plainMessage(1, i), atMost2) {
			t.Fatalf("message %d is dropped while %d of 640,000 bytes are held", i, r.queues.Held())
		}
	}
}

// A message that has expired is not sent, and how long it is good for counts down while it
// waits (MQTT 5, 3.3.2.3.3).
func TestPlainExpiry(t *testing.T) {
	t.Parallel()
	var now atomic.Int64
	now.Store(time.Now().UnixMilli())
	r := mustRig(t, delivery.Config{Now: func() time.Time { return time.UnixMilli(now.Load()) }})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}
	p := r.online(a)
	p.offline(time.Hour)
	for i, seconds := range []int64{5, 0, 60} {
		m := plainMessage(1, i)
		if seconds > 0 {
			m.Expires = now.Load() + seconds*1000
		}
		r.queues.Put(&p.session.Session, m, atMost2)
	}
	now.Add(10_000)
	got := r.online(a).wantPlain(t, "1", "2")
	if want := "\x02\x00\x00\x00\x32"; string(got[0].props) != "" || string(got[1].props) != want {
		t.Errorf("properties %q and %q, want none and %q", got[0].props, got[1].props, want)
	}
}

// At QoS 0 a burst waits for the outbox, in order, and ends with the connection.
func TestPlainQoS0(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{Limits: &outbox.Limits{PerConn: 200}})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	p := r.online(a)
	p.pause(true)
	for i := range 500 {
		r.queues.Put(&p.session.Session, plainMessage(0, i), atMost2)
	}
	p.pause(false)
	p.wantPlain(t, numbers(0, 500)...)
	p.pause(true)
	for i := range 500 {
		r.queues.Put(&p.session.Session, plainMessage(0, 500+i), atMost2)
	}
	p.offline(time.Hour)
	if held := r.queues.Held(); held != 0 {
		t.Errorf("%d bytes are held for a connection that is over", held)
	}
	p = r.online(a)
	r.queues.Put(&p.session.Session, plainMessage(1, 1), atMost2)
	p.wantPlain(t, "1")
}

// Retained messages are sent as they are when their turn comes; of what only the latest
// matters one waits, however often it was told meanwhile.
func TestPlainRetainedAndLatest(t *testing.T) {
	t.Parallel()
	topics := newPlainTopics()
	r := mustRigWith(t, delivery.Config{Limits: &outbox.Limits{PerConn: 300}}, pubsub.QueuesConfig{Source: topics})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	p := r.online(a)
	p.offline(time.Hour)
	var names []string
	for i := range 1000 {
		m := plainMessage(1, i)
		m.Topic = fmt.Sprintf("plant/%04d", i)
		topics.retain(m)
		names = append(names, m.Topic)
	}
	r.queues.PutRetained(&p.session.Session, "plant/#", names[:500], atMost2)
	r.queues.PutRetained(&p.session.Session, "plant/#", names, atMost2) // in the place of the first
	latest := func(i int) {
		m := plainMessage(1, i)
		m.Topic, m.Latest = "plant/state", true
		topics.retain(m)
		if !r.queues.Put(&p.session.Session, m, atMost2) {
			t.Error("not taken")
		}
	}
	for i := range 100 {
		latest(i)
	}
	changed := plainMessage(1, -1)
	changed.Topic = "plant/0999"
	topics.retain(changed)
	p = r.online(a)
	p.wantPlain(t, append(numbers(0, 999), "-1", "99")...)
	latest(100)
	p.wantPlain(t, append(numbers(0, 999), "-1", "99", "100")...)
	waitfor.MustHold(t, "all is acknowledged", func() bool { return r.queues.Held() == 0 })
}

// While it is looked for on disk what is retained, the session gets messages of the log, and so
// does everybody else; then what was found is sent, in order. The disk was read under the
// session's lock, for which the one goroutine that delivers to all may wait.
func TestNobodyWaitsForWhatIsRetained(t *testing.T) {
	t.Parallel()
	topics := newPlainTopics()
	topics.disk = make(chan struct{})
	r := mustRigWith(t, delivery.Config{Limits: &outbox.Limits{PerConn: 300}}, pubsub.QueuesConfig{Source: topics})
	alice := r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour, ReceiveMaximum: 10},
		session.Subscription{Filter: "user/alice", QoS: 1})
	bob := r.online(delivery.Attachment{Key: key("bob"), Expiry: time.Hour}, session.Subscription{Filter: "user/bob", QoS: 1})
	var names []string
	for i := range 200 {
		m := plainMessage(1, i)
		m.Topic = fmt.Sprintf("plant/disk/%03d", i)
		if i%3 == 0 { // the others have nothing retained
			topics.retain(m)
		}
		names = append(names, m.Topic)
	}
	asked := make(chan struct{})
	go func() {
		r.queues.PutRetained(&alice.session.Session, "plant/#", names, atMost2)
		r.queues.Put(&alice.session.Session, plainMessage(1, 1000), atMost2)
		close(asked)
	}()
	select {
	case <-asked:
	case <-time.After(waitfor.Timeout):
		t.Fatal("whoever asks for what is retained waits for the disk")
	}
	var toAlice, toBob []*msglog.Record
	for range 20 {
		toAlice = append(toAlice, r.publish(1, "carol", "user/alice")...)
		toBob = append(toBob, r.publish(1, "carol", "user/bob")...)
	}
	alice.wantSeqs(t, toAlice...)
	bob.wantSeqs(t, toBob...)
	close(topics.disk)
	var want []string
	for i := 0; i < 200; i += 3 {
		want = append(want, fmt.Sprint(i))
	}
	alice.wantPlain(t, append(want, "1000")...)
	waitfor.MustHold(t, "all is acknowledged", func() bool { return r.queues.Held() == 0 })
}

// The tree of subscriptions hears of every session's from the engine's start to the
// session's end, and what an ended session leaves behind of shared subscriptions is given
// back: not what it may have had at QoS 2 (MQTT 5, 4.8.2).
func TestPlainTopicsAreTold(t *testing.T) {
	t.Parallel()
	topics := newPlainTopics()
	r := mustRigWith(t, delivery.Config{Observer: topics}, pubsub.QueuesConfig{Source: topics, Orphan: topics.orphaned})
	filters := []session.Subscription{{Filter: "plant/#", QoS: 1}, {Filter: "$share/g/x", QoS: 1}, {Filter: "user/alice", QoS: 1}}
	p := r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour}, filters...)
	want := func(n int) {
		t.Helper()
		topics.mu.Lock()
		defer topics.mu.Unlock()
		if len(topics.subs) != n {
			t.Errorf("%d subscriptions, want %d: %v", len(topics.subs), n, topics.subs)
		}
	}
	want(2)
	if err := p.session.Unsubscribe([]string{"plant/#", "user/alice"}); err != nil {
		t.Fatal(err)
	}
	want(1)
	p.offline(time.Hour)
	topics.mu.Lock()
	clear(topics.subs)
	topics.mu.Unlock()
	r.restart()
	want(1)
	p = r.onlineAs(delivery.Attachment{Key: key("alice"), Expiry: time.Hour, ReceiveMaximum: 2}, true)
	shared := pubsub.Options{QoS: 2, Share: "$share/g/x"}
	for i, qos := range []byte{1, 2, 2, 1} { // two are sent
		r.queues.Put(&p.session.Session, plainMessage(qos, i), shared)
	}
	r.queues.Put(&p.session.Session, plainMessage(1, 4), atMost2)
	p.wantPlain(t, "0", "1")
	p.session.Detach(p.out, 0)
	want(0)
	var left string
	waitfor.MustHold(t, "what was left behind", func() bool {
		topics.mu.Lock()
		defer topics.mu.Unlock()
		left = ""
		for _, o := range topics.orphans {
			left += string(o.Message.Payload)
		}
		return left != ""
	})
	if left != "023" {
		t.Errorf("given back: %s, want 0, 2 and 3", left)
	}
	if held := r.queues.Held(); held != 0 || r.queues.Put(&p.session.Session, plainMessage(1, 9), atMost2) {
		t.Errorf("an ended session takes messages or holds %d bytes", held)
	}
}

// A connection that has lost its session publishes nothing more, and a packet id of QoS 2
// stands for one message until it is released, over all connections.
func TestPublishOutsideTheChat(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	old := r.online(a)
	passed := 0
	publish := func(p *peer, exchange uint16, want int, current bool) {
		t.Helper()
		if got := p.session.Inbound.Publish(exchange, p.attached, func() { passed++ }); got != current || passed != want {
			t.Errorf("current %v, passed on %d times; want %v and %d", got, passed, current, want)
		}
	}
	publish(old, 0, 1, true)
	publish(old, 0, 2, true)
	publish(old, 7, 3, true)
	publish(old, 7, 3, true)
	p := r.online(a)
	publish(p, 7, 3, true)
	publish(old, 8, 3, false)
	old.session.Inbound.Release(7, old.attached) // too late
	publish(p, 7, 3, true)
	p.session.Inbound.Release(7, p.attached)
	publish(p, 7, 4, true)
}
