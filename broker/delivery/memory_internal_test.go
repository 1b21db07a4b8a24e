package delivery

import (
	"testing"
	"time"

	"mynah/broker/packet"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// mustFill attaches a session and has it sent n messages at QoS 1.
func mustFill(t *testing.T, e *Engine, n int) *Session {
	t.Helper()
	s := mustAttach(t, e, Attachment{Key: session.Key{Subject: "alice", ClientID: "c"}, Groups: []string{"room"}, Expiry: time.Hour})
	if err := s.Subscribe([]session.Subscription{{Filter: "group/room", QoS: 1}}, []string{"room"}); err != nil {
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
	s.Mu.Lock()
	defer s.Mu.Unlock()
	for i := range s.Window.Len() {
		if e := s.Window.At(i); e.Kind == session.Logged && e.State != session.StateDone {
			open++
		}
	}
	return open, s.Window.Capacity()
}

// A session that once had much under way and then has little gives the memory back, while
// its client stays connected and when it goes: it kept 36 KiB for ever.
func TestMemoryIsGivenBack(t *testing.T) {
	t.Parallel()
	for _, left := range []int{0, 20} { // messages that stay unacknowledged
		e := mustEngine(t, Config{})
		s := mustFill(t, e, 1000)
		for id := range uint16(1000 - left) { //nolint:gosec // small
			s.Acknowledged(s.Attached(), packet.Puback, id+1, false)
		}
		waitfor.MustHold(t, "what an idle session does not need is given back", func() bool {
			_, ring := s.held()
			return ring <= max(session.SmallRing, 2*left)
		})
		if open, _ := s.held(); open != left {
			t.Errorf("%d messages are under way, want %d", open, left)
		}

		e = mustEngine(t, Config{})
		s = mustFill(t, e, 1000)
		for id := range uint16(1000 - left) { //nolint:gosec // small
			s.Acknowledged(s.Attached(), packet.Puback, id+1, false)
		}
		s.Detach(s.Attached(), time.Hour)
		if open, ring := s.held(); open != left || ring > 2*left {
			t.Errorf("an offline session has %d messages and memory for %d, want %d messages", open, ring, left)
		}
	}
}
