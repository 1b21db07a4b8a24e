package delivery

import (
	"cmp"
	"math"
	"slices"

	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/packet"
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

// resendItems is how much a round sends again at the most.
const resendItems = 64

// resendRound sends some of what the client did not acknowledge on its last
// connection, in order and with DUP (MQTT 5, 4.4). It is part of the pump.
func (p *pump) resendRound(conn *outbox.Conn, v5 bool, maxPacket uint32) bool {
	some, left := p.pickUnsent()
	if !left {
		return true
	}
	if len(some) == 0 || !conn.HasRoom() {
		return p.pause()
	}
	bytes := 0
	for i := range some {
		if bytes > p.s.engine.limits.PerConn/2 {
			some = some[:i] // the outbox, at most half full now, takes no more
			break
		}
		err := p.encodeUnsent(&some[i], v5, maxPacket)
		if err != nil && p.s.engine.closing.Load() {
			return p.pause()
		}
		if p.s.engine.readFailed(err) {
			p.s.engine.logger.Error("cannot read a message for a session again; its connection is closed so that it tries again, and so are others'",
				"subject", p.s.Subject, "client_id", p.s.ClientID, "seq", some[i].seq, "error", err)
		}
		if err != nil {
			_ = conn.Close()
			return p.pause()
		}
		bytes += len(some[i].frame)
	}
	return p.sendUnsent(conn, some, p.encodeGone(some, v5))
}

// pickUnsent returns some of what is to be sent again, in order, and whether there is any.
func (p *pump) pickUnsent() (some []unsent, left bool) {
	p.s.Mu.Lock()
	defer p.s.Mu.Unlock()
	most := min(max(p.s.Quota(), 0), resendItems)
	mixed := p.s.restored != nil || p.s.rewinds > 0
	upto := p.s.pos
	if p.s.stuckLocked() {
		upto = math.MaxUint64
	}
	for i := range p.s.Window.Len() {
		e := p.s.Window.At(i)
		if e.OnWire || e.State == session.StateDone || e.Kind != session.Logged || e.Seq > upto {
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
	p.s.resends = left
	if mixed {
		// Exchanges that came back with the session have lower packet ids than what
		// was sent between them.
		slices.SortFunc(some, func(a, b unsent) int { return cmp.Compare(a.seq, b.seq) })
		some = some[:min(len(some), most)]
	}
	return some, left
}

// sendUnsent passes on what is to be sent again, and notices before it.
func (p *pump) sendUnsent(conn *outbox.Conn, some []unsent, notices []byte) bool {
	p.s.Mu.Lock()
	defer p.s.Mu.Unlock()
	if p.s.Conn != conn || !conn.Force(notices, nil, 0) {
		return true
	}
	p.s.yieldLocked()
	for _, u := range some {
		e := p.s.Window.Get(u.id)
		if e == nil || e.Seq != u.seq || e.State != u.state {
			continue
		}
		if u.frame == nil && u.keeps() {
			e.OnWire = true
			p.s.OnWire++
			p.s.arrivedLocked(u.id, e)
			continue
		}
		if u.frame == nil {
			p.s.Finish(u.id, e)
			continue
		}
		if !conn.Force(u.frame, nil, 0) {
			return true
		}
		if !e.Sent { // its first connection ended before its turn
			p.s.engine.stats.Deliveries.Add(1)
		}
		e.OnWire, e.Sent = true, true
		p.s.OnWire++
	}
	return true
}

// encodeUnsent renders the packet with which an exchange goes on.
func (p *pump) encodeUnsent(u *unsent, v5 bool, maxPacket uint32) error {
	if u.state == session.StateReceived {
		u.frame = packet.EncodePubrel(u.id)
		return nil
	}
	u.gone = true
	return p.s.engine.log.ReadTopic(p.s.engine.ctx, u.topic, u.seq-1, u.seq, func(rec *msglog.Record) bool {
		u.gone = false
		if !u.keeps() && p.s.isLate(rec.Expires, p.s.engine.now().UnixMilli()) {
			return false
		}
		u.frame = p.encodeAgain(rec, u.topic, u.qos, u.id, p.identifiers(u.topic), v5, maxPacket)
		return false
	})
}

// encodeGone renders a notice for each topic of which there are messages that were sent,
// were not acknowledged and can no longer be sent again.
func (p *pump) encodeGone(some []unsent, v5 bool) (frames []byte) {
	var gone []unsent
	for _, u := range some {
		if u.gone {
			gone = append(gone, u)
		}
	}
	slices.SortFunc(gone, func(a, b unsent) int { return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.seq, b.seq)) })
	now := p.s.engine.now().UnixMilli()
	for len(gone) > 0 {
		topic, n := gone[0].topic, 1
		for n < len(gone) && gone[n].topic == topic {
			n++
		}
		m := chat.GapNotice(topic, gone[0].seq, gone[n-1].seq, now)
		gone = gone[n:]
		p.payload = m.AppendEnvelope(p.payload[:0], 0)
		p.props = p.props[:0]
		if v5 {
			p.props = packet.AppendDelivered(p.props, -1, p.identifiers(topic))
		}
		frames, _ = packet.AppendPublish(frames, topic, 0, false, v5, p.props, p.payload)
	}
	return frames
}

// identifiers returns the subscription identifiers of a delivery topic.
func (p *pump) identifiers(topic string) []int {
	p.s.Mu.Lock()
	defer p.s.Mu.Unlock()
	if t := p.s.topics[topic]; t != nil {
		return t.ids
	}
	return nil
}
