package delivery

import (
	"mynah/broker/outbox"

	"mynah/broker/session"
)

// Acknowledged takes in a PUBACK, PUBREC or PUBCOMP of the client. failed says that it
// carries a reason code of 0x80 or more, which ends the exchange (MQTT 5, 4.3.3). It reports
// false, and does nothing, if the exchange is open and has no such step: the client breaks
// the protocol.
func (s *Session) Acknowledged(conn *outbox.Conn, packetType byte, id uint16, failed bool) (ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != conn {
		return true
	}
	e := s.win.Get(id)
	if e == nil {
		if packetType == typePubrec && !failed {
			conn.Send(pubrel(id)) // ours is over; let the client's end
		}
		return true
	}
	if !e.OnWire {
		return true // it has not been sent on this connection, and that cannot be its acknowledgement
	}
	plain := e.Seq == 0
	switch {
	case packetType == typePubrec && e.QoS == 2 && !failed:
		switch {
		case e.State == session.StateReceiving: // PUBREL will come
		case e.State == session.StateReceived:
			conn.Send(pubrel(id))
		case plain:
			e.State = session.StateReceived
			s.forgetSentLocked(id)
			conn.Send(pubrel(id))
		default:
			s.arrivedLocked(id, e)
		}
		return true
	case (packetType == typePuback) != (e.QoS == 1), // PUBACK is of QoS 1, the others of QoS 2
		packetType == typePubcomp && e.State != session.StateReceived && !failed:
		return false
	}
	s.onWire--
	s.finishLocked(id, e)
	if !plain {
		s.movedLocked()
	}
	s.movePlainLocked()
	s.refillLocked()
	return true
}

// arrivedLocked says that the client has a message of the chat at QoS 2, or that it is to
// forget the packet id of one that it may have and cannot be sent again. After PUBREL it does
// forget it, so that must not be sent before we are sure to remember. s.mu is held.
func (s *Session) arrivedLocked(id uint16, e *session.Inflight) {
	e.State = session.StateReceiving
	seq := e.Seq
	s.engine.store.progress(s, session.Exchange{Seq: seq, ID: id, Topic: e.Topic, State: session.StateReceived}, func(ok bool) { s.received(id, seq, ok) })
}

// received goes on with an exchange when it has been stored that the client has the
// message, or could not be.
func (s *Session) received(id uint16, seq uint64, stored bool) {
	defer s.survive()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.win.Get(id)
	if e == nil || e.Seq != seq || e.State != session.StateReceiving {
		return
	}
	if e.State = session.StateSent; stored {
		e.State = session.StateReceived
	}
	switch {
	case s.conn == nil:
	case !e.OnWire: // on a connection that has come since
		s.resends = true
		s.wakeLocked()
	case stored:
		s.conn.Send(pubrel(id))
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
func (s *Session) finishLocked(id uint16, e *session.Inflight) {
	if e.Seq == 0 {
		s.forgetSentLocked(id)
	}
	if s.restored[e.Seq] == id {
		// What was restored may end before what came before it in the log. Then the
		// store has it for longer than the window, and its packet id may be another
		// message's by the time that the store is read again.
		s.engine.store.progress(s, session.Exchange{Seq: e.Seq, ID: id, Topic: e.Topic, State: session.StateDone}, func(bool) {})
	}
	s.win.Done(e)
	if !s.roomy && s.win.Oversized() {
		s.roomy = true
		s.engine.roomy.add(s)
	}
}

// fitLocked gives back memory that a burst has needed and nobody has since. The session is
// looked at again while there may be more. s.mu is held.
func (s *Session) fitLocked() {
	s.win.Fit()
	if s.plain != nil {
		s.plain.fit()
	}
	if s.roomy = s.win.Oversized(); s.roomy {
		s.engine.roomy.add(s)
	}
}

// quotaLocked returns how many more messages the client takes (MQTT 5, 4.9: messages of
// the chat and of plain topics count alike). s.mu is held.
func (s *Session) quotaLocked() int { return s.limit - s.onWire }

// roomLocked returns how many more messages may be sent under new packet ids. s.mu is
// held.
func (s *Session) roomLocked() int { return min(s.quotaLocked(), s.win.FreeIDs()) }
