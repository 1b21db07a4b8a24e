package delivery_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/packet"
	"mynah/broker/pubsub"
	"mynah/broker/session"
	"mynah/broker/state"
	"mynah/chat"
	"mynah/internal/leak"
	"mynah/internal/waitfor"
)

func TestMain(m *testing.M) { leak.Main(m) }

// rig is an engine on a log of its own, with queues of what its sessions have waiting outside
// the chat.
type rig struct {
	tb     testing.TB
	cfg    delivery.Config
	plain  pubsub.QueuesConfig
	log    *msglog.Pebble
	engine *delivery.Engine
	queues *pubsub.Queues
}

func mustRig(tb testing.TB, cfg delivery.Config) *rig {
	tb.Helper()
	return mustRigWith(tb, cfg, pubsub.QueuesConfig{})
}

func mustRigWith(tb testing.TB, cfg delivery.Config, plain pubsub.QueuesConfig) *rig {
	tb.Helper()
	l, err := msglog.Open(tb.TempDir(), msglog.Options{NoSync: true})
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Log, cfg.State, cfg.Logger = l, l.State(), slog.New(slog.DiscardHandler)
	r := &rig{tb: tb, cfg: cfg, plain: plain, log: l}
	r.start()
	tb.Cleanup(func() {
		r.stop()
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
	r.plain.Logger, r.plain.Limits, r.plain.Now = r.cfg.Logger, e.Limits(), r.cfg.Now
	e.Start()
	r.engine, r.queues = e, pubsub.NewQueues(r.plain)
}

func (r *rig) stop() {
	if r.queues != nil {
		r.queues.Stop()
	}
	r.engine.Stop()
}

// restart goes on with a new engine, as after a restart of the broker, that finds the
// store as it was left and with these changes.
func (r *rig) restart(changes ...state.Op) {
	r.tb.Helper()
	r.stop()
	if err := r.log.State().Apply(changes, true); err != nil {
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
	p, err := r.log.Propose(&msglog.Entry{Records: recs})
	if err == nil {
		_, err = p.Wait()
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
	out     *outbox.Conn
	v5      bool
	silent  bool          // acknowledges nothing
	ended   chan struct{} // closed when everything has been read; only of those online

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
	p := &peer{conn: client, out: outbox.NewConn(server, r.engine.Limits()), v5: a.V5}
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

// attached reports whether the session is this connection's.
func (p *peer) attached() bool { return p.session.Attached() == p.out }

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
func (p *peer) answer(packetType packet.Type, id uint16) {
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
	waitfor.MustHold(r.tb, "the session has been given what it can be given", p.session.Idle)
	p.mu.Lock()
	p.asked++
	want := p.asked
	p.mu.Unlock()
	waitfor.MustHold(r.tb, "a signal", func() bool {
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

// count returns how many messages have arrived.
func (p *peer) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.got)
}

func (p *peer) arrivals() []arrival {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

func contains(s, part string) bool { return strings.Contains(s, part) }

// discard returns a connection whose other end takes everything and answers nothing.
func (r *rig) discard() *outbox.Conn {
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, client)
	}()
	c := outbox.NewConn(server, r.engine.Limits())
	r.tb.Cleanup(func() {
		_ = c.Close()
		_ = client.Close()
		<-done
	})
	return c
}

// Sessions that stop and go at random, fall behind and catch up, still get every message
// of their topics once, in order and with prev unbroken: nothing is lost or repeated at
// the seam between the log and live delivery.
func TestSeamBetweenLogAndLive(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{Window: 8, Recent: 64 << 10, Limits: &outbox.Limits{PerConn: 4 << 10}})
	const groups, sessions, batches = 3, 12, 1500
	var topics []string
	for g := range groups {
		topics = append(topics, fmt.Sprintf("group/g%d", g))
	}
	var readers sync.WaitGroup
	peers := make([]*peer, sessions)
	for i := range peers {
		p := r.attach(delivery.Attachment{
			Key: session.Key{Subject: fmt.Sprintf("u%d", i), ClientID: "c"}, Groups: []string{"g0", "g1", "g2"}, V5: i%2 == 0,
		})
		if p.session == nil {
			t.FailNow()
		}
		filter := "group/+"
		if i%3 == 0 {
			filter = topics[i%groups]
		}
		if err := p.session.Subscribe([]session.Subscription{{Filter: filter, QoS: byte(i % 2)}}, []string{"g0", "g1", "g2"}); err != nil {
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
		waitfor.MustHold(t, fmt.Sprintf("session %d has everything", i), func() bool { return p.session.Cursor() == last })
		var want []uint64
		if err := r.log.Read(t.Context(), 0, last, func(rec *msglog.Record) bool {
			if slices.Contains(mine, rec.To) {
				want = append(want, rec.Seq)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		waitfor.MustHold(t, "the peer has read", func() bool { return p.count() >= len(want) })
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

// clock is a time that a test sets, in milliseconds since 1970.
type clock struct{ ms atomic.Int64 }

func (c *clock) set(ms int64)   { c.ms.Store(ms) }
func (c *clock) now() time.Time { return time.UnixMilli(c.ms.Load()) }
