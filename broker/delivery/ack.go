package delivery

import (
	"cmp"
	"math"
	"slices"

	"mynah/broker/msglog"
	"mynah/chat"
)

// Control packet types that acknowledge (MQTT 5, 2.1.2).
const (
	typePuback  = 4
	typePubrec  = 5
	typePubrel  = 6
	typePubcomp = 7
)

// Reason codes of MQTT 5 that delivery itself sends (2.4).
const reasonTakenOver = 0x8E

// disconnect returns an MQTT 5 DISCONNECT with a reason code.
func disconnect(reason byte) []byte { return []byte{0xE0, 2, reason, 0} }

// pubrel returns a PUBREL.
func pubrel(id uint16) []byte {
	return []byte{typePubrel<<4 | 2, 2, byte(id >> 8), byte(id)}
}

// Acknowledged takes in a PUBACK, PUBREC or PUBCOMP of the client. failed says that it
// carries a reason code of 0x80 or more, which ends the exchange (MQTT 5, 4.3.3).
func (s *Session) Acknowledged(conn *Conn, packetType byte, id uint16, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != conn {
		return
	}
	e := s.win.get(id)
	if e == nil {
		if packetType == typePubrec && !failed {
			conn.send(pubrel(id)) // ours is over; let the client's end
		}
		return
	}
	if !e.wire {
		return // it has not been sent on this connection, and that cannot be its acknowledgement
	}
	plain := e.seq == 0
	switch {
	case packetType == typePubrec && e.qos == 2 && !failed:
		switch {
		case e.state == stateReceiving: // PUBREL will come
		case e.state == stateReceived:
			conn.send(pubrel(id))
		case plain:
			e.state = stateReceived
			s.forgetSentLocked(id)
			conn.send(pubrel(id))
		default:
			// After PUBREL the client forgets the packet id. It must not be sent
			// before we are sure to remember that the message has arrived.
			e.state = stateReceiving
			seq := e.seq
			s.engine.store.progress(s, exchange{seq, id, e.topic, stateReceived}, func(ok bool) { s.received(id, seq, ok) })
		}
		return
	case packetType == typePubrec && e.qos == 1, packetType == typePuback && e.qos == 2,
		packetType == typePubcomp && e.state != stateReceived && !failed:
		return // no such step in the exchange
	}
	if e.wire {
		s.onWire--
	}
	s.finishLocked(id, e)
	if !plain {
		s.movedLocked()
	}
	s.movePlainLocked()
	s.refillLocked()
}

// received goes on with an exchange when it has been stored that the client has the
// message, or could not be.
func (s *Session) received(id uint16, seq uint64, stored bool) {
	defer s.survive()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.win.get(id)
	if e == nil || e.seq != seq || e.state != stateReceiving {
		return
	}
	if e.state = stateSent; stored {
		e.state = stateReceived
	}
	switch {
	case s.conn == nil:
	case !e.wire: // on a connection that has come since
		s.resends = true
		s.wakeLocked()
	case stored:
		s.conn.send(pubrel(id))
	default: // the client asks again when it reconnects
	}
}

// smallWindow is up to how many unacknowledged messages a client is sent the next one for
// each acknowledgement.
const smallWindow = 64

// refillLocked has a session that is behind read on after an acknowledgement: at once if
// half of its window is free, so that each reading brings many messages, otherwise within
// refillInterval. s.mu is held.
func (s *Session) refillLocked() {
	switch {
	case s.mode != behind:
	case s.onWire <= s.limit/2 || s.limit <= smallWindow:
		s.wakeLocked()
	case !s.lagging:
		s.lagging = true
		s.engine.lagging.add(s)
	}
}

// finishLocked says that a message of the window needs no more. s.mu is held.
func (s *Session) finishLocked(id uint16, e *inflight) {
	if e.seq == 0 {
		s.forgetSentLocked(id)
	}
	if s.restored[e.seq] == id {
		// What was restored may end before what came before it in the log. Then the
		// store has it for longer than the window, and its packet id may be another
		// message's by the time that the store is read again.
		s.engine.store.progress(s, exchange{e.seq, id, e.topic, stateDone}, func(bool) {})
	}
	s.win.done(e)
	if !s.roomy && s.win.roomy() {
		s.roomy = true
		s.engine.roomy.add(s)
	}
}

// fitLocked gives back memory that a burst has needed and nobody has since. The session is
// looked at again while there may be more. s.mu is held.
func (s *Session) fitLocked() {
	s.win.fit()
	if s.plain != nil {
		s.plain.fit()
	}
	if s.roomy = s.win.roomy(); s.roomy {
		s.engine.roomy.add(s)
	}
}

// quotaLocked returns how many more messages the client takes (MQTT 5, 4.9: messages of
// the chat and of plain topics count alike). s.mu is held.
func (s *Session) quotaLocked() int { return s.limit - s.onWire }

// roomLocked returns how many more messages may be sent under new packet ids. s.mu is
// held.
func (s *Session) roomLocked() int { return min(s.quotaLocked(), s.win.spare()) }

// unsent is a message of the window that the present connection has not had.
type unsent struct {
	id    uint16
	seq   uint64
	topic string
	qos   byte
	state state
	frame []byte // nil if there is nothing to be sent any more
	gone  bool   // the log no longer has it
}

// stuckLocked reports whether no packet id is left while the window has restored messages
// that are to be sent in their turn. Their ids would stay taken until then, so their turn
// is now. s.mu is held.
func (s *Session) stuckLocked() bool {
	if s.restored == nil || s.win.spare() > 0 {
		return false
	}
	for i := range s.win.n {
		if e := s.win.at(i); !e.wire && e.state != stateDone && e.seq != 0 {
			return true
		}
	}
	return false
}

// resendItems is how much a round sends again at the most.
const resendItems = 64

// resendRound sends some of what the client did not acknowledge on its last
// connection, in order and with DUP (MQTT 5, 4.4). It is part of the pump.
func (s *Session) resendRound(w *pumpWork, conn *Conn, v5 bool, maxPacket uint32) bool {
	some, left := s.unsent()
	if !left {
		return true
	}
	if len(some) == 0 || !conn.hasRoom() {
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

// unsent returns some of what is to be sent again, in order, and whether there is any.
func (s *Session) unsent() (some []unsent, left bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := min(max(s.quotaLocked(), 0), resendItems)
	mixed := s.restored != nil || s.rewound
	upto := s.pos
	if s.stuckLocked() {
		upto = math.MaxUint64
	}
	for i := range s.win.n {
		e := s.win.at(i)
		if e.wire || e.state == stateDone || e.seq == 0 || e.seq > upto {
			continue
		}
		left = true
		if e.state == stateReceiving {
			continue // received will wake us
		}
		if !mixed && len(some) >= most {
			break
		}
		some = append(some, unsent{id: e.id, seq: e.seq, topic: e.topic, qos: e.qos, state: e.state})
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
func (s *Session) sendUnsent(conn *Conn, some []unsent, notices []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != conn || !conn.force(notices, nil, 0) {
		return true
	}
	s.yieldLocked()
	for _, u := range some {
		e := s.win.get(u.id)
		if e == nil || e.seq != u.seq || e.state != u.state {
			continue
		}
		if u.frame == nil {
			s.finishLocked(u.id, e)
			continue
		}
		if !conn.force(u.frame, nil, 0) {
			return true
		}
		if !e.sent { // its first connection ended before its turn
			s.engine.stats.Deliveries.Add(1)
		}
		e.wire, e.sent = true, true
		s.onWire++
	}
	return true
}

// encodeUnsent renders the packet with which an exchange goes on.
func (s *Session) encodeUnsent(w *pumpWork, u *unsent, v5 bool, maxPacket uint32) error {
	if u.state == stateReceived {
		u.frame = pubrel(u.id)
		return nil
	}
	u.gone = true
	return s.engine.log.ReadTopic(s.engine.ctx, u.topic, u.seq-1, u.seq, func(rec *msglog.Record) bool {
		u.gone = false
		u.frame = s.encodeAgain(w, rec, u.topic, u.qos, u.id, s.identifiers(u.topic), v5, maxPacket)
		return false
	})
}

// encodeAgain returns a PUBLISH that the client may have had, with DUP and under the packet
// id that it had, or nil if it is not for this client any more.
func (s *Session) encodeAgain(
	w *pumpWork, rec *msglog.Record, topic string, qos byte, id uint16, subIDs []int, v5 bool, maxPacket uint32,
) []byte {
	now := s.engine.now().UnixMilli()
	if rec.Expires != 0 && rec.Expires <= now {
		return nil
	}
	prev := rec.Prev
	if topic != rec.To {
		prev = rec.PrevSender
	}
	w.payload = rec.AppendEnvelope(w.payload[:0], prev)
	w.props = w.props[:0]
	if v5 {
		w.props = appendProps(w.props, rec.Expires, now, subIDs)
	}
	frame, at := appendPublish(nil, topic, qos, true, v5, w.props, w.payload)
	if maxPacket > 0 && len(frame) > int(maxPacket) {
		s.engine.tooLarge(s, rec)
		return nil
	}
	number(frame, []int32{int32(at)}, id) //nolint:gosec // an offset within a packet
	return frame
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
