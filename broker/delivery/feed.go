package delivery

import (
	"math"

	"mynah/broker/session"
)

// mode is where a session gets its messages from.
type mode uint8

const (
	offline mode = iota // no connection
	behind              // reads the log
	live                // gets frames as they are committed
)

// feed brings a session the messages of the log. It implements session.Feed. The session's Mu
// guards it.
type feed struct {
	session.Session
	engine *Engine
	owner  *Session // that it is part of

	topics  map[string]*topicSub // replaced, never changed
	plan    *plan                // the logged ones of them, as the pump wants them
	mode    mode
	pos     uint64              // every message up to here was sent, is in the window or is none of ours
	resends bool                // the window holds messages to be sent again
	rewinds int                 // how often it was told to read the log again; since then, the window may not be in seq order
	noticed map[string]struct{} // topics that have been told of the gap at pos, if not all have; replaced, never changed
	// promptFrom is the seq from which on messages have reached the session at once: since
	// then its client has had room for all that came. 0 says that it is behind in earnest.
	promptFrom uint64

	broken     bool // something has panicked, and the pump is to restart it from the store
	pumping    bool // the pump runs
	again      bool // somebody asked for the pump while it ran
	queueTurn  bool // the log has had its turn, and what is outside the chat is next
	dirty      bool // the stored cursor is out of date
	refillSoon bool // the window has room that is to be used soon
	oversized  bool // the window takes more memory than it needs

	storedExchanges []uint64          // seqs of QoS 2 messages in the store, ascending
	restored        map[uint64]uint16 // packet ids of those that the store had when the broker started; not changed after
}

// Cursor returns the seq up to which everything of the session is done: acknowledged,
// sent at QoS 0, or not its own.
func (s *feed) Cursor() uint64 {
	delivered := s.engine.delivered.Load()
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return s.cursorLocked(delivered)
}

// cursorLocked wants a delivered that was read before Mu was taken.
func (s *feed) cursorLocked(delivered uint64) uint64 {
	cursor := s.pos
	if s.mode == live {
		cursor = max(cursor, delivered)
	}
	if oldest := s.Window.Oldest(s.restored != nil || s.rewinds > 0); oldest > 0 {
		cursor = min(cursor, oldest-1)
	}
	return cursor
}

// positionLocked returns what is to be stored of the session, whose stored cursor is up to
// date then. QoS 2 messages that the cursor has passed need not be remembered. delivered was
// read before Mu was taken.
func (s *feed) positionLocked(delivered uint64) session.Position {
	s.dirty = false
	p := session.Position{Cursor: s.cursorLocked(delivered), Expiry: s.Expiry, ExpiresAt: s.ExpiresAt}
	n := 0
	for n < len(s.storedExchanges) && s.storedExchanges[n] <= p.Cursor {
		n++
	}
	p.Passed = s.storedExchanges[:n:n]
	if s.storedExchanges = s.storedExchanges[n:]; len(s.storedExchanges) == 0 {
		s.storedExchanges = nil
	}
	return p
}

// markCursorDirtyLocked says that the stored cursor is out of date.
func (s *feed) markCursorDirtyLocked() {
	if !s.dirty && s.Expiry > 0 {
		s.dirty = true
		s.engine.dirty.add(s)
	}
}

// rewindLocked makes a session read the log again after seq. The archive is to have all
// that the log has, also what was acknowledged before an archiver ever came; what it
// has already it recognises.
func (s *feed) rewindLocked(seq uint64) {
	s.rewinds++
	if s.pos <= seq && s.mode != live {
		return
	}
	s.pos = seq
	s.markCursorDirtyLocked()
	if s.mode == live {
		s.mode = behind
	}
	s.wakeLocked()
}

// restoreLocked takes in, in the order of their seqs, the QoS 2 messages that were on their
// way. Those of other QoS that were between them are read again from the cursor; their
// packet ids are void.
func (s *feed) restoreLocked(xs []session.Exchange) {
	if len(xs) == 0 {
		return
	}
	s.restored = make(map[uint64]uint16, len(xs))
	var open []session.Exchange
	for _, x := range xs {
		s.restored[x.Seq] = x.ID
		s.storedExchanges = append(s.storedExchanges, x.Seq)
		if x.State != session.StateDone {
			open = append(open, x)
		}
	}
	s.Window.Restore(open)
}

// Advance implements session.Feed: what waits outside the chat is sent on if the session is
// live, and by the pump if it is behind and there may be room.
func (s *feed) Advance() {
	switch {
	case s.Queue == nil || s.Queue.Idle():
	case s.mode == live:
		s.Queue.Send(math.MaxInt, math.MaxInt)
	case s.mode == behind && (s.Quota() > 0 || s.Queue.HasQoS0()):
		s.wakeLocked()
	}
}

// Prompt implements session.Feed.
func (s *feed) Prompt() bool { return s.mode == behind && s.promptFrom != 0 }

// wake says that the outbox has room again.
func (s *feed) wake() {
	s.guarded(func(s *feed) {
		s.Advance()
		s.wakeLocked()
	})
}

// wakeLocked makes a session that is behind read on.
func (s *feed) wakeLocked() {
	if s.mode == behind {
		s.pumpLocked()
	}
}

// pumpLocked starts the pump, or has it look again.
func (s *feed) pumpLocked() {
	if s.pumping {
		s.again = true
		return
	}
	s.pumping = true
	s.engine.pumps.Add(1)
	go s.runPump()
}

// stallLocked says that the client has no room for more: from now on, what comes does not
// reach it at once.
func (s *feed) stallLocked() {
	s.promptFrom = 0
	if s.Queue != nil {
		s.Queue.Delayed()
	}
}

// yieldLocked says that the log has had messages sent.
func (s *feed) yieldLocked() {
	if s.Queue != nil {
		s.queueTurn = true
	}
}

// stuckLocked reports whether no packet id is left while the window has restored messages
// that are to be sent in their turn. Their ids would stay taken until then, so their turn
// is now.
func (s *feed) stuckLocked() bool {
	if s.restored == nil || s.Window.FreeIDs() > 0 {
		return false
	}
	for i := range s.Window.Len() {
		if e := s.Window.At(i); !e.OnWire && e.State != session.StateDone && e.Kind == session.Logged {
			return true
		}
	}
	return false
}

// isLate reports whether the time of a message is over (MQTT 5, 3.3.2.3.3). For an archiver
// it never is: what was acknowledged is archived, whenever it comes to that.
func (s *feed) isLate(expires, now int64) bool {
	return expires != 0 && expires <= now && !s.IsArchiver()
}
