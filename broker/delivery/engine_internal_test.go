package delivery

import (
	"log/slog"
	"net"
	"testing"
	"time"

	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/packet"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// mustNew returns an engine on a log of its own.
func mustNew(t *testing.T, cfg Config) *Engine {
	t.Helper()
	l, err := msglog.Open(t.TempDir(), msglog.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log, cfg.State, cfg.Logger = l, l.State(), slog.New(slog.DiscardHandler)
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Stop(); _ = l.Close() })
	return e
}

// mustEngine returns one that has been started.
func mustEngine(t *testing.T, cfg Config) *Engine {
	t.Helper()
	e := mustNew(t, cfg)
	e.Start()
	return e
}

func mustAttach(t *testing.T, e *Engine, a Attachment) *Session {
	t.Helper()
	a.Conn = outbox.NewConn(nowhere{}, e.Limits())
	s, _, err := e.Attach(a)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// An acknowledgement that comes while the pump has decided to stop, and has not yet, makes
// it go on: otherwise the session would wait for something that has happened.
func TestPumpIsNotStoppedOverAWake(t *testing.T) {
	t.Parallel()
	e := mustEngine(t, Config{})
	s := newSession(e, session.Key{Subject: "alice", ClientID: "c"}, 0)
	s.mode, s.pumping, s.Conn = behind, true, outbox.NewConn(nowhere{}, e.Limits())
	p := &pump{s: &s.feed}
	s.wake()
	if !p.pause() {
		t.Error("the pump stopped though it was woken")
	}
	e.started.Store(0)
	s.Limit, s.pos = 1, 0
	for p.round() { // takes the wake in
	}
	s.mode, s.pumping = behind, true
	if p.pause() || s.pumping {
		t.Error("the pump goes on though nobody woke it")
	}
}

// What is remembered of recent messages keeps to its limit, and topics that nobody attached
// subscribes to are forgotten.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	const most = 8 << 10
	e := mustEngine(t, Config{Recent: most})
	s := mustAttach(t, e, Attachment{Key: session.Key{Subject: "alice", ClientID: "c"}, Groups: []string{"room"}})
	if err := s.Subscribe([]session.Subscription{{Filter: "group/+"}, {Filter: "user/alice"}, {Filter: "user/alice/signal"}}, []string{"room"}); err != nil {
		t.Fatal(err)
	}
	_, last := e.log.Bounds()
	for range 20 {
		e.Deliver(batchOf(10, 0, last))
		last += 10
		if e.recent.bytes > most {
			t.Fatalf("%d bytes are remembered, %d are allowed", e.recent.bytes, most)
		}
	}
	en := e.topics.get("group/room")
	if n := len(en.recent); n == 0 || en.recent[0].Prev != en.recentFrom {
		t.Errorf("%d messages are remembered, all after %d", n, en.recentFrom)
	}
	if n := len(e.topics.topics); n != 3 {
		t.Errorf("%d topics, want 3", n)
	}
	s.Detach(s.Attached(), 0)
	if n := len(e.topics.topics); n != 0 {
		t.Errorf("%d topics are left of nobody's subscriptions", n)
	}
}

// A session that is back by the time that it would be ended for having expired is not
// ended.
func TestExpireLooksAgain(t *testing.T) {
	t.Parallel()
	e := mustEngine(t, Config{})
	s := mustAttach(t, e, Attachment{Key: session.Key{Subject: "alice", ClientID: "c"}, Expiry: time.Hour})
	later := time.Now().Add(1000 * time.Hour)
	if s.expire(later) || e.Count() != 1 {
		t.Error("a session was ended that has a connection")
	}
	s.Detach(s.Attached(), time.Hour)
	if !s.expire(later) || e.Count() != 0 {
		t.Error("a session was not ended that has expired")
	}
}

// A position that is not stored yet is not stored any more once the session has ended: its
// key may be another session's.
func TestEndedSessionIsNotStored(t *testing.T) {
	t.Parallel()
	e := mustEngine(t, Config{})
	s := mustAttach(t, e, Attachment{Key: session.Key{Subject: "alice", ClientID: "c"}, Expiry: time.Hour})
	if len(e.dirtyPosition(&s.feed)) == 0 {
		t.Error("the position of a session is not stored")
	}
	s.Detach(s.Attached(), 0)
	if ops := e.dirtyPosition(&s.feed); len(ops) != 0 {
		t.Errorf("%v of an ended session", ops)
	}
	s = mustAttach(t, e, Attachment{Key: session.Key{Subject: "bob", ClientID: "c"}})
	if ops := e.dirtyPosition(&s.feed); len(ops) != 0 {
		t.Errorf("%v of a session that ends with its connection", ops)
	}
}

// A session becomes live behind what Deliver has begun with, not only behind what it has
// done with: it may have been passed by already, and would lose that for good.
func TestLiveBehindWhatHasBegun(t *testing.T) {
	t.Parallel()
	e := mustEngine(t, Config{})
	subscribed := func(name string) *Session {
		t.Helper()
		s := mustAttach(t, e, Attachment{Key: session.Key{Subject: name, ClientID: "c"}, Groups: []string{"room"}})
		if err := s.Subscribe([]session.Subscription{{Filter: "group/room", QoS: 1}}, []string{"room"}); err != nil {
			t.Fatal(err)
		}
		s.Start(s.Attached())
		waitfor.MustHold(t, "the session is live", s.Live)
		return s
	}
	open := func(s *Session) int {
		s.Mu.Lock()
		defer s.Mu.Unlock()
		return s.Window.Len()
	}
	passed, served, next := subscribed("passed"), subscribed("served"), subscribed("next") // in this order
	passed.Mu.Lock()
	passed.mode = behind
	passed.Mu.Unlock()
	next.Mu.Lock() // where Deliver has to wait
	delivered := make(chan struct{})
	go func() {
		defer close(delivered)
		_, last := e.log.Bounds()
		e.Deliver(batchOf(1, 1, last))
	}()
	waitfor.MustHold(t, "the second session has the message", func() bool { return open(served) > 0 })
	passed.wake()
	waitfor.MustHold(t, "the first session is live", passed.Live)
	if open(passed) != 1 {
		t.Error("a session became live without the message that was just being delivered")
	}
	next.Mu.Unlock()
	<-delivered
	if open(passed) != 1 || open(served) != 1 || open(next) != 1 {
		t.Errorf("the sessions have %d, %d and %d messages, want one each", open(passed), open(served), open(next))
	}
}

// A client that has acknowledged half of its window gets more at once, and not only when it is
// looked next who has room: a fast one would have to wait 20 times a second.
func TestHalfAWindowIsRefilledAtOnce(t *testing.T) {
	t.Parallel()
	e := mustNew(t, Config{Window: 100}) // not started, so nobody looks
	s, _ := mustJoin(t, e, "alice", 1, 0)
	waitfor.MustHold(t, "the session is live", s.Live)
	for range 200 {
		mustPublish(t, e, 1)
	}
	full := func() bool {
		s.Mu.Lock()
		defer s.Mu.Unlock()
		return s.Window.Len() == 100 && !s.pumping
	}
	waitfor.MustHold(t, "a full window", full)
	for id := range uint16(49) {
		s.Acknowledged(s.Attached(), packet.Puback, id+1, false)
	}
	if full() {
		t.Error("more was sent before half of the window was free, a few messages at a time")
	}
	s.Acknowledged(s.Attached(), packet.Puback, 50, false)
	waitfor.MustHold(t, "a full window again", full)
}

// A reading of the whole log is bounded also when the session is to get little of it: others
// take turns, and what was found is sent before the log's end has been reached.
func TestCollectAllIsBounded(t *testing.T) {
	t.Parallel()
	e := mustNew(t, Config{})
	var recs []*msglog.Record
	for range 100 {
		recs = append(recs, mustPublish(t, e, 1))
	}
	_, last := e.log.Bounds()
	s := newSession(e, session.Key{Subject: "watch", ClientID: "c"}, 0)
	w := pump{s: &s.feed}
	p := newPlan(map[string]*topicSub{session.AllUsers: {topic: session.AllUsers}}) // of which there is nothing
	horizon, err := w.collectAll(p, 0, last, 2)
	if err != nil || len(w.items) > 0 || horizon != recs[15].Seq {
		t.Errorf("read up to %d with %d messages, error %v; want up to %d with none", horizon, len(w.items), err, recs[15].Seq)
	}
}

// An outbox that takes nothing any more is not given one message more with each round of the
// pump; an empty one is given a message however large.
func TestFit(t *testing.T) {
	t.Parallel()
	e := mustEngine(t, Config{Limits: &outbox.Limits{PerConn: 100}})
	client, server := net.Pipe() // nobody reads what is written to it
	full, empty := outbox.NewConn(server, e.Limits()), outbox.NewConn(nowhere{}, e.Limits())
	t.Cleanup(func() { _ = client.Close(); full.Flush() })
	if _, err := full.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	s := newSession(e, session.Key{Subject: "alice", ClientID: "c"}, 0)
	s.Limit = 10
	w := &pump{s: &s.feed, ends: []int{150, 200}, idsAt: []int{1, 2}}
	if n := w.fit(full); n != 0 {
		t.Errorf("%d messages fit a full outbox", n)
	}
	if n := w.fit(empty); n != 1 {
		t.Errorf("%d messages fit, want the one that is larger than an outbox", n)
	}
	w.ends = []int{50, 100}
	if n := w.fit(empty); n != 2 {
		t.Errorf("%d messages fit, want both", n)
	}
	s.OnWire = 9
	if n := w.fit(empty); n != 1 {
		t.Errorf("%d messages fit a window of 1", n)
	}
}
