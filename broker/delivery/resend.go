package delivery

import (
	"cmp"
	"math"
	"slices"

	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/session"
	"mynah/chat"
)

// unsent is a message of the window that the present connection has not had.
type unsent struct {
	id    uint16
	seq   uint64
	topic string
	qos   byte
	state session.State
	had   bool   // the client may have had it
	frame []byte // nil if there is nothing to be sent any more
	gone  bool   // the log no longer has it
}

// keeps reports whether the client may have the message and, if so, keeps its packet id until
// PUBREL comes. Such an exchange has to be brought to its end, expired or not [MQTT-4.3.3-7]:
// once its packet ids have gone round, the client would take another message for this one.
func (u *unsent) keeps() bool { return u.qos == 2 && u.had }

// stuckLocked reports whether no packet id is left while the window has restored messages
// that are to be sent in their turn. Their ids would stay taken until then, so their turn
// is now. s.mu is held.
func (s *Session) stuckLocked() bool {
	if s.restored == nil || s.win.FreeIDs() > 0 {
		return false
	}
	for i := range s.win.Len() {
		if e := s.win.At(i); !e.OnWire && e.State != session.StateDone && e.Seq != 0 {
			return true
		}
	}
	return false
}

// resendItems is how much a round sends again at the most.
const resendItems = 64

// resendRound sends some of what the client did not acknowledge on its last
// connection, in order and with DUP (MQTT 5, 4.4). It is part of the pump.
func (s *Session) resendRound(w *pumpWork, conn *outbox.Conn, v5 bool, maxPacket uint32) bool {
	some, left := s.pickUnsent()
	if !left {
		return true
	}
	if len(some) == 0 || !conn.HasRoom() {
		return s.pause()
	}
	bytes := 0
	for i := range some {
		if bytes > s.engine.limits.PerConn/2 {
			some = some[:i] // the outbox, at most half full now, takes no more
			break
		}
		err := s.encodeUnsent(w, &some[i], v5, maxPacket)
		if err != nil && s.engine.closing.Load() {
			return s.pause()
		}
		if s.engine.reads.begins(err) {
			s.engine.logger.Error("cannot read a message for a session again; its connection is closed so that it tries again, and so are others'",
				"subject", s.Subject, "client_id", s.ClientID, "seq", some[i].seq, "error", err)
		}
		if err != nil {
			_ = conn.Close()
			return s.pause()
		}
		bytes += len(some[i].frame)
	}
	return s.sendUnsent(conn, some, s.encodeGone(w, some, v5))
}

// pickUnsent returns some of what is to be sent again, in order, and whether there is any.
func (s *Session) pickUnsent() (some []unsent, left bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := min(max(s.quotaLocked(), 0), resendItems)
	mixed := s.restored != nil || s.rewinds > 0
	upto := s.pos
	if s.stuckLocked() {
		upto = math.MaxUint64
	}
	for i := range s.win.Len() {
		e := s.win.At(i)
		if e.OnWire || e.State == session.StateDone || e.Seq == 0 || e.Seq > upto {
			continue
		}
		left = true
		if e.State == session.StateReceiving {
			continue // received will wake us
		}
		if !mixed && len(some) >= most {
			break
		}
		some = append(some, unsent{id: e.ID, seq: e.Seq, topic: e.Topic, qos: e.QoS, state: e.State, had: e.Sent})
	}
	s.resends = left
	if mixed {
		// Exchanges that came back with the session have lower packet ids than what
		// was sent between them.
		slices.SortFunc(some, func(a, b unsent) int { return cmp.Compare(a.seq, b.seq) })
		some = some[:min(len(some), most)]
	}
	return some, left
}

// sendUnsent passes on what is to be sent again, and notices before it.
func (s *Session) sendUnsent(conn *outbox.Conn, some []unsent, notices []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != conn || !conn.Force(notices, nil, 0) {
		return true
	}
	s.yieldLocked()
	for _, u := range some {
		e := s.win.Get(u.id)
		if e == nil || e.Seq != u.seq || e.State != u.state {
			continue
		}
		if u.frame == nil && u.keeps() {
			e.OnWire = true
			s.onWire++
			s.arrivedLocked(u.id, e)
			continue
		}
		if u.frame == nil {
			s.finishLocked(u.id, e)
			continue
		}
		if !conn.Force(u.frame, nil, 0) {
			return true
		}
		if !e.Sent { // its first connection ended before its turn
			s.engine.stats.Deliveries.Add(1)
		}
		e.OnWire, e.Sent = true, true
		s.onWire++
	}
	return true
}

// encodeUnsent renders the packet with which an exchange goes on.
func (s *Session) encodeUnsent(w *pumpWork, u *unsent, v5 bool, maxPacket uint32) error {
	if u.state == session.StateReceived {
		u.frame = pubrel(u.id)
		return nil
	}
	u.gone = true
	return s.engine.log.ReadTopic(s.engine.ctx, u.topic, u.seq-1, u.seq, func(rec *msglog.Record) bool {
		u.gone = false
		if !u.keeps() && s.isLate(rec, s.engine.now().UnixMilli()) {
			return false
		}
		u.frame = s.encodeAgain(w, rec, u.topic, u.qos, u.id, s.identifiers(u.topic), v5, maxPacket)
		return false
	})
}

// encodeGone renders a notice for each topic of which there are messages that were sent,
// were not acknowledged and can no longer be sent again.
func (s *Session) encodeGone(w *pumpWork, some []unsent, v5 bool) (frames []byte) {
	var gone []unsent
	for _, u := range some {
		if u.gone {
			gone = append(gone, u)
		}
	}
	slices.SortFunc(gone, func(a, b unsent) int { return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.seq, b.seq)) })
	now := s.engine.now().UnixMilli()
	for len(gone) > 0 {
		topic, n := gone[0].topic, 1
		for n < len(gone) && gone[n].topic == topic {
			n++
		}
		m := chat.GapNotice(topic, gone[0].seq, gone[n-1].seq, now)
		gone = gone[n:]
		w.payload = m.AppendEnvelope(w.payload[:0], 0)
		w.props = w.props[:0]
		if v5 {
			w.props = appendProps(w.props, 0, now, s.identifiers(topic))
		}
		frames, _ = appendPublish(frames, topic, 0, false, v5, w.props, w.payload)
	}
	return frames
}

// identifiers returns the subscription identifiers of a delivery topic.
func (s *Session) identifiers(topic string) []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.topics[topic]; t != nil {
		return t.ids
	}
	return nil
}
