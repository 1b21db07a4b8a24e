package delivery_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/session"
	"mynah/broker/state"
	"mynah/internal/waitfor"
)

// An acknowledgement of what has not been sent yet is none. Once it ended the broker: a
// client guesses the next packet id and refuses it while it is being stored.
func TestAcknowledgedBeforeSent(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	p := r.mute(delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}, session.Subscription{Filter: "user/alice", QoS: 2})
	const messages = 200
	stop := make(chan struct{})
	var hostile sync.WaitGroup
	hostile.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for id := uint16(p.count() + 1); id < uint16(p.count()+4); id++ { //nolint:gosec // few
				p.session.Acknowledged(p.out, 5, id, true)
				p.session.Acknowledged(p.out, 7, id, true)
			}
		}
	})
	for range messages {
		r.publish(2, "bob", "user/alice")
	}
	waitfor.MustHold(t, "all messages", func() bool { return p.count() == messages })
	close(stop)
	hostile.Wait()
}

// The same without chance: the refusal comes while the packet id is being stored, and the
// message goes out as if nothing had been said.
func TestRefusedWhileItIsStored(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	g := &gated{Store: r.log.State()}
	r.cfg.State = g
	r.restart()
	p := r.mute(delivery.Attachment{Key: key("alice"), Expiry: time.Hour}, session.Subscription{Filter: "user/alice", QoS: 2})
	g.mu.Lock()
	before := g.asked.Load()
	rec := r.publish(2, "bob", "user/alice")[0]
	waitfor.MustHold(t, "the packet id is about to be stored", func() bool { return g.asked.Load() > before })
	p.session.Acknowledged(p.out, 5, 1, true)
	g.mu.Unlock()
	waitfor.MustHold(t, "the message", func() bool { return p.count() == 1 })
	if c := p.session.Cursor(); c >= rec.Seq || p.arrivals()[0].id != 1 {
		t.Errorf("the cursor is %d, and %d has not been acknowledged: %+v", c, rec.Seq, p.arrivals())
	}
	r.publish(2, "bob", "user/alice")
	waitfor.MustHold(t, "the next message, on the same connection", func() bool { return p.count() == 2 })
}

// A client that comes and goes while its session sends again what was unacknowledged does
// no harm, whenever it goes. The race detector and the absence of a crash are the judges.
func TestGoneWhileResending(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	r.mute(a, session.Subscription{Filter: "user/alice", QoS: 1})
	sent := r.publish(1, "bob", "user/alice", "user/alice", "user/alice", "user/alice")
	for i := range 3000 {
		a.Conn = r.discard()
		s, _, err := r.engine.Attach(a)
		if err != nil {
			t.Fatal(err)
		}
		s.Start(a.Conn)
		if i%3 > 0 {
			time.Sleep(time.Duration(i%7) * 10 * time.Microsecond) // not for anything to happen, but to go at any time
		}
		s.Detach(a.Conn, time.Hour)
		_ = a.Conn.Close()
	}
	p := r.online(a)
	waitfor.MustHold(t, "what was unacknowledged", func() bool {
		got := p.arrivals()
		return len(got) >= len(sent) && got[len(got)-1].seq == sent[len(sent)-1].Seq
	})
}

// gated is a session store that waits, while it is shut, before it writes durably.
type gated struct {
	state.Store
	mu    sync.Mutex   // held while it is shut
	asked atomic.Int64 // how often something was to be written durably
}

func (g *gated) Apply(ops []state.Op, sync bool) error {
	if sync {
		g.asked.Add(1)
		g.mu.Lock()
		defer g.mu.Unlock()
	}
	return g.Store.Apply(ops, sync)
}

// PUBREL waits until it is on disk that PUBREC came on a connection that has taken over
// meanwhile, too: after PUBREL the client forgets the packet id, and a broker that did not
// know of PUBREC after a restart would send the message again.
func TestPubrelWaitsAcrossTakeover(t *testing.T) {
	t.Parallel()
	for _, takeover := range []bool{false, true} {
		r := mustRig(t, delivery.Config{})
		g := &gated{Store: r.log.State()}
		r.cfg.State = g
		r.restart()
		a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}
		p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 2}, signals("alice"))
		r.publish(2, "bob", "user/alice")
		waitfor.MustHold(t, "the message", func() bool { return p.count() == 1 })
		g.mu.Lock()
		before := g.asked.Load()
		p.session.Acknowledged(p.out, 5, p.arrivals()[0].id, false)
		if takeover {
			p = r.mute(a)
		}
		waitfor.MustHold(t, "PUBREC is about to be stored", func() bool { return g.asked.Load() > before })
		r.settled(p)
		if n := len(p.released()) + p.count(); takeover && n > 0 || len(p.released()) > 0 {
			t.Errorf("takeover %t: %d packets before it was stored that PUBREC came", takeover, n)
		}
		g.mu.Unlock()
		waitfor.MustHold(t, "PUBREL", func() bool { return len(p.released()) == 1 })
		p.session.Acknowledged(p.out, 7, p.released()[0], false)
		r.publish(2, "bob", "user/alice")
		waitfor.MustHold(t, "the next message", func() bool { got := p.arrivals(); return len(got) > 0 && !got[len(got)-1].dup })
	}
}

// An archiver that subscribes to more while packet ids are being stored gets all that the log
// has of it, though that comes before what it was about to be sent: it was passed over, and
// would never have been archived.
func TestSubscribedWhileItIsStored(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	g := &gated{Store: r.log.State()}
	r.cfg.State = g
	r.restart()
	recs := r.publish(2, "bob", "group/a", "user/alice", "group/a", "user/alice")
	a := delivery.Attachment{Key: key("archive"), Expiry: time.Hour, AnyTopic: true, Archiver: true}
	p := r.mute(a, signals("archive"))
	subscribe := func(filter string) {
		if err := p.session.Subscribe([]session.Subscription{{Filter: filter, QoS: 2}}, nil); err != nil {
			t.Error(err)
		}
	}
	subscribe("user/carol") // after which the session is as if it had been there from the beginning
	p.offline(time.Hour)
	p = r.attach(a)
	p.silent = true
	subscribe("user/#")
	g.mu.Lock()
	before := g.asked.Load()
	r.begin(p, a)
	waitfor.MustHold(t, "packet ids are about to be stored", func() bool { return g.asked.Load() == before+1 })
	var more sync.WaitGroup
	more.Go(func() { subscribe("group/#") })
	waitfor.MustHold(t, "the subscription is about to be stored", func() bool { return g.asked.Load() == before+2 })
	g.mu.Unlock()
	more.Wait()
	p.wantSeqs(t, recs...)
	if c := p.session.Cursor(); c >= recs[0].Seq {
		t.Errorf("the cursor is %d, and nothing has been acknowledged", c)
	}
	for _, got := range p.arrivals() {
		p.session.Acknowledged(p.out, 5, got.id, true)
	}
	if c := p.session.Cursor(); c != recs[3].Seq {
		t.Errorf("the cursor is %d and all is acknowledged up to %d", c, recs[3].Seq)
	}
}
