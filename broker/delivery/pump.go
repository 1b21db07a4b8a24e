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
type pump struct {
	s *feed

	// What a round works on, for the next to use its memory.
	items       []item
	payload     []byte
	props       []byte
	out         *outbox.Buffer
	ids         []int32 // offsets of packet ids in out
	ends        []int   // end of each item's frame in out
	idsAt       []int   // how many ids there are up to and including each item
	restored    []restoredItem
	promptSince uint64 // promptFrom of the session when the round began

	gaps  int    // how many of the items, the first, are notices that messages are gone
	gapTo uint64 // up to here
}

// runPump runs a pump while there is something to do.
func (s *feed) runPump() {
	defer s.engine.pumps.Done()
	p := pump{s: s}
	defer p.release()
	for more := true; more; {
		if s.isBroken() {
			s.owner.restartFromStore()
		}
		more = p.guardedRound()
	}
}

// guardedRound is round. After a panic there is reason for another one.
func (p *pump) guardedRound() (more bool) {
	more = true
	defer p.s.Survive()
	return p.round()
}

// restoredItem says that an item goes out under a packet id that it has already.
type restoredItem struct {
	item int
	id   uint16
}

func (p *pump) release() {
	if p.out != nil {
		p.s.engine.limits.Release(p.out)
		p.out = nil
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

// roundState is what a round of the pump has to know of the session.
type roundState struct {
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
func (p *pump) begin() (r roundState, do step) {
	e := p.s.engine
	p.s.Mu.Lock()
	defer p.s.Mu.Unlock()
	if p.s.broken {
		return r, stepAgain
	}
	p.s.again = false
	if p.s.Conn == nil || p.s.mode != behind || e.closing.Load() {
		p.s.pumping = false
		return r, stepStop
	}
	p.takeQueueTurnLocked()
	r = roundState{
		conn: p.s.Conn, plan: p.s.plan, v5: p.s.V5, maxPacket: p.s.MaxPacket,
		pos: p.s.pos, target: e.started.Load(), room: p.s.Room(), rewinds: p.s.rewinds,
		promptFrom: p.s.promptFrom,
	}
	switch {
	case p.s.resends || p.s.stuckLocked():
		return r, stepResend
	case r.pos >= r.target:
		// The engine sets started before it visits a session. So either it has
		// not come to anything after pos, and will find us live, or we would have
		// seen a later started.
		p.s.mode = live
		p.s.Advance()
		p.s.pumping = false // last, since after a panic this pump goes on
		return r, stepStop
	case r.room <= 0:
		p.s.stallLocked()
		return r, stepWait
	}
	return r, stepRead
}

// round does one round. It reports whether there is reason for another one.
func (p *pump) round() bool {
	e := p.s.engine
	r, do := p.begin()
	switch {
	case do == stepStop:
		return false
	case do == stepAgain:
		return true
	case do == stepResend:
		return p.resendRound(r.conn, r.v5, r.maxPacket)
	case do == stepWait:
		return p.pause()
	case !r.conn.HasRoom():
		p.stall()
		return p.pause()
	}
	p.promptSince = r.promptFrom
	horizon, err := p.collect(r.plan, r.pos, r.target, min(r.room, pumpItems))
	if e.readFailed(err) {
		e.logger.Error("cannot read the message log for a session; its connection is closed so that it tries again, and so are others'",
			"subject", p.s.Subject, "client_id", p.s.ClientID, "after", r.pos, "error", err)
	}
	if err != nil {
		_ = r.conn.Close()
		return p.pause()
	}
	p.encodeItems(r.v5, r.maxPacket, r.conn.Room())
	p.sendItems(r, horizon)
	return true
}

// stall says that the client has no room for more: from now on, what comes does not reach
// it at once.
func (p *pump) stall() {
	p.s.Mu.Lock()
	defer p.s.Mu.Unlock()
	p.s.stallLocked()
}

// pause ends the pump unless somebody asked for another round meanwhile.
func (p *pump) pause() bool {
	p.s.Mu.Lock()
	defer p.s.Mu.Unlock()
	if p.s.again {
		return true
	}
	p.s.pumping = false
	return false
}

// sendItems passes the encoded items on as far as they fit.
func (p *pump) sendItems(r roundState, horizon uint64) {
	b, exactly := p.reserve(r, horizon)
	if len(exactly) == 0 {
		return
	}
	// The client recognises a QoS 2 message that it has had by its packet id,
	// so the id must be known before the message is sent (MQTT 5, 4.3.3).
	err := p.saveExchanges(exactly)
	p.passStored(r, b, exactly, err == nil)
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
func (p *pump) reserve(r roundState, horizon uint64) (b batch, exactly []session.Exchange) {
	p.s.Mu.Lock()
	defer p.s.Mu.Unlock()
	if p.s.Conn != r.conn || p.s.plan != r.plan || p.s.mode != behind {
		return b, nil
	}
	b = batch{p.fit(r.conn), p.s.Window.NextID(), horizon}
	if b.n == 0 && len(p.items) > 0 {
		return b, nil // the next round sees why and waits for it
	}
	idsBefore := 0
	for i, it := range p.items[:b.n] {
		numbered := p.idsAt[i] > idsBefore
		idsBefore = p.idsAt[i]
		if !numbered {
			continue
		}
		topic, _ := it.topic()
		qos := min(it.rec.QoS, it.sub.qos)
		id := p.s.Window.Push(session.Inflight{Seq: it.rec.Seq, Topic: topic, QoS: qos})
		if qos == 2 {
			exactly = append(exactly, session.Exchange{Seq: it.rec.Seq, ID: id, Topic: topic})
		}
	}
	if len(exactly) == 0 {
		p.passLocked(r.conn, b, true)
	}
	return b, exactly
}

// passStored is passLocked for a batch of which some has been stored, or could not be.
func (p *pump) passStored(r roundState, b batch, exactly []session.Exchange, stored bool) {
	p.s.Mu.Lock()
	defer p.s.Mu.Unlock()
	if p.s.rewinds != r.rewinds {
		// It is to read all of that again, and what comes before it.
		for i := range p.idsAt[b.n-1] {
			id := session.StepID(b.first, i)
			p.s.Finish(id, p.s.Window.Get(id))
		}
		return
	}
	for _, x := range exactly {
		p.s.storedExchanges = append(p.s.storedExchanges, x.Seq)
	}
	p.passLocked(r.conn, b, stored)
}

// passLocked moves the position behind the items of a batch and passes them on. If they must
// not be sent, or the connection is over, the next attachment sends them: they are in the
// window. p.s.mu is held.
func (p *pump) passLocked(conn *outbox.Conn, b batch, send bool) {
	p.advanceLocked(b.n, b.horizon)
	if !send || p.s.Conn != conn || b.n == 0 {
		return
	}
	p.s.yieldLocked()
	ids := p.ids[:p.idsAt[b.n-1]]
	if !conn.Force(p.out.B[:p.ends[b.n-1]], ids, b.first) {
		return
	}
	for i := range ids {
		e := p.s.Window.Get(session.StepID(b.first, i)) // it is there: before this, nothing acknowledges it
		e.OnWire, e.Sent = true, true
	}
	p.s.OnWire += len(ids)
	for _, r := range p.restored {
		if e := p.s.Window.Get(r.id); e != nil && r.item < b.n && !e.OnWire {
			e.OnWire = true
			p.s.OnWire++
		}
	}
	p.s.engine.stats.Deliveries.Add(p.messages(b.n))
}

// messages returns how many of the first n items are sent for the first time. Notices are
// nobody's messages.
func (p *pump) messages(n int) (count uint64) {
	before := 0
	for i, end := range p.ends[:n] {
		if end > before && i >= p.gaps {
			count++
		}
		before = end
	}
	for _, r := range p.restored {
		if r.item < n {
			count--
		}
	}
	return count
}

// fit returns how many items the window and the outbox take. p.s.mu is held.
func (p *pump) fit(conn *outbox.Conn) int {
	quota, ids, bytes := p.s.Quota(), p.s.Window.FreeIDs(), conn.Room()
	again := 0 // items that have a packet id already; to the client they count like others
	n := 0
	for ; n < len(p.ends); n++ {
		if again < len(p.restored) && p.restored[again].item == n {
			again++
		}
		if p.idsAt[n] > ids || p.idsAt[n]+again > quota || p.ends[n] > bytes && (n > 0 || bytes == 0) {
			break
		}
	}
	return n
}

// advanceLocked moves the position behind the first n items, or to the horizon if these
// are all.
func (p *pump) advanceLocked(n int, horizon uint64) {
	p.s.markCursorDirtyLocked()
	// What was restored and turns out to be behind us now goes the way of resends.
	p.s.resends = p.s.resends || p.s.restored != nil && p.s.Window.Len() > 0
	switch {
	case p.gaps == 0:
	case n >= p.gaps:
		p.s.pos, p.s.noticed = max(p.s.pos, p.gapTo), nil
	default: // too many for one round
		noticed := maps.Clone(p.s.noticed)
		if noticed == nil {
			noticed = map[string]struct{}{}
		}
		for _, it := range p.items[:n] {
			noticed[it.sub.topic] = struct{}{}
		}
		p.s.noticed = noticed
		return
	}
	if n == len(p.items) {
		p.s.pos = max(p.s.pos, horizon)
		return
	}
	p.s.pos = max(p.s.pos, p.items[n-1].rec.Seq) // a notice has none
}

// saveExchanges stores the packet ids of QoS 2 messages before they are sent.
func (p *pump) saveExchanges(xs []session.Exchange) error {
	if !p.s.Persistent() {
		return nil
	}
	return p.s.engine.store.SaveExchanges(p.s.Key, xs)
}

// takeQueueTurnLocked is the part in a round of what waits outside the chat: some messages
// whenever the log has had some sent, or can have none sent. So when it is the log's turn, the
// log does, or finds that it has none, and then the session is live.
func (p *pump) takeQueueTurnLocked() {
	s := p.s
	if s.Queue == nil || s.Queue.Idle() || !s.Conn.HasRoom() {
		return
	}
	if !s.queueTurn && s.Room() > 0 {
		return
	}
	if s.Queue.Send(max(s.Quota()/2, 1), s.engine.limits.PerConn/4) {
		s.queueTurn = false
	}
}
