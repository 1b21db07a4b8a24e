package delivery_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/chat"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is an engine on a log of its own.
type rig struct {
	tb     testing.TB
	cfg    delivery.Config
	log    *msglog.Pebble
	engine *delivery.Engine
}

func mustRig(tb testing.TB, cfg delivery.Config) *rig {
	tb.Helper()
	l, err := msglog.Open(tb.TempDir(), msglog.Options{NoSync: true})
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Log, cfg.Logger = l, slog.New(slog.DiscardHandler)
	r := &rig{tb: tb, cfg: cfg, log: l}
	r.start()
	tb.Cleanup(func() {
		r.engine.Stop()
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	return r
}

func (r *rig) start() {
	r.tb.Helper()
	e, err := delivery.New(r.cfg)
	if err != nil {
		r.tb.Fatal(err)
	}
	e.Start()
	r.engine = e
}

// restart goes on with a new engine, as after a restart of the broker, that finds the
// store as it was left and with these changes.
func (r *rig) restart(changes ...msglog.Op) {
	r.tb.Helper()
	r.engine.Stop()
	if err := r.log.Sessions().Apply(changes, true); err != nil {
		r.tb.Fatal(err)
	}
	r.start()
}

// publish appends a batch of short messages and delivers it.
func (r *rig) publish(qos byte, from string, topics ...string) []*msglog.Record {
	r.tb.Helper()
	recs := make([]*msglog.Record, len(topics))
	for i, topic := range topics {
		recs[i] = message(qos, from, topic)
	}
	return r.commit(recs...)
}

// message returns a message as it is before the log has it.
func message(qos byte, from, topic string) *msglog.Record {
	return &msglog.Record{QoS: qos, Message: chat.Message{
		From: from, To: topic, TS: 1, Type: "text", Tail: []byte(`"type":"text","body":"x"}`),
	}}
}

// commit appends a batch and delivers it.
func (r *rig) commit(recs ...*msglog.Record) []*msglog.Record {
	r.tb.Helper()
	p, err := r.log.Append(recs)
	if err == nil {
		err = p.Wait()
	}
	if err != nil {
		r.tb.Error(err)
		return nil
	}
	r.engine.Deliver(recs)
	return recs
}

// peer is the client's end of a session: it reads frames and acknowledges them.
type peer struct {
	conn    net.Conn
	session *delivery.Session
	out     *delivery.Conn
	v5      bool
	silent  bool // acknowledges nothing

	mu     sync.Mutex
	got    []arrival
	rels   []uint16 // packet ids of PUBRELs
	others [][]byte // other packets, with their first byte
	asked  int      // see settled
	marked int
	kept   string // topic of which nothing is acknowledged
	paused bool
	resume sync.Cond
}

type arrival struct {
	topic     string
	seq, prev uint64
	qos       byte
	id        uint16
	dup       bool
	size      int // bytes of the whole packet
	props     []byte
	payload   string
}

// attach connects a session and starts it.
func (r *rig) attach(a delivery.Attachment) *peer {
	r.tb.Helper()
	client, server := net.Pipe()
	p := &peer{conn: client, out: delivery.NewConn(server, r.engine.Limits()), v5: a.V5}
	p.resume.L = &p.mu
	a.Conn = p.out
	s, _, err := r.engine.Attach(a)
	if err != nil {
		r.tb.Error(err)
		return p
	}
	p.session = s
	return p
}

// read takes frames until the connection ends.
func (p *peer) read() {
	r := bufio.NewReader(p.conn)
	for {
		head, err := r.ReadByte()
		if err != nil {
			return
		}
		n, err := binary.ReadUvarint(r) // MQTT's variable byte integer is the same up to four bytes
		if err != nil {
			return
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		if head == 0x62 {
			id := binary.BigEndian.Uint16(body)
			p.mu.Lock()
			p.rels = append(p.rels, id)
			p.mu.Unlock()
			p.answer(7, id)
		}
		if head>>4 != 3 {
			p.mu.Lock()
			p.others = append(p.others, append([]byte{head}, body...))
			p.mu.Unlock()
			continue
		}
		size := int(body[0])<<8 | int(body[1])
		a := arrival{
			topic: string(body[2 : 2+size]), qos: head >> 1 & 3, dup: head&8 != 0,
			size: 1 + len(binary.AppendUvarint(nil, n)) + len(body),
		}
		rest := body[2+size:]
		if a.qos > 0 {
			a.id = binary.BigEndian.Uint16(rest)
			rest = rest[2:]
		}
		if p.v5 {
			a.props = rest[1 : 1+rest[0]] // no properties of more than 127 bytes here
			rest = rest[1+rest[0]:]
		}
		a.payload = string(rest)
		_, _ = fmt.Sscanf(a.payload, `{"seq":%d,"prev":%d,`, &a.seq, &a.prev) // a signal has neither
		p.mu.Lock()
		for p.paused {
			p.resume.Wait()
		}
		if strings.HasPrefix(a.payload, mark) {
			_, _ = fmt.Sscanf(a.payload, mark+"%d", &p.marked)
		} else {
			p.got = append(p.got, a)
		}
		kept := a.topic == p.kept
		p.mu.Unlock()
		switch {
		case kept:
		case a.qos == 1:
			p.answer(4, a.id)
		case a.qos == 2:
			p.answer(5, a.id)
		}
	}
}

// answer acknowledges, unless the peer is silent.
func (p *peer) answer(packetType byte, id uint16) {
	if !p.silent {
		p.session.Acknowledged(p.out, packetType, id, false)
	}
}

// closed reports whether the broker's side has closed the connection.
func (p *peer) closed() bool {
	_, err := p.out.Write(nil)
	return err != nil
}

func (p *peer) released() []uint16 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.rels)
}

// mark begins the payload of a signal that comes after everything that was sent before.
const mark = "mark "

// settled waits until nothing more comes for a peer as things are, and returns what has.
// The session has to be subscribed to its subject's signals.
func (r *rig) settled(p *peer) []arrival {
	r.tb.Helper()
	waitFor(r.tb, "the session has been given what it can be given", p.session.Idle)
	p.mu.Lock()
	p.asked++
	want := p.asked
	p.mu.Unlock()
	waitFor(r.tb, "a signal", func() bool {
		r.engine.Signal("user/"+p.session.Subject+"/signal", fmt.Append(nil, mark, want))
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.marked == want
	})
	return p.arrivals()
}

func (p *peer) pause(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = on
	p.resume.Broadcast()
}

// keepBack has nothing of a topic acknowledged from now on.
func (p *peer) keepBack(topic string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept = topic
}

func (p *peer) arrivals() []arrival {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

func contains(s, part string) bool { return strings.Contains(s, part) }

// discard returns a connection whose other end takes everything and answers nothing.
func (r *rig) discard() *delivery.Conn {
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, client)
	}()
	c := delivery.NewConn(server, r.engine.Limits())
	r.tb.Cleanup(func() {
		_ = c.Close()
		_ = client.Close()
		<-done
	})
	return c
}

func waitFor(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			tb.Fatalf("timed out: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// Sessions that stop and go at random, fall behind and catch up, still get every message
// of their topics once, in order and with prev unbroken: nothing is lost or repeated at
// the seam between the log and live delivery.
func TestSeamBetweenLogAndLive(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{Window: 8, Recent: 64 << 10, Limits: &delivery.OutboxLimits{PerConn: 4 << 10}})
	const groups, sessions, batches = 3, 12, 1500
	var topics []string
	for g := range groups {
		topics = append(topics, fmt.Sprintf("group/g%d", g))
	}
	var readers sync.WaitGroup
	peers := make([]*peer, sessions)
	for i := range peers {
		p := r.attach(delivery.Attachment{
			Key: delivery.Key{Subject: fmt.Sprintf("u%d", i), ClientID: "c"}, Groups: []string{"g0", "g1", "g2"}, V5: i%2 == 0,
		})
		if p.session == nil {
			t.FailNow()
		}
		filter := "group/+"
		if i%3 == 0 {
			filter = topics[i%groups]
		}
		if err := p.session.Subscribe([]delivery.Subscription{{Filter: filter, QoS: byte(i % 2)}}, []string{"g0", "g1", "g2"}); err != nil {
			t.Fatal(err)
		}
		readers.Go(p.read)
		p.session.Start(p.out)
		peers[i] = p
	}
	for i := range batches {
		batch := make([]string, 1+i%5)
		for j := range batch {
			batch[j] = topics[(i*7+j*3)%groups]
		}
		r.publish(byte(i%2), "sender", batch...)
		peers[i%sessions].pause(i%3 != 0)
	}
	for _, p := range peers {
		p.pause(false)
	}
	_, last := r.log.Bounds()
	for i, p := range peers {
		mine := topics
		if i%3 == 0 {
			mine = topics[i%groups : i%groups+1]
		}
		waitFor(t, fmt.Sprintf("session %d has everything", i), func() bool { return p.session.Cursor() == last })
		var want []uint64
		if err := r.log.Read(t.Context(), 0, last, func(rec *msglog.Record) bool {
			if slices.Contains(mine, rec.To) {
				want = append(want, rec.Seq)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the peer has read", func() bool { return len(p.arrivals()) >= len(want) })
		prev := map[string]uint64{}
		for k, a := range p.arrivals() {
			if k >= len(want) || a.seq != want[k] || a.prev != prev[a.topic] {
				t.Fatalf("session %d: arrival %d is %+v, want prev %d", i, k, a, prev[a.topic])
			}
			prev[a.topic] = a.seq
		}
		p.session.Detach(p.out, 0)
		_ = p.out.Close()
		_ = p.conn.Close()
	}
	readers.Wait()
}

// The registry against a naive model: whoever subscribes to a topic, by name or by
// group/+, gets what is published there after that, and nobody else, whatever joins,
// leaves, subscribes, unsubscribes, disconnects and comes back.
func TestRegistryAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l, err := msglog.Open(modelDir(t), msglog.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		e, err := delivery.New(delivery.Config{Log: l, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		e.Start()
		defer func() { e.Stop(); _ = l.Close() }()
		m := newModel(t, l, e)
		defer m.close()
		m.run(t)
	})
}

type model struct {
	log     *msglog.Pebble
	engine  *delivery.Engine
	readers sync.WaitGroup
	users   []*modelUser
}

// modelUser is a subject with one persistent session and what it should have got.
type modelUser struct {
	name    string
	peer    *peer // nil while offline
	groups  map[string]bool
	filters map[string]bool
	want    []uint64
	old     []arrival // what earlier connections got
}

func newModel(t *rapid.T, l *msglog.Pebble, e *delivery.Engine) *model {
	m := &model{log: l, engine: e}
	for i := range rapid.IntRange(1, 4).Draw(t, "users") {
		m.users = append(m.users, &modelUser{name: fmt.Sprintf("u%d", i), groups: map[string]bool{}, filters: map[string]bool{}})
	}
	return m
}

func (m *model) close() {
	for _, u := range m.users {
		if u.peer != nil {
			u.peer.session.Detach(u.peer.out, time.Hour)
			_ = u.peer.out.Close()
			_ = u.peer.conn.Close()
		}
	}
	m.readers.Wait()
}

func (u *modelUser) groupList() []string { return slices.Sorted(maps.Keys(u.groups)) }

// hears reports whether the user's subscriptions cover a topic.
func (u *modelUser) hears(topic string) bool {
	if id, ok := cutGroup(topic); ok {
		return u.groups[id] && (u.filters["group/+"] || u.filters[topic])
	}
	return u.filters[topic]
}

func cutGroup(topic string) (string, bool) {
	const p = "group/"
	if len(topic) > len(p) && topic[:len(p)] == p {
		return topic[len(p):], true
	}
	return "", false
}

func (m *model) run(t *rapid.T) {
	rig := &rig{engine: m.engine, log: m.log}
	for range rapid.IntRange(1, 60).Draw(t, "steps") {
		u := rapid.SampledFrom(m.users).Draw(t, "user")
		group := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "group")
		filter := rapid.SampledFrom([]string{"group/+", "group/a", "group/b", "user/" + u.name}).Draw(t, "filter")
		switch rapid.IntRange(0, 6).Draw(t, "step") {
		case 0:
			m.connect(t, rig, u)
		case 1:
			m.settle(t, u)
			m.disconnect(u)
		case 2:
			if u.peer != nil {
				u.filters[filter] = true
				check(t, u.peer.session.Subscribe([]delivery.Subscription{{Filter: filter, QoS: 1}}, u.groupList()))
			}
		case 3:
			if u.peer != nil {
				m.settle(t, u)
				delete(u.filters, filter)
				check(t, u.peer.session.Unsubscribe([]string{filter}))
			}
		case 4, 5:
			if u.groups[group] && u.peer == nil {
				continue // what it has not had by then it does not get: not this model's
			}
			m.settle(t, u)
			if u.groups[group] = !u.groups[group]; !u.groups[group] {
				delete(u.groups, group)
			}
			for _, s := range m.engine.Sessions(u.name) {
				check(t, s.ChangeGroup(group, u.groups[group]))
			}
		default:
			topic := rapid.SampledFrom([]string{"group/a", "group/b", "user/" + u.name}).Draw(t, "topic")
			recs := []*msglog.Record{{QoS: 1, Message: chat.Message{From: "x", To: topic, TS: 1, Type: "text", Tail: []byte(`"type":"text"}`)}}}
			p, err := m.log.Append(recs)
			check(t, err)
			check(t, p.Wait())
			m.engine.Deliver(recs)
			for _, v := range m.users {
				if v.hears(topic) {
					v.want = append(v.want, recs[0].Seq)
				}
			}
		}
	}
	for _, u := range m.users {
		m.connect(t, rig, u)
		m.settle(t, u)
	}
}

func (m *model) connect(t *rapid.T, rig *rig, u *modelUser) {
	if u.peer != nil {
		return
	}
	client, server := net.Pipe()
	p := &peer{conn: client, out: delivery.NewConn(server, rig.engine.Limits())}
	p.resume.L = &p.mu
	s, _, err := m.engine.Attach(delivery.Attachment{
		Key: delivery.Key{Subject: u.name, ClientID: "c"}, Conn: p.out, Expiry: time.Hour, Groups: u.groupList(),
	})
	check(t, err)
	p.session, u.peer = s, p
	m.readers.Go(p.read)
	s.Start(p.out)
}

func (m *model) disconnect(u *modelUser) {
	if u.peer == nil {
		return
	}
	u.old = append(u.old, u.peer.arrivals()...)
	u.peer.session.Detach(u.peer.out, time.Hour)
	_ = u.peer.out.Close()
	_ = u.peer.conn.Close()
	u.peer = nil
}

// settle waits until a connected user has got what it should, and checks that.
func (m *model) settle(t *rapid.T, u *modelUser) {
	if u.peer == nil {
		return
	}
	_, last := m.log.Bounds()
	deadline := time.Now().Add(10 * time.Second)
	got := func() []arrival { return append(slices.Clone(u.old), u.peer.arrivals()...) }
	for u.peer.session.Cursor() != last || len(got()) < len(u.want) {
		if time.Now().After(deadline) {
			t.Fatalf("%s has %d messages and is at %d, want %d and %d", u.name, len(got()), u.peer.session.Cursor(), len(u.want), last)
		}
		time.Sleep(50 * time.Microsecond)
	}
	var seqs []uint64
	for _, a := range got() {
		seqs = append(seqs, a.seq)
	}
	if !slices.Equal(seqs, u.want) {
		t.Fatalf("%s got %v, want %v", u.name, seqs, u.want)
	}
}

func check(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// modelDir returns a folder that is removed when the check is done.
func modelDir(t *rapid.T) string {
	dir, err := os.MkdirTemp("", "mynah-delivery-")
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// clock is a time that a test sets, in milliseconds since 1970.
type clock struct{ ms atomic.Int64 }

func (c *clock) set(ms int64)   { c.ms.Store(ms) }
func (c *clock) now() time.Time { return time.UnixMilli(c.ms.Load()) }
