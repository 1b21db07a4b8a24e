package delivery

import (
	"testing"
	"time"

	"mynah/internal/waitfor"
)

// mustFill attaches a session and has it sent n messages at QoS 1.
func mustFill(t *testing.T, e *Engine, n int) *Session {
	t.Helper()
	s := mustAttach(t, e, Attachment{Key: Key{"alice", "c"}, Groups: []string{"room"}, Expiry: time.Hour})
	if err := s.Subscribe([]Subscription{{Filter: "group/room", QoS: 1}}, []string{"room"}); err != nil {
		t.Fatal(err)
	}
	s.Start(s.Attached())
	waitfor.MustHold(t, "the session is live", s.Live)
	_, last := e.log.Bounds()
	for at := 0; at < n; at += 10 {
		e.Deliver(batchOf(10, 1, last+uint64(at))) //nolint:gosec // not negative
	}
	if open, _ := s.held(); open != n {
		t.Fatalf("%d messages are under way, want %d", open, n)
	}
	return s
}

// held returns how many messages are unacknowledged and for how many there is memory.
func (s *Session) held() (open, ring int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.win.open, len(s.win.ring)
}

// A session that once had much under way and then has little gives the memory back, while
// its client stays connected and when it goes: it kept 36 KiB for ever.
func TestMemoryIsGivenBack(t *testing.T) {
	t.Parallel()
	for _, left := range []int{0, 20} { // messages that stay unacknowledged
		e := mustEngine(t, Config{})
		s := mustFill(t, e, 1000)
		for id := range uint16(1000 - left) { //nolint:gosec // small
			s.Acknowledged(s.Attached(), typePuback, id+1, false)
		}
		waitfor.MustHold(t, "what an idle session does not need is given back", func() bool {
			_, ring := s.held()
			return ring <= max(smallRing, 2*left)
		})
		if open, _ := s.held(); open != left {
			t.Errorf("%d messages are under way, want %d", open, left)
		}

		e = mustEngine(t, Config{})
		s = mustFill(t, e, 1000)
		for id := range uint16(1000 - left) { //nolint:gosec // small
			s.Acknowledged(s.Attached(), typePuback, id+1, false)
		}
		s.Detach(s.Attached(), time.Hour)
		if open, ring := s.held(); open != left || ring > 2*left {
			t.Errorf("an offline session has %d messages and memory for %d, want %d messages", open, ring, left)
		}
	}
}

// A session that always has something under way keeps the memory for that: it would be
// given back and asked for again all the time.
func TestMemoryInUseIsKept(t *testing.T) {
	t.Parallel()
	var w window
	ids := make([]uint16, 0, 100)
	for range 10 {
		for len(ids) < cap(ids) {
			ids = append(ids, w.push(inflight{seq: 1, qos: 1}))
		}
		for _, id := range ids {
			w.done(w.get(id))
		}
		ids = ids[:0]
		if w.fit(); len(w.ring) != 128 {
			t.Fatalf("a ring of %d for at most 100 entries", len(w.ring))
		}
	}
	if w.fit(); len(w.ring) != 0 {
		t.Errorf("a ring of %d for nothing", len(w.ring))
	}
}

// The queue of topics outside the chat does not keep the room of what was under way once.
func TestPlainMemoryIsGivenBack(t *testing.T) {
	t.Parallel()
	e := mustEngine(t, Config{})
	s := mustAttach(t, e, Attachment{Key: Key{"alice", "c"}, Expiry: time.Hour})
	s.Start(s.Attached())
	waitfor.MustHold(t, "the session is live", s.Live)
	for range 500 {
		s.Queue(&PlainMessage{Topic: "a/b", QoS: 1}, PlainOptions{QoS: 1})
	}
	for id := range uint16(500) {
		s.Acknowledged(s.Attached(), typePuback, id+1, false)
	}
	waitfor.MustHold(t, "what an idle session does not need is given back", func() bool {
		_, ring := s.held()
		s.mu.Lock()
		defer s.mu.Unlock()
		return ring <= smallRing && s.plain.sent == nil
	})
	if held := e.PlainHeld(); held != 0 {
		t.Errorf("%d bytes are said to be held", held)
	}
	for id := range uint16(100) {
		s.Publish(s.Attached(), id+1, func() {})
		s.Release(s.Attached(), id+1)
	}
	if s.inbound.open != nil {
		t.Error("exchanges of the client's that are over take memory")
	}
}
