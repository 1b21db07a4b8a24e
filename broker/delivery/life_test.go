package delivery_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// keys returns what the store has under a prefix and a session's key.
func (r *rig) keys(prefix string, k session.Key) (n int) {
	r.tb.Helper()
	if err := r.log.State().Scan(prefix+k.Subject+"\x00"+k.ClientID, func(string, []byte) bool { n++; return true }); err != nil {
		r.tb.Fatal(err)
	}
	return n
}

// When a connection ends, its session's position is stored, and it is behind everything
// that was delivered while the session was live, also what was not its own: a broker that
// is killed later need not look through that again.
func TestDetachStoresThePosition(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	p := r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour}, session.Subscription{Filter: "user/alice", QoS: 1})
	waitfor.MustHold(t, "the session is live", p.session.Live)
	recs := r.publish(1, "bob", "user/carol", "user/carol")
	p.offline(time.Hour)
	if c := p.session.Cursor(); c != recs[1].Seq {
		t.Errorf("the cursor is %d, want %d", c, recs[1].Seq)
	}
	if c := r.storedCursor("alice"); c != recs[1].Seq {
		t.Errorf("the stored cursor is %d, want %d", c, recs[1].Seq)
	}
}

// When the engine stops, the position of a session that is still connected is stored, behind
// everything that was delivered.
func TestStopStoresThePosition(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	p := r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour}, session.Subscription{Filter: "user/alice", QoS: 1})
	waitfor.MustHold(t, "the session is live", p.session.Live)
	recs := r.publish(1, "bob", "user/carol", "user/carol")
	r.engine.Stop()
	if c := r.storedCursor("alice"); c != recs[1].Seq {
		t.Errorf("the stored cursor is %d, want %d", c, recs[1].Seq)
	}
}

// A session's time begins when its connection ends, or when the broker starts again after
// it died with the connection, not when an earlier connection ended.
func TestExpiryBeginsWithTheEnd(t *testing.T) {
	t.Parallel()
	const minute = 60_000
	clock := &clock{}
	clock.set(1_000_000_000_000)
	r := mustRig(t, delivery.Config{Now: clock.now})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	resumed := func() bool {
		t.Helper()
		a.Conn = r.discard()
		_, resumed, err := r.engine.Attach(a)
		if err != nil {
			t.Fatal(err)
		}
		return resumed
	}
	resumed()
	r.engine.Sessions("alice")[0].Detach(a.Conn, time.Hour)
	clock.ms.Add(50 * minute)
	if !resumed() {
		t.Fatal("a session is over before its time")
	}
	clock.ms.Add(50 * minute)
	r.restart() // while attached: as if killed
	clock.ms.Add(50 * minute)
	if !resumed() {
		t.Fatal("the time of an earlier connection's end counts")
	}
	r.engine.Sessions("alice")[0].Detach(a.Conn, time.Hour)
	clock.ms.Add(50 * minute)
	r.restart() // while away: the time goes on
	clock.ms.Add(11 * minute)
	if resumed() {
		t.Fatal("a session is there after its time")
	}
}

// told is what an engine says about subscriptions outside the chat.
type told struct {
	mu  sync.Mutex
	has map[string]int // by filter
}

func (p *told) count(filter string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.has == nil {
		p.has = map[string]int{}
	}
	p.has[filter] += n
}

func (p *told) Subscribed(_ *session.Session, sub session.Subscription) { p.count(sub.Filter, 1) }

func (p *told) Unsubscribed(_ *session.Session, filters ...string) {
	for _, f := range filters {
		p.count(f, -1)
	}
}

// A session that ends, for whatever reason, leaves nothing: not among its subject's, not in
// the tree of topics outside the chat, and not in the store, whatever was still to be
// stored.
func TestEndLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(r *rig, p *peer, a delivery.Attachment){
		"its connection was all it had": func(_ *rig, p *peer, _ delivery.Attachment) { p.offline(0) },
		"clean start": func(r *rig, _ *peer, a delivery.Attachment) {
			a.Clean, a.Expiry = true, 0
			r.online(a).offline(0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			plain := &told{}
			r := mustRig(t, delivery.Config{Observer: plain})
			a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
			p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 2}, session.Subscription{Filter: "plant/#"}, signals("alice"))
			r.publish(2, "bob", "user/alice")
			r.settled(p)
			if r.keys("subs/", a.Key) != 1 || r.keys("cursor/", a.Key) != 1 || r.keys("exactly/", a.Key) != 1 {
				t.Fatal("the session is not stored")
			}
			if n := plain.has["plant/#"]; n != 1 {
				t.Fatalf("the tree was told of %d subscriptions, want 1", n)
			}
			end(r, p, a)
			if n := plain.has["plant/#"]; n != 0 {
				t.Errorf("%d subscriptions are left in the tree", n)
			}
			if n := len(r.engine.Sessions("alice")); n != 0 || r.engine.Count() != 0 {
				t.Errorf("%d sessions of the subject and %d in all, want none", n, r.engine.Count())
			}
			// Positions are stored now and then: another session's being stored
			// tells that this one's would have been too.
			other := r.online(delivery.Attachment{Key: key("carol"), Expiry: time.Hour}, session.Subscription{Filter: "user/carol"}, signals("carol"))
			last := r.publish(0, "bob", "user/carol")
			r.settled(other)
			waitfor.MustHold(t, "positions are stored", func() bool { return r.storedCursor("carol") >= last[0].Seq })
			for _, prefix := range []string{"subs/", "cursor/", "exactly/"} {
				if n := r.keys(prefix, a.Key); n != 0 {
					t.Errorf("the store has %d of %s", n, prefix)
				}
			}
		})
	}
}

// A session that ends with its connection is not stored, not even its QoS 2 exchanges; one
// that becomes such is removed from the store.
func TestOnlyWhatOutlivesTheConnectionIsStored(t *testing.T) {
	t.Parallel()
	r, store := mustStubRig(t)
	a := delivery.Attachment{Key: key("alice")}
	stored := func() int { return r.keys("subs/", a.Key) + r.keys("cursor/", a.Key) + r.keys("exactly/", a.Key) }
	p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 2}, signals("alice"))
	r.publish(2, "bob", "user/alice", "user/alice")
	got := r.settled(p)
	if len(got) != 2 {
		t.Fatalf("got %d messages, want 2", len(got))
	}
	p.session.Acknowledged(p.out, 5, got[0].id, false)
	waitfor.MustHold(t, "PUBREL", func() bool { return len(p.released()) == 1 })
	if n := stored(); n != 0 {
		t.Errorf("%d keys are stored of a session that ends with its connection", n)
	}
	p.offline(0)

	a.Expiry = time.Hour
	before := store.syncs.Load()
	r.online(a)
	if r.keys("subs/", a.Key) != 1 || store.syncs.Load() == before {
		t.Error("a session that outlives its connection is not on disk")
	}
	a.Expiry = 0
	r.online(a)
	if n := stored(); n != 0 {
		t.Errorf("%d keys are stored of a session that has become one that ends with its connection", n)
	}
}

// The log may be trimmed up to what every archiver has acknowledged, which is on disk by
// then, and no further, also before they are back after a restart.
func TestArchived(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	if _, known := r.engine.Archived(); known {
		t.Error("an archiver is known before there was one")
	}
	recs := r.publish(1, "bob", "user/alice", "group/a", "user/alice")
	archiver := func(subject string) *peer {
		return r.mute(delivery.Attachment{Key: key(subject), Expiry: time.Hour, AnyTopic: true, Archiver: true},
			session.Subscription{Filter: "user/#", QoS: 1}, session.Subscription{Filter: "group/#", QoS: 1}, signals(subject))
	}
	fast, slow := archiver("fast"), archiver("slow")
	for p, n := range map[*peer]int{fast: 3, slow: 1} {
		for _, a := range r.settled(p)[:n] {
			p.session.Acknowledged(p.out, 4, a.id, false)
		}
	}
	for range 2 {
		if seq, known := r.engine.Archived(); seq != recs[0].Seq || !known {
			t.Errorf("archived up to %d (%v), want %d", seq, known, recs[0].Seq)
		}
		if c := r.storedCursor("fast"); c != recs[2].Seq {
			t.Errorf("stored is %d, want %d", c, recs[2].Seq)
		}
		r.restart()
	}
}

// An archiver that subscribes to more reads the log again from its beginning. What it has
// acknowledged of the second reading does not make it forget what it has not.
func TestArchiverReadsAgain(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	recs := r.publish(1, "bob", "user/a", "group/a", "user/b")
	a := delivery.Attachment{Key: key("archiver"), Expiry: time.Hour, AnyTopic: true, Archiver: true}
	p := r.mute(a, session.Subscription{Filter: "user/#", QoS: 1}, signals("archiver"))
	if got := seqs(r.settled(p)); len(got) != 2 {
		t.Fatalf("got %v, want two messages", got)
	}
	if err := p.session.Subscribe([]session.Subscription{{Filter: "group/#", QoS: 1}}, nil); err != nil {
		t.Fatal(err)
	}
	got := r.settled(p)
	if len(got) != 5 || got[2].seq != recs[0].Seq || got[3].seq != recs[1].Seq || got[4].seq != recs[2].Seq {
		t.Fatalf("got %v, want all three after the first two", seqs(got))
	}
	p.session.Acknowledged(p.out, 4, got[0].id, false) // leaves the newest of the first reading in front
	p.session.Acknowledged(p.out, 4, got[2].id, false)
	if seq, _ := r.engine.Archived(); seq != recs[1].Seq-1 {
		t.Errorf("archived up to %d, want %d", seq, recs[1].Seq-1)
	}
}

// Nothing comes before Start, which the CONNACK comes before, and a connection that has
// lost the session in the meantime does not start it for the one that has it.
func TestNothingBeforeStart(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	r.online(a, session.Subscription{Filter: "user/alice", QoS: 1}, signals("alice")).offline(time.Hour)
	recs := r.publish(1, "bob", "user/alice")
	old, fresh := r.attach(a), r.attach(a)
	old.session.Start(old.out)
	if old.session.Started() {
		t.Error("a connection that has lost the session has started it")
	}
	dropped := r.engine.Stats().Signals.Load()
	r.engine.Signal("user/alice/signal", []byte("too soon"))
	if r.engine.Stats().Signals.Load() != dropped {
		t.Error("a signal was sent before the session was started")
	}
	r.publish(1, "bob", "user/alice")
	old.offline(0) // has nothing to say either
	fresh.offline(time.Hour)
	p := r.online(a)
	waitfor.MustHold(t, "the messages", func() bool { return p.count() == 2 })
	if got := p.arrivals(); got[0].seq != recs[0].Seq || got[0].dup {
		t.Errorf("got %+v", got)
	}
}

// A SUBSCRIBE that cannot be stored is not in force either: neither its filter nor its
// groups' messages come.
func TestFailedSubscribeIsNotInForce(t *testing.T) {
	t.Parallel()
	r, store := mustStubRig(t)
	p := r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour, Groups: []string{"a"}},
		session.Subscription{Filter: "user/alice", QoS: 1}, signals("alice"))
	store.fail.Store(true)
	if err := p.session.Subscribe([]session.Subscription{{Filter: "group/+", QoS: 1}}, []string{"a"}); err == nil {
		t.Fatal("no error")
	}
	store.fail.Store(false)
	recs := r.publish(1, "bob", "group/a", "user/alice")
	if got := seqs(r.settled(p)); len(got) != 1 || got[0] != recs[1].Seq {
		t.Errorf("got %v, want %d alone", got, recs[1].Seq)
	}
}

// readLog is a log that stops in the middle of reading a topic.
type readLog struct {
	msglog.Log
	reached chan struct{} // somebody is reading
	goOn    chan struct{} // closed when they may read on
}

// ReadTopic waits once, if somebody looks.
func (l *readLog) ReadTopic(ctx context.Context, topic string, after, upto uint64, fn func(*msglog.Record) bool) error {
	return l.Log.ReadTopic(ctx, topic, after, upto, func(rec *msglog.Record) bool {
		select {
		case l.reached <- struct{}{}:
			<-l.goOn
		default:
		}
		return fn(rec)
	})
}

// What has been read for a session is thrown away if meanwhile it has unsubscribed, or has
// another connection: the first does not get it any more, the second gets it.
func TestChangedWhileReading(t *testing.T) {
	t.Parallel()
	for _, takeover := range []bool{false, true} {
		inner, err := msglog.Open(t.TempDir(), msglog.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		l := &readLog{Log: inner, reached: make(chan struct{}), goOn: make(chan struct{})}
		e, err := delivery.New(delivery.Config{Log: l, State: inner.State(), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		e.Start()
		t.Cleanup(func() { e.Stop(); _ = inner.Close() })
		r := &rig{tb: t, log: inner, engine: e}
		a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
		r.online(a, session.Subscription{Filter: "user/alice", QoS: 1}, signals("alice")).offline(time.Hour)
		recs := r.publish(1, "bob", "user/alice")
		p := r.online(a)
		<-l.reached
		if takeover {
			fresh := r.online(a)
			close(l.goOn)
			fresh.wantSeqs(t, recs...)
			continue
		}
		if err := p.session.Unsubscribe([]string{"user/alice"}); err != nil {
			t.Fatal(err)
		}
		close(l.goOn)
		if got := r.settled(p); len(got) > 0 {
			t.Errorf("got %+v after UNSUBSCRIBE", got)
		}
	}
}

// A session that is to end with its next connection is not in the store any more from its
// beginning on: after a crash nobody would end it.
func TestSessionThatWillEndIsNotStored(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	r.online(a, session.Subscription{Filter: "user/alice", QoS: 1}).offline(time.Hour)
	if n := r.keys("subs/", a.Key); n != 1 {
		t.Fatalf("%d sessions are stored, want 1", n)
	}
	a.Expiry = 0
	p := r.online(a)
	r.publish(1, "bob", "user/alice")
	waitfor.MustHold(t, "the message", func() bool { return p.count() == 1 })
	if n := r.keys("subs/", a.Key) + r.keys("cursor/", a.Key); n != 0 {
		t.Errorf("%d keys are stored of a session that ends with its connection", n)
	}
}

// A session that had no subscription left, joins a group anew, subscribes to it and goes at
// once gets what is published meanwhile when it is back. The registry's model
// (TestRegistryAgainstModel) once found a session whose cursor had passed that message: it
// counted as having nothing to read, since its subscription was not counted in yet.
func TestSubscribedJustBeforeGoing(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	alice := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, Groups: []string{"a", "b"}}
	p := r.online(alice, session.Subscription{Filter: "group/a", QoS: 1})
	r.publish(1, "bob", "group/b", "group/a")
	waitfor.MustHold(t, "the first message has come", func() bool { return p.count() == 1 })
	for _, err := range []error{
		p.session.Unsubscribe([]string{"group/a"}), p.session.ChangeGroup("b", false), p.session.ChangeGroup("b", true),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r.publish(1, "bob", "group/b") // to nobody
	for range 20 {                 // what happens between the two depends on other goroutines
		if err := p.session.Subscribe([]session.Subscription{{Filter: "group/b", QoS: 1}}, []string{"a", "b"}); err != nil {
			t.Fatal(err)
		}
		p.offline(time.Hour)
		want := r.publish(1, "bob", "group/b")[0].Seq
		p = r.online(alice)
		waitfor.MustHold(t, "what was published meanwhile has come", func() bool { return p.count() > 0 })
		if got := p.arrivals(); len(got) != 1 || got[0].seq != want {
			t.Fatalf("got %v, want seq %d alone", got, want)
		}
		if err := p.session.Unsubscribe([]string{"group/b"}); err != nil {
			t.Fatal(err)
		}
	}
}
