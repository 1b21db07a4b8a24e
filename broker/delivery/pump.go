package delivery

import (
	"maps"

	"mynah/broker/outbox"
	"mynah/broker/session"
)

// How much the pump reads at a time.
const (
	pumpItems    = 512
	pumpPerTopic = 16
)

// pump sends a session that is behind what it lacks, as far as its window and its
// outbox take it, and makes it live when nothing is left. It runs while there is
// something to do and is woken when there is again: by an acknowledgement, by an
// outbox that has drained, or by a message that a live session could not take.
func (s *Session) pump() {
	defer s.engine.pumps.Done()
	var w pumpWork
	defer w.release(s.engine.limits)
	for more := true; more; {
		if s.isBroken() {
			s.startAnew()
		}
		more = s.guardedRound(&w)
	}
}

// guardedRound is pumpRound. After a panic there is reason for another one.
func (s *Session) guardedRound(w *pumpWork) (more bool) {
	more = true
	defer s.survive()
	return s.pumpRound(w)
}

// pumpWork is the pump's scratch memory.
type pumpWork struct {
	items      []item
	payload    []byte
	props      []byte
	out        *outbox.Buffer
	ids        []int32 // offsets of packet ids in out
	ends       []int   // end of each item's frame in out
	idsAt      []int   // how many ids there are up to and including each item
	again      []restoredItem
	promptFrom uint64 // of the session when the round began

	gaps  int    // how many of the items, the first, are notices that messages are gone
	gapTo uint64 // up to here
}

// restoredItem says that an item goes out under a packet id that it has already.
type restoredItem struct {
	item int
	id   uint16
}

func (w *pumpWork) release(l *outbox.Limits) {
	if w.out != nil {
		l.Release(w.out)
		w.out = nil
	}
}

// step is what a round of the pump is to do.
type step uint8

const (
	stepStop   step = iota // nothing, and the pump has been stopped
	stepAgain              // nothing, but there is reason for another round
	stepWait               // nothing before somebody wakes the pump
	stepResend             // send again what the client has not acknowledged
	stepRead               // send what the log has
)

// round is what a round of the pump has to know of the session.
type round struct {
	conn        *outbox.Conn
	plan        *plan
	v5          bool
	maxPacket   uint32
	pos, target uint64 // what is due is after pos, up to target
	room        int    // how many messages may be sent under new packet ids
	rewinds     int
	promptFrom  uint64
}

// begin begins a round.
func (s *Session) begin() (r round, do step) {
	e := s.engine
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return r, stepAgain
	}
	s.again = false
	if s.conn == nil || s.mode != behind || e.closing.Load() {
		s.pumping = false
		return r, stepStop
	}
	s.takeTurnLocked()
	r = round{
		conn: s.conn, plan: s.plan, v5: s.v5, maxPacket: s.maxPacket,
		pos: s.pos, target: e.started.Load(), room: s.roomLocked(), rewinds: s.rewinds,
		promptFrom: s.promptFrom,
	}
	switch {
	case s.resends || s.stuckLocked():
		return r, stepResend
	case r.pos >= r.target:
		// The engine sets started before it visits a session. So either it has
		// not come to anything after pos, and will find us live, or we would have
		// seen a later started.
		s.mode = live
		s.movePlainLocked()
		s.pumping = false // last, since after a panic this pump goes on
		return r, stepStop
	case r.room <= 0:
		s.stallLocked()
		return r, stepWait
	}
	return r, stepRead
}

// pumpRound does one round. It reports whether there is reason for another one.
func (s *Session) pumpRound(w *pumpWork) bool {
	e := s.engine
	r, do := s.begin()
	switch {
	case do == stepStop:
		return false
	case do == stepAgain:
		return true
	case do == stepResend:
		return s.resendRound(w, r.conn, r.v5, r.maxPacket)
	case do == stepWait:
		return s.pause()
	case !r.conn.HasRoom():
		s.stall()
		return s.pause()
	}
	w.promptFrom = r.promptFrom
	horizon, err := s.collect(w, r.plan, r.pos, r.target, min(r.room, pumpItems))
	if e.reads.begins(err) {
		e.logger.Error("cannot read the message log for a session; its connection is closed so that it tries again, and so are others'",
			"subject", s.Subject, "client_id", s.ClientID, "after", r.pos, "error", err)
	}
	if err != nil {
		_ = r.conn.Close()
		return s.pause()
	}
	s.encodeItems(w, r.v5, r.maxPacket, r.conn.Room())
	s.sendItems(w, r, horizon)
	return true
}

// stall says that the client has no room for more: from now on, what comes does not reach
// it at once.
func (s *Session) stall() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stallLocked()
}

func (s *Session) stallLocked() {
	s.promptFrom = 0
	s.dropAtOnceLocked()
}

// pause ends the pump unless somebody asked for another round meanwhile.
func (s *Session) pause() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.again {
		return true
	}
	s.pumping = false
	return false
}

// sendItems passes the encoded items on as far as they fit.
func (s *Session) sendItems(w *pumpWork, r round, horizon uint64) {
	b, exactly := s.reserve(w, r, horizon)
	if len(exactly) == 0 {
		return
	}
	// The client recognises a QoS 2 message that it has had by its packet id,
	// so the id must be known before the message is sent (MQTT 5, 4.3.3).
	err := s.engine.store.saveExactly(s, exactly)
	s.passExactly(w, r, b, exactly, err == nil)
	if err != nil {
		_ = r.conn.Close()
	}
}

// batch is what goes out of the items of a round.
type batch struct {
	n       int    // the first so many
	first   uint16 // packet id of the first that has one
	horizon uint64 // where the position is when it is all of them
}

// reserve gives packet ids to the items that the client and the outbox take, and passes them
// on if none of the ids has to be stored before. It does nothing if the session is not as it
// was when the items were collected.
func (s *Session) reserve(w *pumpWork, r round, horizon uint64) (b batch, exactly []session.Exchange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != r.conn || s.plan != r.plan || s.mode != behind {
		return b, nil
	}
	b = batch{s.fit(w, r.conn), s.win.NextID(), horizon}
	if b.n == 0 && len(w.items) > 0 {
		return b, nil // the next round sees why and waits for it
	}
	idsBefore := 0
	for i, it := range w.items[:b.n] {
		numbered := w.idsAt[i] > idsBefore
		idsBefore = w.idsAt[i]
		if !numbered {
			continue
		}
		topic, _ := it.topic()
		qos := min(it.rec.QoS, it.sub.qos)
		id := s.win.Push(session.Inflight{Seq: it.rec.Seq, Topic: topic, QoS: qos})
		if qos == 2 {
			exactly = append(exactly, session.Exchange{Seq: it.rec.Seq, ID: id, Topic: topic})
		}
	}
	if len(exactly) == 0 {
		s.passLocked(w, r.conn, b, true)
	}
	return b, exactly
}

// passExactly is passLocked for a batch of which some has been stored, or could not be.
func (s *Session) passExactly(w *pumpWork, r round, b batch, exactly []session.Exchange, stored bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rewinds != r.rewinds {
		// It is to read all of that again, and what comes before it.
		for i := range w.idsAt[b.n-1] {
			id := session.StepID(b.first, i)
			s.finishLocked(id, s.win.Get(id))
		}
		return
	}
	for _, x := range exactly {
		s.stored = append(s.stored, x.Seq)
	}
	s.passLocked(w, r.conn, b, stored)
}

// passLocked moves the position behind the items of a batch and passes them on. If they must
// not be sent, or the connection is over, the next attachment sends them: they are in the
// window. s.mu is held.
func (s *Session) passLocked(w *pumpWork, conn *outbox.Conn, b batch, send bool) {
	s.advanceLocked(w, b.n, b.horizon)
	if !send || s.conn != conn || b.n == 0 {
		return
	}
	s.yieldLocked()
	ids := w.ids[:w.idsAt[b.n-1]]
	if !conn.Force(w.out.B[:w.ends[b.n-1]], ids, b.first) {
		return
	}
	for i := range ids {
		e := s.win.Get(session.StepID(b.first, i)) // it is there: before this, nothing acknowledges it
		e.OnWire, e.Sent = true, true
	}
	s.onWire += len(ids)
	for _, r := range w.again {
		if e := s.win.Get(r.id); e != nil && r.item < b.n && !e.OnWire {
			e.OnWire = true
			s.onWire++
		}
	}
	s.engine.stats.Deliveries.Add(w.messages(b.n))
}

// messages returns how many of the first n items are sent for the first time. Notices are
// nobody's messages.
func (w *pumpWork) messages(n int) (count uint64) {
	before := 0
	for i, end := range w.ends[:n] {
		if end > before && i >= w.gaps {
			count++
		}
		before = end
	}
	for _, r := range w.again {
		if r.item < n {
			count--
		}
	}
	return count
}

// fit returns how many items the window and the outbox take. s.mu is held.
func (s *Session) fit(w *pumpWork, conn *outbox.Conn) int {
	quota, ids, bytes := s.quotaLocked(), s.win.FreeIDs(), conn.Room()
	again := 0 // items that have a packet id already; to the client they count like others
	n := 0
	for ; n < len(w.ends); n++ {
		if again < len(w.again) && w.again[again].item == n {
			again++
		}
		if w.idsAt[n] > ids || w.idsAt[n]+again > quota || w.ends[n] > bytes && (n > 0 || bytes == 0) {
			break
		}
	}
	return n
}

// advanceLocked moves the position behind the first n items, or to the horizon if these
// are all.
func (s *Session) advanceLocked(w *pumpWork, n int, horizon uint64) {
	s.movedLocked()
	// What was restored and turns out to be behind us now goes the way of resends.
	s.resends = s.resends || s.restored != nil && s.win.Len() > 0
	switch {
	case w.gaps == 0:
	case n >= w.gaps:
		s.pos, s.noticed = max(s.pos, w.gapTo), nil
	default: // too many for one round
		noticed := maps.Clone(s.noticed)
		if noticed == nil {
			noticed = map[string]struct{}{}
		}
		for _, it := range w.items[:n] {
			noticed[it.sub.topic] = struct{}{}
		}
		s.noticed = noticed
		return
	}
	if n == len(w.items) {
		s.pos = max(s.pos, horizon)
		return
	}
	s.pos = max(s.pos, w.items[n-1].rec.Seq) // a notice has none
}

// wake says that the outbox has room again.
func (s *Session) wake() {
	s.guarded(func(s *Session) {
		s.movePlainLocked()
		s.wakeLocked()
	})
}

// wakeLocked makes a session that is behind read on.
func (s *Session) wakeLocked() {
	if s.mode == behind {
		s.pumpLocked()
	}
}

// pumpLocked starts the pump, or has it look again.
func (s *Session) pumpLocked() {
	if s.pumping {
		s.again = true
		return
	}
	s.pumping = true
	s.engine.pumps.Add(1)
	go s.pump()
}
