package delivery

import (
	"maps"

	"mynah/broker/msglog"
)

// plan is what a session that is behind reads: its logged topics, or the whole log if
// it subscribes to every user's or every group's messages. A plan is never changed,
// only replaced.
type plan struct {
	topics []*topicSub
	users  *topicSub // subscription to all users' topics
	groups *topicSub // subscription to all groups' topics
	byName map[string]*topicSub
}

func newPlan(topics map[string]*topicSub) *plan {
	p := &plan{byName: topics}
	for topic, t := range topics {
		switch {
		case t.signal:
		case topic == allUsers:
			p.users = t
		case topic == allGroups:
			p.groups = t
		default:
			p.topics = append(p.topics, t)
		}
	}
	return p
}

// item is a message that a session is to get, and by which subscription.
type item struct {
	rec *msglog.Record
	sub *topicSub
}

// topic returns the topic of the item's PUBLISH and the prev that belongs to it.
func (it item) topic() (topic string, prev uint64) {
	switch it.sub.topic {
	case allUsers, allGroups, it.rec.To:
		return it.rec.To, it.rec.Prev
	}
	return it.sub.topic, it.rec.PrevSender
}

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
	for s.pumpRound(&w) {
	}
	w.release(s.engine.limits)
}

// pumpWork is the pump's scratch memory.
type pumpWork struct {
	items   []item
	payload []byte
	props   []byte
	out     *buffer
	ids     []int32 // offsets of packet ids in out
	ends    []int   // end of each item's frame in out
	idsAt   []int   // how many ids there are up to and including each item
	again   []restoredItem
	gaps    int    // how many of the items, the first, are notices that messages are gone
	gapTo   uint64 // up to here
}

// restoredItem says that an item goes out under a packet id that it has already.
type restoredItem struct {
	item int
	id   uint16
}

func (w *pumpWork) release(l *OutboxLimits) {
	if w.out != nil {
		l.put(w.out)
		w.out = nil
	}
}

// pumpRound does one round. It reports whether there is reason for another one.
func (s *Session) pumpRound(w *pumpWork) bool {
	e := s.engine
	s.mu.Lock()
	s.again = false
	if s.conn == nil || s.mode != behind || e.closing.Load() {
		s.pumping = false
		s.mu.Unlock()
		return false
	}
	s.takeTurnLocked()
	if s.resends || s.stuckLocked() {
		s.mu.Unlock()
		return s.resendRound(w)
	}
	conn, plan, pos, v5, maxPacket := s.conn, s.plan, s.pos, s.v5, s.maxPacket
	target := e.started.Load()
	if pos >= target {
		// The engine sets started before it visits a session. So either it has
		// not come to anything after pos, and will find us live, or we would have
		// seen a later started.
		s.mode, s.pumping = live, false
		s.movePlainLocked()
		s.mu.Unlock()
		return false
	}
	room := s.roomLocked()
	s.mu.Unlock()
	if room <= 0 || !conn.hasRoom() {
		return s.pause()
	}

	horizon, err := s.collect(w, plan, pos, target, min(room, pumpItems))
	if e.reads.begins(err) {
		e.logger.Error("cannot read the message log for a session; its connection is closed so that it tries again, and so are others'",
			"subject", s.Subject, "client_id", s.ClientID, "after", pos, "error", err)
	}
	if err != nil {
		_ = conn.Close()
		return s.pause()
	}
	s.encodeItems(w, v5, maxPacket, conn.room())
	return s.sendItems(w, conn, plan, horizon)
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

// encodeItems renders the items into frames, as many as make up the given bytes. What is not for this client (expired, its
// own with No Local, too large) becomes an empty frame.
func (s *Session) encodeItems(w *pumpWork, v5 bool, maxPacket uint32, bytes int) {
	e := s.engine
	if w.out == nil {
		w.out = e.limits.get(0)
	}
	w.out.b = w.out.b[:0]
	w.ids, w.ends, w.idsAt = w.ids[:0], w.ends[:0], w.idsAt[:0]
	w.again = w.again[:0]
	now := e.now().UnixMilli()
	for i, it := range w.items {
		o := s.optionsOf(it.sub)
		if _, had := s.restored[it.rec.Seq]; had {
			s.encodeRestored(w, i, o, v5, maxPacket)
		} else if !s.skips(it, o, now) {
			topic, prev := it.topic()
			w.payload = it.rec.AppendEnvelope(w.payload[:0], prev)
			w.props = w.props[:0]
			if v5 {
				w.props = appendProps(w.props, it.rec.Expires, now, o.ids)
			}
			qos := min(it.rec.QoS, o.qos)
			w.out = e.limits.grow(w.out, len(topic)+len(w.props)+len(w.payload)+maxFrameOverhead)
			before := len(w.out.b)
			frame, at := appendPublish(w.out.b, topic, qos, false, v5, w.props, w.payload)
			switch {
			case maxPacket > 0 && len(frame)-before > int(maxPacket):
				e.tooLarge(s, it.rec)
			default:
				w.out.b = frame
				if at >= 0 {
					w.ids = append(w.ids, int32(at)) //nolint:gosec // a round is bounded
				}
			}
		}
		w.ends = append(w.ends, len(w.out.b))
		w.idsAt = append(w.idsAt, len(w.ids))
		if len(w.out.b) >= bytes {
			break // enough for one round
		}
	}
}

// encodeRestored encodes the next step for a QoS 2 message that was on its way when the
// broker stopped: the PUBLISH under the packet id that it has, PUBREL, or nothing.
func (s *Session) encodeRestored(w *pumpWork, i int, o options, v5 bool, maxPacket uint32) {
	it := w.items[i]
	id := s.restored[it.rec.Seq]
	s.mu.Lock()
	e := s.win.get(id)
	due := e != nil && e.seq == it.rec.Seq && !e.wire && e.state != stateReceiving
	received := due && e.state == stateReceived
	s.mu.Unlock()
	if !due {
		return
	}
	frame := pubrel(id)
	if !received {
		topic, _ := it.topic()
		if frame = s.encodeAgain(w, it.rec, topic, 2, id, o.ids, v5, maxPacket); frame == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if e = s.win.get(id); e != nil && e.seq == it.rec.Seq {
				s.finishLocked(id, e)
			}
			return
		}
	}
	w.out = s.engine.limits.grow(w.out, len(frame))
	w.out.b = append(w.out.b, frame...)
	w.again = append(w.again, restoredItem{i, id})
}

// options are what a session asked for with a subscription.
type options struct {
	qos     byte
	noLocal bool
	ids     []int
}

// optionsOf returns the options as they are now. If they change before what was made
// with them is sent, so does the plan, and sendItems throws it away.
func (s *Session) optionsOf(t *topicSub) options {
	s.mu.Lock()
	defer s.mu.Unlock()
	return options{t.qos, t.noLocal, t.ids}
}

// skips reports whether a message is not for the session.
func (s *Session) skips(it item, o options, now int64) bool {
	if it.rec.Expires != 0 && it.rec.Expires <= now {
		return true
	}
	return o.noLocal && it.rec.From == s.Subject && it.rec.Client == s.ClientID
}

// sendItems passes the encoded items on as far as they fit.
func (s *Session) sendItems(w *pumpWork, conn *Conn, plan *plan, horizon uint64) bool {
	e := s.engine
	s.mu.Lock()
	if s.conn != conn || s.plan != plan || s.mode != behind {
		s.mu.Unlock()
		return true // look again
	}
	n := s.fit(w, conn)
	if n == 0 && len(w.items) > 0 {
		s.mu.Unlock()
		return true // the next round sees why and waits for it
	}
	first := s.win.nextID()
	var exactly []exchange
	idsBefore := 0
	for i, it := range w.items[:n] {
		numbered := w.idsAt[i] > idsBefore
		idsBefore = w.idsAt[i]
		if !numbered {
			continue
		}
		topic, _ := it.topic()
		qos := min(it.rec.QoS, it.sub.qos)
		id := s.win.push(inflight{seq: it.rec.Seq, topic: topic, qos: qos})
		if qos == 2 {
			exactly = append(exactly, exchange{seq: it.rec.Seq, id: id, topic: topic})
		}
	}
	if len(exactly) > 0 {
		// The client recognises a QoS 2 message that it has had by its packet id,
		// so the id must be known before the message is sent (MQTT 5, 4.3.3).
		s.mu.Unlock()
		err := e.store.saveExactly(s, exactly)
		s.mu.Lock()
		for _, x := range exactly {
			s.stored = append(s.stored, x.seq)
		}
		s.advanceLocked(w, n, horizon)
		if err != nil || s.conn != conn {
			// They are in the window; the next attachment sends them.
			s.mu.Unlock()
			if err != nil {
				_ = conn.Close()
			}
			return true
		}
	} else {
		s.advanceLocked(w, n, horizon)
	}
	if n > 0 {
		s.yieldLocked()
		ids := w.ids[:w.idsAt[n-1]]
		if conn.force(w.out.b[:w.ends[n-1]], ids, first) {
			for i := range ids {
				e := s.win.get(stepID(first, i)) // it is there: before this, nothing acknowledges it
				e.wire, e.sent = true, true
			}
			s.onWire += len(ids)
			for _, r := range w.again {
				if e := s.win.get(r.id); e != nil && r.item < n && !e.wire {
					e.wire = true
					s.onWire++
				}
			}
			e.stats.Deliveries.Add(w.messages(n))
		}
	}
	s.mu.Unlock()
	return true
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
func (s *Session) fit(w *pumpWork, conn *Conn) int {
	quota, ids, bytes := s.quotaLocked(), s.win.spare(), conn.room()
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
	s.resends = s.resends || s.restored != nil && s.win.n > 0
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
	if seq := w.items[n-1].rec.Seq; seq > 0 {
		s.pos = max(s.pos, seq)
	}
}

// stepID returns the packet id that is n after id.
func stepID(id uint16, n int) uint16 {
	return uint16((int(id)-1+n)%maxWindow) + 1 //nolint:gosec // below 65536 by construction
}
