package delivery

import (
	"math"

	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/session"
	"mynah/chat"
)

// encodeItems renders the items into frames, as many as make up the given bytes. What is
// not for this client (expired, its own with No Local, too large) becomes an empty frame.
func (s *Session) encodeItems(w *pumpWork, v5 bool, maxPacket uint32, bytes int) {
	e := s.engine
	if w.out == nil {
		w.out = e.limits.Buffer(0)
	}
	w.out.B = w.out.B[:0]
	w.ids, w.ends, w.idsAt = w.ids[:0], w.ends[:0], w.idsAt[:0]
	w.again = w.again[:0]
	now := e.now().UnixMilli()
	for i, it := range w.items {
		o := s.optionsOf(it.sub)
		if _, had := s.restored[it.rec.Seq]; had {
			s.encodeRestored(w, i, o, v5, maxPacket)
		} else if !s.skips(it, o, now, w.promptFrom) {
			topic, prev := it.topic()
			w.payload = it.rec.AppendEnvelope(w.payload[:0], prev)
			w.props = w.props[:0]
			if v5 {
				w.props = appendProps(append(w.props, it.rec.Props...), it.rec.Expires, now, o.ids)
			}
			qos := min(it.rec.QoS, o.qos)
			w.out = e.limits.Grow(w.out, len(topic)+len(w.props)+len(w.payload)+maxFrameOverhead)
			before := len(w.out.B)
			frame, at := appendPublish(w.out.B, topic, qos, false, v5, w.props, w.payload)
			switch {
			case maxPacket > 0 && len(frame)-before > int(maxPacket):
				e.tooLarge(s, it.rec)
			default:
				w.out.B = frame
				if at >= 0 {
					w.ids = append(w.ids, int32(at)) //nolint:gosec // a round is bounded
				}
			}
		}
		w.ends = append(w.ends, len(w.out.B))
		w.idsAt = append(w.idsAt, len(w.ids))
		if len(w.out.B) >= bytes {
			break // enough for one round
		}
	}
}

// encodeRestored encodes the next step for a QoS 2 message that was on its way when the
// broker stopped: the PUBLISH under the packet id that it has, PUBREL, or nothing.
func (s *Session) encodeRestored(w *pumpWork, i int, o options, v5 bool, maxPacket uint32) {
	it := w.items[i]
	id := s.restored[it.rec.Seq]
	due, received := s.restoredDue(id, it.rec.Seq)
	if !due {
		return
	}
	frame := pubrel(id)
	if !received {
		topic, _ := it.topic()
		if frame = s.encodeAgain(w, it.rec, topic, 2, id, o.ids, v5, maxPacket); frame == nil {
			s.dropRestored(id, it.rec.Seq)
			return
		}
	}
	w.out = s.engine.limits.Grow(w.out, len(frame))
	w.out.B = append(w.out.B, frame...)
	w.again = append(w.again, restoredItem{i, id})
}

// restoredDue reports whether an exchange of before the broker stopped is to go on, and
// whether the client has the message.
func (s *Session) restoredDue(id uint16, seq uint64) (due, received bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.win.Get(id)
	due = e != nil && e.Seq == seq && !e.OnWire && e.State != session.StateReceiving
	return due, due && e.State == session.StateReceived
}

// dropRestored has the client forget an exchange whose message is too large for it now.
func (s *Session) dropRestored(id uint16, seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.win.Get(id); e != nil && e.Seq == seq && e.State == session.StateSent {
		s.arrivedLocked(id, e)
	}
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

// skips reports whether a message is not for the session. A request (MQTT 5, 4.10) is not
// for the device that has sent it, which would take it for the response if it listens on a
// topic where it is itself.
func (s *Session) skips(it item, o options, now int64, promptFrom uint64) bool {
	rec := it.rec
	if rec.Expires == chat.AtOnce && promptFrom != 0 && rec.Seq >= promptFrom {
		now = math.MinInt64
	}
	return s.isLate(rec, now) || (o.noLocal || rec.Request) && rec.From == s.Subject && rec.Client == s.ClientID
}

// isLate reports whether the time of a message is over (MQTT 5, 3.3.2.3.3). For an archiver
// it never is: what was acknowledged is archived, whenever it comes to that.
func (s *Session) isLate(rec *msglog.Record, now int64) bool {
	return rec.Expires != 0 && rec.Expires <= now && !s.archives()
}

// encodeAgain returns a PUBLISH that the client may have had, with DUP and under the packet
// id that it had, or nil if it is too large for the client now. It may have expired: at QoS 2
// that is no reason to give up [MQTT-4.3.3-7].
func (s *Session) encodeAgain(
	w *pumpWork, rec *msglog.Record, topic string, qos byte, id uint16, subIDs []int, v5 bool, maxPacket uint32,
) []byte {
	prev := rec.Prev
	if topic != rec.To {
		prev = rec.PrevSender
	}
	w.payload = rec.AppendEnvelope(w.payload[:0], prev)
	w.props = w.props[:0]
	if v5 {
		w.props = appendProps(append(w.props, rec.Props...), rec.Expires, s.engine.now().UnixMilli(), subIDs)
	}
	frame, at := appendPublish(nil, topic, qos, true, v5, w.props, w.payload)
	if maxPacket > 0 && len(frame) > int(maxPacket) {
		s.engine.tooLarge(s, rec)
		return nil
	}
	outbox.FillPacketIDs(frame, []int32{int32(at)}, id) //nolint:gosec // an offset within a packet
	return frame
}
