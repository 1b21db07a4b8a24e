package delivery

import (
	"mynah/broker/outbox"
	"mynah/broker/packet"

	"mynah/broker/session"
)

// Acknowledged takes in a PUBACK, PUBREC or PUBCOMP of the client. failed says that it
// carries a reason code of 0x80 or more, which ends the exchange (MQTT 5, 4.3.3). It reports
// false, and does nothing, if the exchange is open and has no such step: the client breaks
// the protocol.
func (s *feed) Acknowledged(conn *outbox.Conn, packetType packet.Type, id uint16, failed bool) (ok bool) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if s.Conn != conn {
		return true
	}
	e := s.Window.Get(id)
	if e == nil {
		if packetType == packet.Pubrec && !failed {
			conn.Send(packet.EncodePubrel(id)) // ours is over; let the client's end
		}
		return true
	}
	if !e.OnWire {
		return true // it has not been sent on this connection, and that cannot be its acknowledgement
	}
	queued := e.Kind == session.Queued
	switch {
	case packetType == packet.Pubrec && e.QoS == 2 && !failed:
		switch {
		case e.State == session.StateReceiving: // PUBREL will come
		case e.State == session.StateReceived:
			conn.Send(packet.EncodePubrel(id))
		case queued:
			e.State = session.StateReceived
			s.Queue.Forget(id)
			conn.Send(packet.EncodePubrel(id))
		default:
			s.arrivedLocked(id, e)
		}
		return true
	case (packetType == packet.Puback) != (e.QoS == 1), // PUBACK is of QoS 1, the others of QoS 2
		packetType == packet.Pubcomp && e.State != session.StateReceived && !failed:
		return false
	}
	s.OnWire--
	s.Finish(id, e)
	if !queued {
		s.markCursorDirtyLocked()
	}
	s.Advance()
	s.refillLocked()
	return true
}

// arrivedLocked says that the client has a message of the chat at QoS 2, or that it is to
// forget the packet id of one that it may have and cannot be sent again. After PUBREL it does
// forget it, so that must not be sent before we are sure to remember. Mu is held.
func (s *feed) arrivedLocked(id uint16, e *session.Inflight) {
	e.State = session.StateReceiving
	seq := e.Seq
	s.engine.store.SaveProgress(&s.Session, session.Exchange{Seq: seq, ID: id, Topic: e.Topic, State: session.StateReceived}, func(ok bool) { s.received(id, seq, ok) })
}

// received goes on with an exchange when it has been stored that the client has the
// message, or could not be.
func (s *feed) received(id uint16, seq uint64, stored bool) {
	defer s.Survive()
	s.Mu.Lock()
	defer s.Mu.Unlock()
	e := s.Window.Get(id)
	if e == nil || e.Seq != seq || e.State != session.StateReceiving {
		return
	}
	if e.State = session.StateSent; stored {
		e.State = session.StateReceived
	}
	switch {
	case s.Conn == nil:
	case !e.OnWire: // on a connection that has come since
		s.resends = true
		s.wakeLocked()
	case stored:
		s.Conn.Send(packet.EncodePubrel(id))
	default: // the client asks again when it reconnects
	}
}

// smallWindow is up to how many unacknowledged messages a client is sent the next one for
// each acknowledgement.
const smallWindow = 64

// refillLocked has a session that is behind read on after an acknowledgement: at once if
// half of its window is free, so that each reading brings many messages, otherwise within
// refillInterval. Mu is held.
func (s *feed) refillLocked() {
	switch {
	case s.mode != behind:
	case s.OnWire <= s.Limit/2 || s.Limit <= smallWindow:
		s.wakeLocked()
	case !s.refillSoon:
		s.refillSoon = true
		s.engine.refillSoon.add(s)
	}
}

// Finish implements session.Feed: it says that a message of the window needs no more. Mu is held.
func (s *feed) Finish(id uint16, e *session.Inflight) {
	if e.Kind == session.Queued {
		s.Queue.Forget(id)
	} else if s.restored[e.Seq] == id {
		// What was restored may end before what came before it in the log. Then the
		// store has it for longer than the window, and its packet id may be another
		// message's by the time that the store is read again.
		s.engine.store.SaveProgress(&s.Session, session.Exchange{Seq: e.Seq, ID: id, Topic: e.Topic, State: session.StateDone}, func(bool) {})
	}
	s.Window.Done(e)
	if !s.oversized && s.Window.Oversized() {
		s.oversized = true
		s.engine.oversized.add(s)
	}
}

// shrinkLocked gives back memory that a burst has needed and nobody has since. The session is
// looked at again while there may be more.
func (s *feed) shrinkLocked() {
	s.Window.Fit()
	if s.Queue != nil {
		s.Queue.Shrink()
	}
	if s.oversized = s.Window.Oversized(); s.oversized {
		s.engine.oversized.add(s)
	}
}
