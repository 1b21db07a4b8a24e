package delivery

import (
	"slices"

	"mynah/broker/outbox"
	"mynah/broker/session"
)

// takeTurnLocked is the queue's part in a round of the pump: some messages whenever the
// log has had some sent, or can have none sent. So when it is the log's turn, the log does,
// or finds that it has none, and then the session is live.
func (s *Session) takeTurnLocked() {
	q := s.plain
	if q == nil || q.idle() || !s.conn.HasRoom() {
		return
	}
	if !q.turn && s.roomLocked() > 0 {
		return
	}
	if s.sendPlainLocked(max(s.quotaLocked()/2, 1), s.engine.limits.PerConn/4) {
		q.turn = false
	}
}

// yieldLocked says that the log has had messages sent.
func (s *Session) yieldLocked() {
	if s.plain != nil {
		s.plain.turn = true
	}
}

// sendPlainLocked sends what waits, as far as the client and the outbox take it, and until
// it has sent so many messages of QoS 1 and 2, or so many bytes: first what the client has
// not acknowledged on its last connection, in the order in which it was sent (MQTT 5, 4.6).
// It reports whether it has sent any.
func (s *Session) sendPlainLocked(messages, bytes int) (sent bool) {
	q := s.plain
	if q == nil || q.idle() || s.mode == offline {
		return false
	}
	w := plainWriter{s: s, now: s.engine.now().UnixMilli(), messages: messages, bytes: bytes, out: s.engine.limits.Buffer(0)}
	defer func() { s.engine.limits.Release(w.out) }()
	if w.resend() {
		w.sendWaiting()
	}
	w.sendPassing()
	if len(q.waiting)+len(q.passing) == 0 {
		q.told = false
	}
	return w.bytes < bytes
}

// plainWriter sends from a session's queue. Session.mu is held while there is one.
type plainWriter struct {
	s               *Session
	now             int64 // milliseconds since 1970
	messages, bytes int   // may still be sent; messages of QoS 1 and 2
	out             *outbox.Buffer
}

// resend sends what the present connection has not had of the window. It reports whether
// nothing is left of that.
func (w *plainWriter) resend() bool {
	s, q := w.s, w.s.plain
	for len(q.again) > 0 {
		id := q.again[0]
		e := s.win.Get(id)
		if e != nil && e.Seq == 0 && !e.OnWire {
			if w.messages <= 0 || w.bytes <= 0 || s.quotaLocked() <= 0 {
				return false
			}
			frame := pubrel(id)
			if e.State != session.StateReceived {
				it := q.sent[id]
				frame = w.encode(&it, id, true)
				switch {
				case frame != nil:
				case it.qos == 2:
					s.releaseLocked(id, e)
					frame = pubrel(id)
				default:
					s.finishLocked(id, e)
				}
			}
			if frame != nil {
				if !w.offer(frame) {
					return false
				}
				w.messages--
				e.OnWire = true
				s.onWire++
			}
		}
		q.again = q.again[1:]
	}
	q.again = nil
	return true
}

// sendWaiting sends what has not been sent yet.
func (w *plainWriter) sendWaiting() {
	q := w.s.plain
	for len(q.waiting) > 0 {
		head := &q.waiting[0]
		if head.msg != nil {
			if !w.send(*head) {
				return
			}
			w.pop(&q.waiting)
			continue
		}
		it := *head
		msg, known := w.s.retainedLocked(it.topics)
		if !known {
			return
		}
		if it.msg = msg; it.msg != nil {
			it.qos = min(it.qos, it.msg.QoS)
			if !w.send(it) {
				return
			}
		}
		delete(q.found, it.topics[0])
		if it.filter == "" {
			if delete(q.latest, it.topics[0]); len(q.latest) == 0 {
				q.latest = nil // a map keeps the room that it once needed
			}
		}
		if len(it.topics) == 1 {
			if it.filter != "" {
				q.answered(it.filter)
			}
			w.pop(&q.waiting)
			continue
		}
		head.topics = it.topics[1:]
		w.s.countPlainLocked(-plainTopicCost)
	}
}

// sendPassing sends what waits at QoS 0.
func (w *plainWriter) sendPassing() {
	q := w.s.plain
	for len(q.passing) > 0 && w.send(q.passing[0]) {
		w.pop(&q.passing)
	}
}

// pop takes the first item out.
func (w *plainWriter) pop(list *[]plainItem) {
	l := *list
	if l[0].fresh {
		w.s.plain.fresh--
	}
	w.s.countPlainLocked(-l[0].cost())
	l[0] = plainItem{}
	if l = l[1:]; len(l) == 0 {
		l = nil
	}
	*list = l
}

// send sends a message, or leaves it out if it is not for this client any more. It reports
// false if there is no room.
func (w *plainWriter) send(it plainItem) bool {
	s := w.s
	if w.bytes <= 0 || it.qos > 0 && (w.messages <= 0 || s.roomLocked() <= 0) {
		return false
	}
	id := s.win.NextID()
	if it.qos == 0 {
		id = 0
	}
	frame := w.encode(&it, id, false)
	if frame == nil {
		return true
	}
	if !w.offer(frame) {
		return false
	}
	s.engine.stats.Deliveries.Add(1)
	if id != 0 {
		w.messages--
		s.win.Push(session.Inflight{QoS: it.qos, OnWire: true})
		s.onWire++
		if s.plain.sent == nil {
			s.plain.sent = map[uint16]plainItem{}
		}
		it.topics, it.filter, it.fresh = nil, "", false
		s.plain.sent[id] = it
		s.countPlainLocked(it.cost())
	}
	return true
}

// offer passes a frame on if the outbox takes it.
func (w *plainWriter) offer(frame []byte) bool {
	if !w.s.conn.Offer(frame) {
		return false
	}
	w.bytes -= len(frame)
	return true
}

// encode returns the PUBLISH of a message, valid until the next one, or nil if the message
// has expired or is too large for the client. What the client may have at QoS 2, with DUP,
// is sent again though it has expired [MQTT-4.3.3-7].
func (w *plainWriter) encode(it *plainItem, id uint16, dup bool) []byte {
	m, s := it.msg, w.s
	if m.expired(w.now) && !it.fresh && (!dup || it.qos != 2) {
		return nil
	}
	var props []byte
	if s.v5 {
		if props = m.Props; m.Expires != 0 || it.ids != nil {
			props = appendProps(slices.Clip(props), m.Expires, w.now, it.ids)
		}
	}
	w.out = s.engine.limits.Grow(w.out, len(m.Topic)+len(props)+len(m.Payload)+maxFrameOverhead)
	frame, at := appendPublish(w.out.B[:0], m.Topic, it.qos, dup, s.v5, props, m.Payload)
	if s.maxPacket > 0 && len(frame) > int(s.maxPacket) { // [MQTT-3.1.2-24], [MQTT-3.1.2-25]
		s.engine.plainTooLarge(s, m.Topic)
		return nil
	}
	if it.retain {
		frame[0] |= 1
	}
	if at >= 0 {
		outbox.FillPacketIDs(frame, []int32{int32(at)}, id) //nolint:gosec // an offset within a packet
	}
	return frame
}

// maxLookUp is how many topics are looked up at a time.
const maxLookUp = 64

// retainedLocked returns the retained message of the first of some topics, nil if there is
// none. If that is not known without looking for it on disk, it has that done, for some of
// the topics behind it too, and reports false: whoever delivers to anybody may be waiting for
// the lock. What waits is sent on when it is known.
func (s *Session) retainedLocked(topics []string) (m *PlainMessage, known bool) {
	e, q := s.engine, s.plain
	if e.cfg.PlainTopics == nil {
		return nil, true
	}
	if m, known = e.cfg.PlainTopics.Retained(topics[0]); known {
		return m, true // newer than what was found
	}
	if m, known = q.found[topics[0]]; known || q.looking || e.closing.Load() {
		return m, known
	}
	q.looking = true
	topics = slices.Clone(topics[:min(len(topics), maxLookUp)])
	e.tasks.Go(func() {
		found := make(map[string]*PlainMessage, len(topics))
		for _, t := range topics {
			if e.closing.Load() {
				return
			}
			found[t] = e.cfg.PlainTopics.LookUpRetained(t)
		}
		s.guarded(func(s *Session) {
			q.looking, q.found = false, found
			if s.plain == q {
				s.movePlainLocked()
			}
		})
	})
	return nil, false
}
