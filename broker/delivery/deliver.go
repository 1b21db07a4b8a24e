package delivery

import (
	"time"

	"mynah/broker/msglog"
	"mynah/broker/session"
	"mynah/chat"
)

// Deliver hands committed messages, in the order of the log, to the sessions that are
// live. One goroutine calls it.
func (e *Engine) Deliver(recs []*msglog.Record) {
	if len(recs) == 0 {
		return
	}
	e.recent.add(recs)
	last := recs[len(recs)-1].Seq
	e.started.Store(last)
	now := e.now()
	for len(recs) > 0 {
		n := runLength(recs)
		part := recs[:n]
		recs = recs[n:]
		to := chat.ParseTopic(part[0].To)
		if to.Kind == chat.KindGroup {
			e.deliverRun(part[0].To, false, part, now, session.AllGroups)
			e.limits.WriteSome(&e.helper)
			continue
		}
		// The recipient first: a session that subscribes to both gets it there.
		e.deliverRun(part[0].To, false, part, now, session.AllUsers)
		if from := part[0].From; from != to.ID {
			e.deliverRun(chat.UserTopic(from), true, part, now, "")
		}
	}
	e.delivered.Store(last)
}

// Audience returns about how many sessions a message on a topic of the chat goes to.
func (e *Engine) Audience(topic string) int { return e.topics.audience(topic) }

// runLength returns how many messages from the first on can be handled as one.
func runLength(recs []*msglog.Record) int {
	bytes := 0
	for i, rec := range recs {
		bytes += len(rec.Tail)
		if i > 0 && (i >= maxRun || bytes > maxRunBytes || rec.To != recs[0].To || rec.From != recs[0].From) {
			return i
		}
	}
	return len(recs)
}

// deliverRun hands a run to the subscribers of a topic and to those of everybody, a
// wildcard that covers it.
func (e *Engine) deliverRun(topic string, sender bool, recs []*msglog.Record, now time.Time, everybody string) {
	own, wild := e.topics.pair(topic, everybody)
	if own == nil && wild == nil {
		return
	}
	e.run.reset(topic, sender, recs, now)
	n := 0
	for _, en := range [...]*entry{own, wild} {
		if en == nil {
			continue
		}
		en.mu.RLock()
		for _, t := range en.subs {
			if t.feed.deliver(t, &e.run) {
				n += len(recs)
			}
		}
		en.mu.RUnlock()
	}
	e.stats.Deliveries.Add(uint64(n)) //nolint:gosec // not negative
}

// deliver hands a run to a live session and reports whether it took it. It falls behind if
// it cannot.
func (s *feed) deliver(t *topicSub, r *run) bool {
	defer s.Survive()
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if s.mode != live {
		return false
	}
	recs := r.recs
	last := recs[len(recs)-1].Seq
	from := max(s.pos, t.since)
	if last <= from {
		return false
	}
	if recs[0].Seq <= from || t.noLocal || t.ids != nil || r.expires || r.requests && s.Subject == recs[0].From {
		s.fallBehindLocked(recs[0].Seq)
		return false
	}
	enc := r.encode(t.qos, s.V5)
	if enc.qos2 || s.MaxPacket > 0 && enc.longest > int(s.MaxPacket) {
		s.fallBehindLocked(recs[0].Seq)
		return false
	}
	if len(enc.ids) == 0 {
		if !s.Conn.Offer(enc.frames) {
			s.fallBehindLocked(recs[0].Seq)
			return false
		}
		s.pos = last
		s.markCursorDirtyLocked() // what was sent at QoS 0 is not to be sent again after a crash
		return true
	}
	if len(enc.ids) > s.Room() {
		s.fallBehindLocked(recs[0].Seq)
		return false
	}
	if !s.Conn.OfferNumbered(enc.frames, enc.ids, s.Window.NextID()) {
		s.fallBehindLocked(recs[0].Seq)
		return false
	}
	for _, rec := range enc.numbers {
		s.Window.Push(session.Inflight{Seq: rec.Seq, Topic: r.topic, QoS: 1, OnWire: true, Sent: true})
	}
	s.OnWire += len(enc.ids)
	s.pos = last
	return true
}

// fallBehindLocked makes a live session read on from the log, beginning with the
// message seq: it has no room for it, or the message wants more care than a run gets.
func (s *feed) fallBehindLocked(seq uint64) {
	s.mode, s.pos = behind, max(s.pos, seq-1)
	if s.promptFrom = 0; s.Room() > 0 && s.Conn.HasRoom() {
		s.promptFrom = seq
	}
	s.wakeLocked()
}
