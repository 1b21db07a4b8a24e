package delivery

// deliver hands a run to a live session and reports whether it took it. It falls behind if
// it cannot.
func (s *Session) deliver(t *topicSub, r *run) bool {
	defer s.survive()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mode != live {
		return false
	}
	recs := r.recs
	last := recs[len(recs)-1].Seq
	from := max(s.pos, t.since)
	if last <= from {
		return false
	}
	if recs[0].Seq <= from || t.noLocal || t.ids != nil || r.expires {
		s.fallBehindLocked(recs[0].Seq)
		return false
	}
	enc := r.encode(t.qos, s.v5)
	if enc.qos2 || s.maxPacket > 0 && enc.longest > int(s.maxPacket) {
		s.fallBehindLocked(recs[0].Seq)
		return false
	}
	if len(enc.ids) == 0 {
		if !s.conn.offer(enc.frames) {
			s.fallBehindLocked(recs[0].Seq)
			return false
		}
		s.pos = last
		s.movedLocked() // what was sent at QoS 0 is not to be sent again after a crash
		return true
	}
	if len(enc.ids) > s.roomLocked() {
		s.fallBehindLocked(recs[0].Seq)
		return false
	}
	if !s.conn.offerNumbered(enc.frames, enc.ids, s.win.nextID()) {
		s.fallBehindLocked(recs[0].Seq)
		return false
	}
	for _, rec := range enc.numbers {
		s.win.push(inflight{seq: rec.Seq, topic: r.topic, qos: 1, wire: true, sent: true})
	}
	s.onWire += len(enc.ids)
	s.pos = last
	return true
}

// fallBehindLocked makes a live session read on from the log, beginning with the
// message seq: it has no room for it, or the message wants more care than a run gets.
func (s *Session) fallBehindLocked(seq uint64) {
	s.mode, s.pos = behind, max(s.pos, seq-1)
	s.wakeLocked()
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
