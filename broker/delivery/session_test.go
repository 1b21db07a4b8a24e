package delivery_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/pubsub"
	"mynah/broker/session"
	"mynah/broker/state"
	"mynah/internal/waitfor"
)

// online attaches a session, starts it and reads what it gets until the test ends.
func (r *rig) online(a delivery.Attachment, subs ...session.Subscription) *peer {
	r.tb.Helper()
	return r.onlineAs(a, false, subs...)
}

// onlineAs is online for a client that may be silent.
func (r *rig) onlineAs(a delivery.Attachment, silent bool, subs ...session.Subscription) *peer {
	r.tb.Helper()
	p := r.attach(a)
	p.silent = silent
	return r.begin(p, a, subs...)
}

// begin starts an attached session and reads what it gets until the test ends.
func (r *rig) begin(p *peer, a delivery.Attachment, subs ...session.Subscription) *peer {
	r.tb.Helper()
	if p.session == nil {
		r.tb.FailNow()
	}
	if len(subs) > 0 {
		if err := p.session.Subscribe(subs, p.session.GroupIDs()); err != nil {
			r.tb.Fatal(err)
		}
	}
	p.session.Start(p.out)
	p.ended = make(chan struct{})
	go func() { defer close(p.ended); p.read() }()
	r.tb.Cleanup(func() {
		p.pause(false)
		p.session.Detach(p.out, a.Expiry)
		_ = p.out.Close()
		_ = p.conn.Close()
		<-p.ended
	})
	return p
}

// offline ends the connection and keeps the session.
func (p *peer) offline(expiry time.Duration) {
	p.session.Detach(p.out, expiry)
	_ = p.out.Close()
	_ = p.conn.Close()
}

func (p *peer) wantSeqs(tb testing.TB, recs ...*msglog.Record) {
	tb.Helper()
	waitfor.MustHold(tb, fmt.Sprintf("%d messages", len(recs)), func() bool { return p.count() >= len(recs) })
	got := p.arrivals()
	for i, rec := range recs {
		if got[i].seq != rec.Seq {
			tb.Fatalf("message %d is %+v, want seq %d", i, got[i], rec.Seq)
		}
	}
	if len(got) > len(recs) {
		tb.Fatalf("got %d messages, want %d: %+v", len(got), len(recs), got)
	}
}

func key(subject string) session.Key { return session.Key{Subject: subject, ClientID: "c"} }

// Somebody who was an administrator and is one no more comes back to the session of that
// time: it must not go on with everybody's messages.
func TestRightsAreTakenBack(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	admin := r.online(delivery.Attachment{Key: key("carol"), Expiry: time.Hour, AnyTopic: true},
		session.Subscription{Filter: "user/#", QoS: 1}, session.Subscription{Filter: "group/#", QoS: 1},
		session.Subscription{Filter: "user/bob", QoS: 1}, session.Subscription{Filter: "user/carol", QoS: 1},
		session.Subscription{Filter: "group/secret", QoS: 1})
	admin.wantSeqs(t, r.publish(1, "alice", "user/bob", "group/secret")...)
	admin.offline(time.Hour)
	missed := r.publish(1, "alice", "user/bob", "group/secret", "user/carol")
	user := r.online(delivery.Attachment{Key: key("carol"), Expiry: time.Hour})
	more := r.publish(1, "alice", "user/bob", "group/secret", "user/carol")
	user.wantSeqs(t, missed[2], more[2])
}

// When it cannot be found out which groups a returning client is in, it stays in those
// that its session knows: otherwise it would lose its place in all of them, and with that
// what it missed.
func TestGroupsUnknownKeepTheirPlace(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, Groups: []string{"a", "b"}}
	p := r.online(a, session.Subscription{Filter: "group/+", QoS: 1})
	p.offline(time.Hour)
	missed := r.publish(1, "x", "group/a", "group/b", "group/c")
	a.Groups, a.KeepGroups = []string{"c"}, true
	p = r.online(a)
	more := r.publish(1, "x", "group/c")
	p.wantSeqs(t, missed[0], missed[1], more[0])
}

// An archiver that is away for however long finds its position, or else what was sent
// meanwhile would never be archived. Other sessions end when their time is over.
func TestExpiry(t *testing.T) {
	t.Parallel()
	var now atomic.Int64
	now.Store(time.Now().UnixNano())
	r := mustRig(t, delivery.Config{Now: func() time.Time { return time.Unix(0, now.Load()) }})
	archive := delivery.Attachment{Key: key("archiver"), Expiry: time.Hour, AnyTopic: true, Archiver: true}
	r.online(archive, session.Subscription{Filter: "user/#", QoS: 1}).offline(time.Hour)
	r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour},
		session.Subscription{Filter: "user/alice", QoS: 1}).offline(time.Hour)
	missed := r.publish(1, "bob", "user/alice")
	now.Add(int64(1000 * time.Hour))
	r.online(delivery.Attachment{Key: key("carol"), Expiry: time.Hour}).offline(0) // after which it is looked soon
	waitfor.MustHold(t, "alice's session has ended", func() bool { return len(r.engine.Sessions("alice")) == 0 })
	r.online(archive).wantSeqs(t, missed...)
	if n := r.engine.Count(); n != 1 {
		t.Errorf("there are %d sessions, want the archiver's alone", n)
	}
}

// A session whose time is over is not resumed in the moment before it is removed.
func TestExpiredIsNotResumed(t *testing.T) {
	t.Parallel()
	var now atomic.Int64
	now.Store(time.Now().UnixNano())
	r := mustRig(t, delivery.Config{Now: func() time.Time { return time.Unix(0, now.Load()) }})
	for range 50 { // against the housekeeping's second
		r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour}).offline(time.Hour)
		now.Add(int64(2 * time.Hour))
		s, resumed, err := r.engine.Attach(delivery.Attachment{Key: key("alice"), Expiry: time.Hour, Conn: r.discard()})
		if err != nil || resumed {
			t.Fatalf("resumed %v, error %v", resumed, err)
		}
		s.Detach(s.Attached(), 0)
	}
}

// A session that was to end with its connection is not handed to a connection that takes
// over from it ([MQTT-3.1.2-6] in 3.1.1): its subscriptions are gone.
func TestSessionEndsWithItsConnection(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	r.online(delivery.Attachment{Key: key("alice")}, session.Subscription{Filter: "user/alice", QoS: 1})
	s, resumed, err := r.engine.Attach(delivery.Attachment{Key: key("alice"), Expiry: time.Hour, Conn: r.discard()})
	if err != nil {
		t.Fatal(err)
	}
	if resumed || len(s.Subscriptions()) != 0 {
		t.Errorf("resumed %v with filters %v", resumed, s.Subscriptions())
	}
	s.Detach(s.Attached(), 0)
}

// What a live session was sent at QoS 0 does not come again after the broker was killed:
// its position is stored although nothing is ever acknowledged.
func TestQoS0MovesTheStoredCursor(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	p := r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour}, session.Subscription{Filter: "user/alice"})
	first := r.publish(0, "bob", "user/alice")
	p.wantSeqs(t, first...)
	waitfor.MustHold(t, "the first position is stored", func() bool { return r.storedCursor("alice") >= first[0].Seq })
	waitfor.MustHold(t, "the session is live", p.session.Live)
	recs := r.publish(0, "bob", "user/alice")
	waitfor.MustHold(t, "the position is stored", func() bool { return r.storedCursor("alice") >= recs[0].Seq })
}

// storedCursor returns what a broker that starts now would find.
func (r *rig) storedCursor(subject string) (cursor uint64) {
	r.tb.Helper()
	if err := r.log.State().Scan("cursor/"+subject+"\x00", func(_ string, v []byte) bool {
		cursor = binary.BigEndian.Uint64(v)
		return false
	}); err != nil {
		r.tb.Fatal(err)
	}
	return cursor
}

// The stored cursor is never ahead of what was acknowledged: after a crash the client gets
// again what it may not have had.
func TestStoredCursorWaitsForAcknowledgement(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	p := r.attach(delivery.Attachment{Key: key("alice"), Expiry: time.Hour})
	p.silent = true
	if err := p.session.Subscribe([]session.Subscription{{Filter: "user/alice", QoS: 1}}, nil); err != nil {
		t.Fatal(err)
	}
	p.session.Start(p.out)
	done := make(chan struct{})
	go func() { defer close(done); p.read() }()
	t.Cleanup(func() { p.offline(0); <-done })
	recs := r.publish(1, "bob", "user/alice", "user/alice", "user/alice", "user/else")
	waitfor.MustHold(t, "they are sent", func() bool { return p.count() == 3 })
	p.session.Acknowledged(p.out, 4, 2, false) // out of order: the first is still open
	p.session.Acknowledged(p.out, 4, 3, false)
	if c := p.session.Cursor(); c != recs[0].Seq-1 {
		t.Errorf("the cursor is %d, the first message %d is not acknowledged", c, recs[0].Seq)
	}
	p.session.Acknowledged(p.out, 4, 1, false)
	waitfor.MustHold(t, "all is done", func() bool { return p.session.Cursor() >= recs[2].Seq })
	waitfor.MustHold(t, "that is stored", func() bool { return r.storedCursor("alice") >= recs[2].Seq })
}

// stubStore is a session store that can fail and tells what was asked of it.
type stubStore struct {
	state.Store
	fail   atomic.Bool
	failed atomic.Int64 // how often it did
	syncs  atomic.Int64
}

func (s *stubStore) Apply(ops []state.Op, sync bool) error {
	if s.fail.Load() {
		s.failed.Add(1)
		return errors.New("no")
	}
	if sync {
		s.syncs.Add(1)
	}
	return s.Store.Apply(ops, sync)
}

// mustStubRig returns a rig whose session store can fail.
func mustStubRig(t *testing.T) (*rig, *stubStore) {
	t.Helper()
	l, err := msglog.Open(t.TempDir(), msglog.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	store := &stubStore{Store: l.State()}
	e, err := delivery.New(delivery.Config{Log: l, State: store, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	e.Start()
	t.Cleanup(func() { e.Stop(); _ = l.Close() })
	return &rig{tb: t, log: l, engine: e}, store
}

// A session that cannot be stored is not left bound to the connection that is refused: it
// would be neither online nor ever expire.
func TestAttachFails(t *testing.T) {
	t.Parallel()
	r, store := mustStubRig(t)
	r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour}, session.Subscription{Filter: "user/alice", QoS: 1}).offline(time.Hour)
	store.fail.Store(true)
	if _, _, err := r.engine.Attach(delivery.Attachment{Key: key("alice"), Expiry: time.Hour, Conn: r.discard()}); err == nil {
		t.Fatal("no error")
	}
	for _, s := range r.engine.Sessions("alice") {
		if s.Attached() != nil {
			t.Error("the session is still attached")
		}
	}
	store.fail.Store(false)
	missed := r.publish(1, "bob", "user/alice")
	r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour}).wantSeqs(t, missed...)
}

// What a SUBACK confirms is on disk: a new filter, also one that stands for no topic yet
// or is outside the chat, another QoS, and the end of a filter.
func TestSubscriptionsAreDurable(t *testing.T) {
	t.Parallel()
	r, store := mustStubRig(t)
	p := r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour})
	for _, sub := range []session.Subscription{
		{Filter: "user/alice"}, {Filter: "user/alice", QoS: 1}, {Filter: "group/+", QoS: 1}, {Filter: "plant/#", QoS: 1},
	} {
		before := store.syncs.Load()
		if err := p.session.Subscribe([]session.Subscription{sub}, nil); err != nil {
			t.Fatal(err)
		}
		if store.syncs.Load() == before {
			t.Errorf("%+v was not synced", sub)
		}
	}
	before := store.syncs.Load()
	if err := p.session.Subscribe([]session.Subscription{{Filter: "group/+", QoS: 1}}, nil); err != nil {
		t.Fatal(err)
	}
	if store.syncs.Load() != before {
		t.Error("a subscription that changes nothing costs a sync")
	}
	if err := p.session.Unsubscribe([]string{"plant/#"}); err != nil {
		t.Fatal(err)
	}
	if store.syncs.Load() == before {
		t.Error("the end of a subscription was not synced")
	}
	store.fail.Store(true)
	if err := p.session.Subscribe([]session.Subscription{{Filter: "user/alice", QoS: 2}}, nil); err == nil {
		t.Error("no error though nothing could be stored")
	}
	store.fail.Store(false)
	for _, f := range p.session.Subscriptions() {
		if f.Filter == "user/alice" && f.QoS != 1 {
			t.Errorf("a subscription that could not be stored is in force: %+v", f)
		}
	}
}

// A subscription by name that is added to one for everything does not hide from a session
// that is behind what came before it.
func TestOverlapWhileBehind(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	p := r.online(delivery.Attachment{Key: key("watch"), Expiry: time.Hour, AnyTopic: true},
		session.Subscription{Filter: "group/#", QoS: 1}, session.Subscription{Filter: "user/#", QoS: 1})
	p.offline(time.Hour)
	missed := r.publish(1, "bob", "group/a", "user/b", "group/c")
	p = r.attach(delivery.Attachment{Key: key("watch"), Expiry: time.Hour, AnyTopic: true})
	if err := p.session.Subscribe([]session.Subscription{{Filter: "group/a", QoS: 1}, {Filter: "user/b", QoS: 1}}, nil); err != nil {
		t.Fatal(err)
	}
	p.offline(time.Hour)
	p = r.online(delivery.Attachment{Key: key("watch"), Expiry: time.Hour, AnyTopic: true})
	p.wantSeqs(t, missed...)
}

// A message of a plain topic that stays unacknowledged for long keeps the window from
// moving on, since packet ids are given out in order; its acknowledgement must set a
// session going again that has stopped for that.
func TestPlainAcknowledgementOpensTheWindow(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	p := r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour}, session.Subscription{Filter: "user/alice", QoS: 1})
	p.keepBack("plant/x")
	r.queues.Put(&p.session.Session, &pubsub.Message{Topic: "plant/x", QoS: 1}, pubsub.Options{QoS: 1})
	waitfor.MustHold(t, "the plain message", func() bool { return p.count() == 1 })
	plain := p.arrivals()[0].id
	batch := make([]string, 64)
	for i := range batch {
		batch[i] = "user/alice"
	}
	const half = 65535 / 2
	sent := 0
	for ; sent < half+200; sent += len(batch) {
		r.publish(1, "bob", batch...)
	}
	waitfor.MustHold(t, "the window is full", func() bool { return p.count() == half })
	p.session.Acknowledged(p.out, 4, plain, false)
	waitfor.MustHold(t, "the rest", func() bool { return p.count() == 1+sent })
}

// A session whose position is older than the log gets a notice with the range that is
// gone, and then what there is. A topic that had no messages in the range gets none.
func TestGap(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	p := r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour, Groups: []string{"quiet"}},
		session.Subscription{Filter: "user/alice", QoS: 1}, session.Subscription{Filter: "group/+", QoS: 1})
	had := r.publish(1, "bob", "group/quiet", "user/alice")
	p.wantSeqs(t, had...)
	waitfor.MustHold(t, "they are acknowledged", func() bool { return p.session.Cursor() >= had[1].Seq })
	p.offline(time.Hour)
	lost := r.publish(1, "bob", "user/alice", "user/alice", "user/alice")
	kept := r.publish(1, "bob", "user/alice")
	if err := r.log.Compact(t.Context(), lost[2].Seq); err != nil {
		t.Fatal(err)
	}
	first, _ := r.log.Bounds()
	p = r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour, Groups: []string{"quiet"}})
	waitfor.MustHold(t, "notice and message", func() bool { return p.count() >= 2 })
	got := p.arrivals()
	if len(got) != 2 || got[0].seq != 0 || got[0].topic != "user/alice" || got[1].seq != kept[0].Seq {
		t.Fatalf("got %+v", got)
	}
	want := fmt.Sprintf(`"body":{"from":%d,"to":%d}`, lost[0].Seq, first-1)
	if body := got[0].payload; !contains(body, want) || !contains(body, `"type":"notice.gap"`) {
		t.Errorf("the notice is %s, want %s", body, want)
	}
}

// Options that change while the session catches up are not read half-changed. The race
// detector is the judge.
func TestSubscribeWhileCatchingUp(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{Window: 16})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}
	p := r.online(a, session.Subscription{Filter: "user/alice", QoS: 1})
	p.offline(time.Hour)
	var recs []*msglog.Record
	for range 40 {
		recs = append(recs, r.publish(1, "bob", "user/alice", "user/alice", "user/alice")...)
	}
	p = r.online(a)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 60 {
			if err := p.session.Subscribe([]session.Subscription{
				{Filter: "user/alice", QoS: 1, Identifier: i % 3, NoLocal: i%2 == 0},
			}, nil); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	p.wantSeqs(t, recs...)
}

// Connections that come and go while messages flow and the session catches up lose
// nothing; two that race for it leave one of them with it.
func TestTakeoversUnderLoad(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{Window: 16, Limits: &outbox.Limits{PerConn: 2 << 10}})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	first := r.online(a, session.Subscription{Filter: "user/alice", QoS: 1})
	peers := []*peer{first}
	var recs []*msglog.Record
	for i := range 60 {
		recs = append(recs, r.publish(1, "bob", "user/alice", "user/alice", "user/alice")...)
		if i%3 == 0 {
			var wg sync.WaitGroup
			two := make([]*peer, 2)
			for k := range two {
				wg.Go(func() { two[k] = r.attach(a) })
			}
			wg.Wait()
			for _, p := range two {
				if p.session == nil {
					t.FailNow()
				}
				p.session.Start(p.out)
				done := make(chan struct{})
				go func() { defer close(done); p.read() }()
				t.Cleanup(func() { p.offline(time.Hour); <-done })
			}
			peers = append(peers, two...)
		}
	}
	seen := map[uint64]bool{}
	waitfor.MustHold(t, "everything has arrived somewhere", func() bool {
		clear(seen)
		for _, p := range peers {
			for _, a := range p.arrivals() {
				seen[a.seq] = true
			}
		}
		return len(seen) == len(recs)
	})
	for _, p := range peers { // what one connection got is in order but for what came again
		var last uint64
		for _, a := range p.arrivals() {
			if a.seq <= last {
				t.Fatalf("seq %d after %d on one connection", a.seq, last)
			}
			last = a.seq
		}
	}
}
