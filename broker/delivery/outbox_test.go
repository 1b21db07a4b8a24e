package delivery_test

import (
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/pubsub"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// gate is a connection whose writes wait until it is opened.
type gate struct {
	net.Conn
	opened, closed chan struct{}
	open, shut     func()

	mu    sync.Mutex
	sizes []int // of the writes, also of those that wait
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	g.sizes = append(g.sizes, len(p))
	g.mu.Unlock()
	select {
	case <-g.opened:
		return g.Conn.Write(p)
	case <-g.closed:
		return 0, net.ErrClosed
	}
}

func (g *gate) Close() error {
	g.shut()
	return g.Conn.Close()
}

func (g *gate) writes() []int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.sizes)
}

// gated attaches a session whose client takes nothing until the gate is opened. A packet of
// 100 bytes waits in the socket already. The caller starts the session.
func (r *rig) gated(a delivery.Attachment, subs ...session.Subscription) (*peer, *gate) {
	r.tb.Helper()
	client, server := net.Pipe()
	g := &gate{Conn: server, opened: make(chan struct{}), closed: make(chan struct{})}
	g.open = sync.OnceFunc(func() { close(g.opened) })
	g.shut = sync.OnceFunc(func() { close(g.closed) })
	p := &peer{conn: client, out: outbox.NewConn(g, r.engine.Limits()), v5: a.V5}
	p.resume.L = &p.mu
	a.Conn = p.out
	s, _, err := r.engine.Attach(a)
	if err == nil && len(subs) > 0 {
		err = s.Subscribe(subs, a.Groups)
	}
	if err != nil {
		r.tb.Fatal(err)
	}
	p.session = s
	done := make(chan struct{})
	go func() { defer close(done); p.read() }()
	r.tb.Cleanup(func() {
		g.open()
		p.offline(a.Expiry)
		<-done
	})
	p.mustWrite(r.tb, filler(100))
	waitfor.MustHold(r.tb, "the first write", func() bool { return len(g.writes()) == 1 })
	return p, g
}

// filler returns a packet of n bytes that a client would think nothing of.
func filler(n int) []byte {
	p := binary.AppendUvarint([]byte{0xd0}, uint64(n-2))
	if len(p) > 2 {
		p = binary.AppendUvarint([]byte{0xd0}, uint64(n-len(p)))
	}
	return append(p, make([]byte, n-len(p))...)
}

func (p *peer) mustWrite(tb testing.TB, b []byte) {
	tb.Helper()
	if _, err := p.out.Write(b); err != nil {
		tb.Fatal(err)
	}
}

// What waits for a client that does not read keeps to the limit for a connection, and to
// the limit for all; the client gets everything once it reads, and the memory is given
// back.
func TestOutboxIsBounded(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		perConn int
		total   int64
		most    int
	}{
		"a connection": {4000, 1 << 30, 4000},
		"all":          {1 << 20, 4000, 100 + 4096}, // buffers count with what they could hold
	} {
		for qos := range byte(2) {
			limits := &outbox.Limits{PerConn: tc.perConn, Total: tc.total}
			r := mustRig(t, delivery.Config{Limits: limits})
			a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
			p, g := r.gated(a, session.Subscription{Filter: "user/alice", QoS: 1})
			p.session.Start(p.out)
			waitfor.MustHold(t, "the session is live", p.session.Live)
			var recs []*msglog.Record
			for range 100 {
				recs = append(recs, r.publish(qos, "bob", "user/alice", "user/alice")...)
			}
			waitfor.MustHold(t, "the session is behind", func() bool { return !p.session.Live() && p.session.Idle() })
			g.open()
			p.wantSeqs(t, recs...)
			writes := g.writes()
			if first := writes[0] + writes[1]; first > tc.most || first < 500 {
				t.Errorf("%s, QoS %d: %d bytes waited, the limit is %d", name, qos, first, tc.most)
			}
			for _, n := range writes[1:] {
				if n > tc.most {
					t.Errorf("%s, QoS %d: a write of %d bytes, the limit is %d", name, qos, n, tc.most)
				}
			}
			waitfor.MustHold(t, "the memory is given back", func() bool { return limits.Held() == 0 })
		}
	}
}

// What comes again keeps to the limit too.
func TestResendKeepsToTheOutbox(t *testing.T) {
	t.Parallel()
	const most = 4000
	r := mustRig(t, delivery.Config{Limits: &outbox.Limits{PerConn: most}})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 1}, signals("alice"))
	var recs []*msglog.Record
	for range 60 {
		rec := message(1, "bob", "user/alice")
		rec.Tail = []byte(`"type":"text","body":"` + strings.Repeat("x", 500) + `"}`)
		recs = append(recs, r.commit(rec)...)
	}
	r.settled(p)
	p.offline(time.Hour)
	p, g := r.gated(a)
	p.session.Start(p.out)
	waitfor.MustHold(t, "the session has done what it can", p.session.Idle)
	g.open()
	p.wantSeqs(t, recs...)
	for _, n := range g.writes()[1:] {
		if n > most {
			t.Errorf("a write of %d bytes, the limit is %d", n, most)
		}
	}
}

// A session that is behind is given more when its outbox is half empty, and not before.
func TestHalfEmptyOutbox(t *testing.T) {
	t.Parallel()
	for _, waiting := range []int{500, 501} {
		r := mustRig(t, delivery.Config{Limits: &outbox.Limits{PerConn: 1000}})
		a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
		r.online(a, session.Subscription{Filter: "user/alice", QoS: 1}).offline(time.Hour)
		recs := r.publish(1, "bob", "user/alice")
		p, g := r.gated(a)
		p.mustWrite(t, filler(waiting-100))
		p.session.Start(p.out)
		waitfor.MustHold(t, "the session has done what it can", p.session.Idle)
		if p.session.Live() != (waiting == 500) {
			t.Errorf("with %d bytes of 1000 waiting: live is %v", waiting, p.session.Live())
		}
		g.open()
		p.wantSeqs(t, recs...)
		if writes := g.writes(); (writes[1] > waiting-100) != (waiting == 500) {
			t.Errorf("with %d bytes of 1000 waiting: writes of %v bytes", waiting, writes)
		}
	}
}

// Signals are the first to be dropped: they leave half of the outbox to messages.
func TestSignalsLeaveHalfTheOutbox(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{Limits: &outbox.Limits{PerConn: 1000}})
	p, g := r.gated(delivery.Attachment{Key: key("alice")}, signals("alice"))
	p.session.Start(p.out)
	waitfor.MustHold(t, "the session is live", p.session.Live)
	p.mustWrite(t, filler(300))
	payload := make([]byte, 100-2-2-len("user/alice/signal"))
	for i, want := range []uint64{1, 1} { // to 500 bytes, and beyond
		r.engine.Signal("user/alice/signal", payload)
		if n := r.engine.Stats().Signals.Load(); n != want {
			t.Errorf("after %d signals %d were sent, want %d", i+1, n, want)
		}
	}
	if n := r.engine.Stats().Dropped.Load(); n != 1 {
		t.Errorf("%d signals were dropped, want 1", n)
	}
	g.open()
	waitfor.MustHold(t, "the signal", func() bool { return p.count() == 1 })
}

// Packets that the protocol demands have room of their own beyond the limit. When that is
// full too, a QoS 0 PUBLISH is left out, and anything else ends the connection.
func TestControlPacketsHaveRoom(t *testing.T) {
	t.Parallel()
	const perConn, reserve = 1000, 64 << 10
	r := mustRig(t, delivery.Config{Limits: &outbox.Limits{PerConn: perConn}})
	p, g := r.gated(delivery.Attachment{Key: key("alice")})
	p.mustWrite(t, filler(perConn-100))
	p.mustWrite(t, filler(reserve-2))
	p.mustWrite(t, []byte{0xd0, 0})
	publish := []byte{0x30, 3, 0, 1, 'a'}
	p.mustWrite(t, publish)
	if _, err := p.out.Write([]byte{0xd0, 0}); !errors.Is(err, outbox.ErrSlowConsumer) {
		t.Errorf("beyond the reserve: %v, want ErrSlowConsumer", err)
	}
	if _, err := p.out.Write([]byte{0xd0, 0}); !errors.Is(err, outbox.ErrSlowConsumer) {
		t.Errorf("after that: %v, want ErrSlowConsumer", err)
	}
	<-g.closed
	if writes := g.writes(); len(writes) != 1 {
		t.Errorf("writes of %v bytes, want the first alone", writes)
	}

	p, g = r.gated(delivery.Attachment{Key: key("bob")})
	p.mustWrite(t, filler(perConn-100+reserve))
	p.mustWrite(t, publish)
	packets := func(n int) func() bool {
		return func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.others) == n }
	}
	g.open()
	waitfor.MustHold(t, "what waited", packets(2))
	p.mustWrite(t, filler(10))
	waitfor.MustHold(t, "the last packet", packets(3))
	if got := p.arrivals(); len(got) > 0 {
		t.Errorf("got %+v, which had no room", got)
	}
}

// What a live session has waiting of topics outside the chat goes on when the outbox has
// drained, also what is larger than the outbox.
func TestPlainMessagesWaitForTheOutbox(t *testing.T) {
	t.Parallel()
	for qos := range byte(2) {
		r := mustRig(t, delivery.Config{Limits: &outbox.Limits{PerConn: 1000}})
		p, g := r.gated(delivery.Attachment{Key: key("alice")})
		p.session.Start(p.out)
		waitfor.MustHold(t, "the session is live", p.session.Live)
		sizes := []int{300, 300, 300, 300, 5000, 300, 300, 5000, 5000, 300}
		for _, n := range sizes {
			m := &pubsub.Message{Topic: "plant/x", QoS: qos, Payload: make([]byte, n)}
			if !r.queues.Put(&p.session.Session, m, pubsub.Options{QoS: 1}) {
				t.Fatal("a message was not taken")
			}
		}
		g.open()
		waitfor.MustHold(t, "all messages", func() bool { return p.count() == len(sizes) })
		for i, a := range p.arrivals() {
			if len(a.payload) != sizes[i] {
				t.Errorf("message %d has %d bytes, want %d", i, len(a.payload), sizes[i])
			}
		}
	}
}
