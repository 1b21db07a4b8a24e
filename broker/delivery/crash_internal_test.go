package delivery

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/packet"
	"mynah/broker/pubsub"
	"mynah/broker/session"
	"mynah/chat"
	"mynah/internal/waitfor"
)

// recorder is a connection that keeps what is written to it.
type recorder struct {
	nowhere
	mu      sync.Mutex
	written []byte
	over    bool
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written = append(r.written, p...)
	return len(p), nil
}

func (r *recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	return nil
}

func (r *recorder) closed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}

// has reports whether messages have been written, each once.
func (r *recorder) has(recs ...*msglog.Record) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range recs {
		if bytes.Count(r.written, fmt.Appendf(nil, `"seq":%d,`, rec.Seq)) != 1 {
			return false
		}
	}
	return true
}

// trap is a log whose reader panics when it is set.
type trap struct {
	msglog.Log
	set atomic.Bool
}

func (l *trap) ReadTopic(ctx context.Context, topic string, after, upto uint64, fn func(*msglog.Record) bool) error {
	if l.set.Swap(false) {
		panic("a mistake")
	}
	return l.Log.ReadTopic(ctx, topic, after, upto, fn)
}

// mustPublish appends a message and delivers it.
func mustPublish(t *testing.T, e *Engine, qos byte) *msglog.Record {
	t.Helper()
	rec := &msglog.Record{QoS: qos, Message: chat.Message{
		From: "bob", To: "group/room", TS: 1, Type: "text", Tail: []byte(`"type":"text","body":"x"}`),
	}}
	p, err := e.log.(msglog.Log).Propose(&msglog.Entry{Records: []*msglog.Record{rec}})
	if err == nil {
		_, err = p.Wait()
	}
	if err != nil {
		t.Fatal(err)
	}
	e.Deliver([]*msglog.Record{rec})
	return rec
}

// mustJoin attaches a session that subscribes to the room.
func mustJoin(t *testing.T, e *Engine, subject string, qos byte, expiry time.Duration) (*Session, *recorder) {
	t.Helper()
	out := &recorder{}
	s, resumed, err := e.Attach(Attachment{
		Key: session.Key{Subject: subject, ClientID: "c"}, Conn: outbox.NewConn(out, e.Limits()), Expiry: expiry, V5: true, Groups: []string{"room"},
	})
	if err == nil && !resumed {
		err = s.Subscribe([]session.Subscription{{Filter: "group/room", QoS: qos}}, []string{"room"})
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Start(s.Attached())
	return s, out
}

// brokenWindow returns a window whose counters claim three entries for which it has no
// memory.
func brokenWindow(counters ...string) (w session.Window) {
	for _, name := range counters {
		n := reflect.ValueOf(&w).Elem().FieldByName(name)
		*(*int)(n.Addr().UnsafePointer()) = 3
	}
	return w
}

// spoil makes the window one that cannot be: whoever uses it panics.
func (s *Session) spoil() {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	s.Window = brokenWindow("n")
}

// A mistake that shows for one session ends that session's connection and nothing else: the
// others get what they are to get, no lock stays held, and the session itself goes on when
// its client is back, with everything that was not acknowledged. It used to end the process.
func TestPanicEndsOneConnection(t *testing.T) {
	t.Parallel()
	for name, provoke := range map[string]func(t *testing.T, e *Engine, l *trap, s *Session) *msglog.Record{
		"while the log is read": func(t *testing.T, e *Engine, l *trap, s *Session) *msglog.Record {
			t.Helper()
			l.set.Store(true)
			s.Mu.Lock()
			s.mode = behind
			s.Mu.Unlock()
			rec := mustPublish(t, e, 1)
			s.wake()
			return rec
		},
		"in the pump, under the lock": func(t *testing.T, e *Engine, _ *trap, s *Session) *msglog.Record {
			t.Helper()
			s.spoil()
			s.Mu.Lock()
			defer s.Mu.Unlock()
			s.mode, s.resends = behind, true
			s.wakeLocked()
			return nil
		},
		"in the pump, when it has made the session live": func(_ *testing.T, _ *Engine, _ *trap, s *Session) *msglog.Record {
			s.Mu.Lock()
			defer s.Mu.Unlock()
			s.Queue = spoiltQueue{}
			s.mode = behind
			s.wakeLocked()
			return nil
		},
		"while it is delivered": func(t *testing.T, e *Engine, _ *trap, s *Session) *msglog.Record {
			t.Helper()
			s.spoil()
			return mustPublish(t, e, 1)
		},
		"in the pump, at QoS 2": func(t *testing.T, e *Engine, _ *trap, s *Session) *msglog.Record {
			t.Helper()
			s.spoil()
			return mustPublish(t, e, 2)
		},
		"when the outbox has room again": func(_ *testing.T, _ *Engine, _ *trap, s *Session) *msglog.Record {
			s.spoil()
			s.Mu.Lock()
			s.Queue = spoiltQueue{}
			s.Mu.Unlock()
			s.wake()
			return nil
		},
		"when a topic outside the chat has something": func(_ *testing.T, _ *Engine, _ *trap, s *Session) *msglog.Record {
			s.spoil()
			queues := pubsub.NewQueues(pubsub.QueuesConfig{Limits: s.engine.limits})
			queues.Put(&s.Session, &pubsub.Message{Topic: "a", QoS: 1}, pubsub.Options{QoS: 1})
			return nil
		},
		"when it has been stored that a message has arrived": func(_ *testing.T, _ *Engine, _ *trap, s *Session) *msglog.Record {
			s.spoil()
			s.received(1, 1, true)
			return nil
		},
		"in the housekeeping": func(_ *testing.T, e *Engine, _ *trap, s *Session) *msglog.Record {
			e.refillSoon.add(&s.feed)
			e.refillSoon.each(func(*feed) { panic("a mistake") })
			return nil
		},
		"when its position is stored": func(_ *testing.T, _ *Engine, _ *trap, s *Session) *msglog.Record {
			s.Mu.Lock()
			defer s.Mu.Unlock()
			s.markCursorDirtyLocked()
			s.Window = brokenWindow("n", "open")
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			logged := &bytes.Buffer{}
			e := mustNew(t, Config{Recent: 1})
			e.logger = slog.New(slog.NewTextHandler(logged, nil))
			l := &trap{Log: e.log.(msglog.Log)}
			e.log = l
			e.Start()
			qos := byte(1)
			if name == "in the pump, at QoS 2" {
				qos = 2
			}
			victim, out := mustJoin(t, e, "victim", qos, time.Hour)
			other, otherOut := mustJoin(t, e, "other", qos, time.Hour)
			for _, s := range []*Session{victim, other} {
				waitfor.MustHold(t, "the session is live", s.Live)
			}
			sent := []*msglog.Record{mustPublish(t, e, 1), mustPublish(t, e, 1), mustPublish(t, e, 1)}
			for _, o := range []*recorder{out, otherOut} {
				waitfor.MustHold(t, "three messages", func() bool { return o.has(sent...) })
			}
			waitfor.MustHold(t, "the session is live", victim.Live)
			if rec := provoke(t, e, l, victim); rec != nil {
				sent = append(sent, rec)
			}
			waitfor.MustHold(t, "its connection is closed", out.closed)
			waitfor.MustHold(t, "the session is offline", func() bool { return victim.Attached() == nil })
			sent = append(sent, mustPublish(t, e, 1), mustPublish(t, e, qos))
			waitfor.MustHold(t, "the other gets everything", func() bool { return otherOut.has(sent...) })
			var held []sync.Locker // by us
			waitfor.MustHold(t, "no lock is held", func() bool {
				for _, l := range []interface {
					sync.Locker
					TryLock() bool
				}{&victim.Changes, &victim.Mu, &e.sessions.mu, &e.topics.mu} {
					if !l.TryLock() { // somebody may just need it
						unlock(held)
						held = nil
						return false
					}
					held = append(held, l)
				}
				return true
			})
			if victim.pumping || victim.broken || victim.Window.Len() != 0 || victim.OnWire != 0 {
				t.Errorf("what is left: pumping %t, broken %t, %d in the window, %d on the wire", victim.pumping, victim.broken, victim.Window.Len(), victim.OnWire)
			}
			unlock(held)
			_, out = mustJoin(t, e, "victim", qos, time.Hour)
			waitfor.MustHold(t, "the session goes on with all that was not acknowledged", func() bool { return out.has(sent...) })
			if n := bytes.Count(logged.Bytes(), []byte("level=ERROR")); n != 1 || !bytes.Contains(logged.Bytes(), []byte("subject=victim")) ||
				!bytes.Contains(logged.Bytes(), []byte("stack=")) || bytes.Contains(logged.Bytes(), []byte("a mistake")) {
				t.Errorf("logged %d errors: %s", n, logged)
			}
		})
	}
}

func unlock(locks []sync.Locker) {
	for _, l := range slices.Backward(locks) {
		l.Unlock()
	}
}

// A session that is not stored ends with a mistake as it ends with its connection.
func TestPanicEndsSessionThatIsNotStored(t *testing.T) {
	t.Parallel()
	e := mustEngine(t, Config{})
	mustJoin(t, e, "victim", 1, time.Hour)
	s, out := mustJoin(t, e, "victim", 1, 0) // from now on
	waitfor.MustHold(t, "the session is live", s.Live)
	s.spoil()
	mustPublish(t, e, 1)
	waitfor.MustHold(t, "its connection is closed", out.closed)
	waitfor.MustHold(t, "the session has ended", func() bool { return s.Over() && e.Count() == 0 })
	s.wake()
	s.spoil()
	s.wake() // nothing is left that could go wrong
}

// The same panic is logged with its stack once: who can cause it may do so all the time.
func TestStackIsLoggedOnce(t *testing.T) {
	t.Parallel()
	e := mustNew(t, Config{})
	logged := &bytes.Buffer{}
	e.logger = slog.New(slog.NewTextHandler(logged, nil))
	s := newSession(e, session.Key{Subject: "alice", ClientID: "c"}, 0)
	s.plan = nil
	for range 10 {
		s.guarded(func(s *feed) { s.Window.At(0).QoS = 1 })
	}
	s.guarded(func(s *feed) { s.plan.topics = nil })
	if lines, stacks := bytes.Count(logged.Bytes(), []byte("level=ERROR")), bytes.Count(logged.Bytes(), []byte("stack=")); lines != 11 || stacks != 2 {
		t.Errorf("%d lines with %d stacks, want 11 and 2", lines, stacks)
	}
}

// What panics on the client's own goroutine is caught at the door. It leaves no lock behind,
// or whoever delivers would wait for it for ever, and all others with him.
func TestPanicOfTheClientReleasesLocks(t *testing.T) {
	t.Parallel()
	var stopped bool // the clock
	e := mustNew(t, Config{Now: func() time.Time {
		if stopped {
			panic("no time")
		}
		return time.Now()
	}})
	for name, do := range map[string]func(s *Session){
		"an acknowledgement": func(s *Session) { s.Acknowledged(s.Attached(), packet.Puback, 1, false) },
		"another connection": func(s *Session) {
			_, _, _ = e.Attach(Attachment{Key: s.Key, Conn: outbox.NewConn(&recorder{}, e.Limits())})
		},
		"the end of its connection": func(s *Session) {
			stopped = true
			defer func() { stopped = false }()
			s.Detach(s.Attached(), time.Hour)
		},
	} {
		s, _ := mustJoin(t, e, name, 1, time.Hour)
		waitfor.MustHold(t, "the session is live", s.Live)
		s.Mu.Lock()
		s.Window = brokenWindow("n")
		s.Mu.Unlock()
		panicked := func() (v any) {
			defer func() { v = recover() }()
			do(s)
			return nil
		}()
		if panicked == nil {
			t.Errorf("%s: no panic, so nothing is shown", name)
		}
		if !s.Mu.TryLock() || !s.Changes.TryLock() || !e.sessions.mu.TryLock() || !e.topics.mu.TryLock() {
			t.Fatalf("%s: a lock is still held", name)
		}
		s.Window = session.Window{} // so that the engine can be stopped
		s.Mu.Unlock()
		s.Changes.Unlock()
		e.sessions.mu.Unlock()
		e.topics.mu.Unlock()
	}
}

// spoiltQueue is a queue whose turn it is, and that cannot be sent from.
type spoiltQueue struct{}

func (spoiltQueue) Idle() bool         { return false }
func (spoiltQueue) HasQoS0() bool      { return true }
func (spoiltQueue) Send(int, int) bool { panic("a mistake") }
func (spoiltQueue) Delayed()           {}
func (spoiltQueue) Forget(uint16)      {}
func (spoiltQueue) Attached()          {}
func (spoiltQueue) Detached()          {}
func (spoiltQueue) Shrink()            {}
func (spoiltQueue) Drop()              {}

// What waits for a session that is started anew is lost as in a restart of the broker, but
// what any one of several may have goes to another.
func TestPanicPassesOnWhatIsShared(t *testing.T) {
	t.Parallel()
	got := make(chan []pubsub.Orphan, 10)
	e := mustEngine(t, Config{})
	queues := pubsub.NewQueues(pubsub.QueuesConfig{Limits: e.limits, Orphan: func(left []pubsub.Orphan) { got <- left }})
	s, _ := mustJoin(t, e, "alice", 1, time.Hour)
	waitfor.MustHold(t, "the session is live", s.Live)
	s.Detach(s.Attached(), time.Hour)
	m := &pubsub.Message{Topic: "a", QoS: 1}
	queues.Put(&s.Session, m, pubsub.Options{QoS: 1})
	queues.Put(&s.Session, m, pubsub.Options{QoS: 1, Share: "$share/x/a"})
	s.guarded(func(*feed) { panic("a mistake") })
	if left := <-got; len(left) != 1 || left[0].Message != m || left[0].Share != "$share/x/a" {
		t.Errorf("passed on %+v, want the shared one", left)
	}
	if held := queues.Held(); held != 0 {
		t.Errorf("%d bytes are said to be held", held)
	}
}
