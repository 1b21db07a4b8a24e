package pubsub

import (
	"slices"

	"mynah/broker/outbox"
	"mynah/broker/packet"
	"mynah/broker/session"
	"mynah/chat"
)

// Send implements session.Queue: first goes what the client has not acknowledged on its last
// connection, in the order in which it was sent (MQTT 5, 4.6).
func (q *queue) Send(messages, bytes int) (sent bool) {
	if q.Idle() {
		return false
	}
	limits := q.qs.cfg.Limits
	w := writer{q: q, s: q.s, now: q.qs.cfg.Now().UnixMilli(), messages: messages, bytes: bytes, out: limits.Buffer(0)}
	defer func() { limits.Release(w.out) }()
	if w.resend() {
		w.sendWaiting()
	}
	w.sendPassing()
	if len(q.waiting)+len(q.passing) == 0 {
		q.logged = false
	}
	return w.bytes < bytes
}

// writer sends from a session's queue. The session's Mu is held while there is one.
type writer struct {
	q               *queue
	s               *session.Session
	now             int64 // milliseconds since 1970
	messages, bytes int   // may still be sent; messages of QoS 1 and 2
	out             *outbox.Buffer
}

// resend sends what the present connection has not had of the window. It reports whether
// nothing is left of that.
func (w *writer) resend() bool {
	s, q := w.s, w.q
	for len(q.again) > 0 {
		id := q.again[0]
		e := s.Window.Get(id)
		if e != nil && e.Kind == session.Queued && !e.OnWire {
			if w.messages <= 0 || w.bytes <= 0 || s.Quota() <= 0 {
				return false
			}
			frame := packet.EncodePubrel(id)
			if e.State != session.StateReceived {
				it := q.sent[id]
				frame = w.encode(&it, id, true)
				switch {
				case frame != nil:
				case it.qos == 2:
					q.release(id, e)
					frame = packet.EncodePubrel(id)
				default:
					q.s.Feed.Finish(id, e)
				}
			}
			if frame != nil {
				if !w.offer(frame) {
					return false
				}
				w.messages--
				e.OnWire = true
				s.OnWire++
			}
		}
		q.again = q.again[1:]
	}
	q.again = nil
	return true
}

// sendWaiting sends what has not been sent yet.
func (w *writer) sendWaiting() {
	q := w.q
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
		msg, known := w.q.retained(it.topics)
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
		w.q.count(-topicCost)
	}
}

// sendPassing sends what waits at QoS 0.
func (w *writer) sendPassing() {
	q := w.q
	for len(q.passing) > 0 && w.send(q.passing[0]) {
		w.pop(&q.passing)
	}
}

// pop takes the first item out.
func (w *writer) pop(list *[]item) {
	l := *list
	if l[0].prompt {
		w.q.prompt--
	}
	w.q.count(-l[0].cost())
	l[0] = item{}
	if l = l[1:]; len(l) == 0 {
		l = nil
	}
	*list = l
}

// send sends a message, or leaves it out if it is not for this client any more. It reports
// false if there is no room.
func (w *writer) send(it item) bool {
	s := w.s
	if w.bytes <= 0 || it.qos > 0 && (w.messages <= 0 || s.Room() <= 0) {
		return false
	}
	id := s.Window.NextID()
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
	w.q.qs.stats.Deliveries.Add(1)
	if id != 0 {
		w.messages--
		s.Window.Push(session.Inflight{Kind: session.Queued, QoS: it.qos, OnWire: true})
		s.OnWire++
		if w.q.sent == nil {
			w.q.sent = map[uint16]item{}
		}
		it.topics, it.filter, it.prompt = nil, "", false
		w.q.sent[id] = it
		w.q.count(it.cost())
	}
	return true
}

// offer passes a frame on if the outbox takes it.
func (w *writer) offer(frame []byte) bool {
	if !w.s.Conn.Offer(frame) {
		return false
	}
	w.bytes -= len(frame)
	return true
}

// encode returns the PUBLISH of a message, valid until the next one, or nil if the message
// has expired or is too large for the client. What the client may have at QoS 2, with DUP,
// is sent again though it has expired [MQTT-4.3.3-7].
func (w *writer) encode(it *item, id uint16, dup bool) []byte {
	m, s := it.msg, w.s
	if m.expired(w.now) && !it.prompt && (!dup || it.qos != 2) {
		return nil
	}
	var props []byte
	if s.V5 {
		if props = m.Props; m.Expires != 0 || it.ids != nil {
			props = packet.AppendDelivered(slices.Clip(props), chat.SecondsLeft(m.Expires, w.now), it.ids)
		}
	}
	w.out = w.q.qs.cfg.Limits.Grow(w.out, len(m.Topic)+len(props)+len(m.Payload)+packet.MaxPublishOverhead)
	frame, at := packet.AppendPublish(w.out.B[:0], m.Topic, it.qos, dup, s.V5, props, m.Payload)
	if s.MaxPacket > 0 && len(frame) > int(s.MaxPacket) { // [MQTT-3.1.2-24], [MQTT-3.1.2-25]
		w.q.qs.tooLarge(s, m.Topic)
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

// retained returns the retained message of the first of some topics, nil if there is none. If
// that is not known without looking for it on disk, it has that done, for some of the topics
// behind it too, and reports false: whoever delivers to anybody may be waiting for the
// session's lock. What waits is sent on when it is known.
func (q *queue) retained(topics []string) (m *Message, known bool) {
	qs := q.qs
	if qs.cfg.Source == nil {
		return nil, true
	}
	if m, known = qs.cfg.Source.Retained(topics[0]); known {
		return m, true // newer than what was found
	}
	if m, known = q.found[topics[0]]; known || q.looking || qs.closing.Load() {
		return m, known
	}
	q.looking = true
	topics = slices.Clone(topics[:min(len(topics), maxLookUp)])
	qs.tasks.Go(func() {
		found := make(map[string]*Message, len(topics))
		for _, t := range topics {
			if qs.closing.Load() {
				return
			}
			found[t] = qs.cfg.Source.LookUpRetained(t)
		}
		q.goOn(found)
	})
	return nil, false
}

// goOn sends on what waits when retained messages have been looked up.
func (q *queue) goOn(found map[string]*Message) {
	defer q.s.Survive()
	q.s.Mu.Lock()
	defer q.s.Mu.Unlock()
	q.looking, q.found = false, found
	if !q.dropped {
		q.s.Feed.Advance()
	}
}
