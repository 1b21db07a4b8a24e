package delivery

import (
	"math"

	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/packet"
	"mynah/broker/session"
	"mynah/chat"
)

// encodeItems renders the items into frames, as many as make up the given bytes. What is
// not for this client (expired, its own with No Local, too large) becomes an empty frame.
func (p *pump) encodeItems(v5 bool, maxPacket uint32, bytes int) {
	e := p.s.engine
	if p.out == nil {
		p.out = e.limits.Buffer(0)
	}
	p.out.B = p.out.B[:0]
	p.ids, p.ends, p.idsAt = p.ids[:0], p.ends[:0], p.idsAt[:0]
	p.restored = p.restored[:0]
	now := e.now().UnixMilli()
	for i, it := range p.items {
		o := p.optionsOf(it.sub)
		if _, had := p.s.restored[it.rec.Seq]; had {
			p.encodeRestored(i, o, v5, maxPacket)
		} else if !p.skips(it, o, now, p.promptSince) {
			topic, prev := it.topic()
			p.payload = it.rec.AppendEnvelope(p.payload[:0], prev)
			p.props = p.props[:0]
			if v5 {
				p.props = packet.AppendDelivered(append(p.props, it.rec.Props...), chat.SecondsLeft(it.rec.Expires, now), o.ids)
			}
			qos := min(it.rec.QoS, o.qos)
			p.out = e.limits.Grow(p.out, len(topic)+len(p.props)+len(p.payload)+packet.MaxPublishOverhead)
			before := len(p.out.B)
			frame, at := packet.AppendPublish(p.out.B, topic, qos, false, v5, p.props, p.payload)
			switch {
			case maxPacket > 0 && len(frame)-before > int(maxPacket):
				e.tooLarge(p.s, it.rec)
			default:
				p.out.B = frame
				if at >= 0 {
					p.ids = append(p.ids, int32(at)) //nolint:gosec // a round is bounded
				}
			}
		}
		p.ends = append(p.ends, len(p.out.B))
		p.idsAt = append(p.idsAt, len(p.ids))
		if len(p.out.B) >= bytes {
			break // enough for one round
		}
	}
}

// encodeRestored encodes the next step for a QoS 2 message that was on its way when the
// broker stopped: the PUBLISH under the packet id that it has, PUBREL, or nothing.
func (p *pump) encodeRestored(i int, o options, v5 bool, maxPacket uint32) {
	it := p.items[i]
	id := p.s.restored[it.rec.Seq]
	due, received := p.restoredDue(id, it.rec.Seq)
	if !due {
		return
	}
	frame := packet.EncodePubrel(id)
	if !received {
		topic, _ := it.topic()
		if frame = p.encodeAgain(it.rec, topic, 2, id, o.ids, v5, maxPacket); frame == nil {
			p.dropRestored(id, it.rec.Seq)
			return
		}
	}
	p.out = p.s.engine.limits.Grow(p.out, len(frame))
	p.out.B = append(p.out.B, frame...)
	p.restored = append(p.restored, restoredItem{i, id})
}

// restoredDue reports whether an exchange of before the broker stopped is to go on, and
// whether the client has the message.
func (p *pump) restoredDue(id uint16, seq uint64) (due, received bool) {
	p.s.Mu.Lock()
	defer p.s.Mu.Unlock()
	e := p.s.Window.Get(id)
	due = e != nil && e.Seq == seq && !e.OnWire && e.State != session.StateReceiving
	return due, due && e.State == session.StateReceived
}

// dropRestored has the client forget an exchange whose message is too large for it now.
func (p *pump) dropRestored(id uint16, seq uint64) {
	p.s.Mu.Lock()
	defer p.s.Mu.Unlock()
	if e := p.s.Window.Get(id); e != nil && e.Seq == seq && e.State == session.StateSent {
		p.s.arrivedLocked(id, e)
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
func (p *pump) optionsOf(t *topicSub) options {
	p.s.Mu.Lock()
	defer p.s.Mu.Unlock()
	return options{t.qos, t.noLocal, t.ids}
}

// skips reports whether a message is not for the session. A request (MQTT 5, 4.10) is not
// for the device that has sent it, which would take it for the response if it listens on a
// topic where it is itself.
func (p *pump) skips(it item, o options, now int64, promptFrom uint64) bool {
	rec := it.rec
	if rec.Expires == chat.AtOnce && promptFrom != 0 && rec.Seq >= promptFrom {
		now = math.MinInt64
	}
	return p.s.isLate(rec.Expires, now) || (o.noLocal || rec.Request) && rec.From == p.s.Subject && rec.Client == p.s.ClientID
}

// encodeAgain returns a PUBLISH that the client may have had, with DUP and under the packet
// id that it had, or nil if it is too large for the client now. It may have expired: at QoS 2
// that is no reason to give up [MQTT-4.3.3-7].
func (p *pump) encodeAgain(
	rec *msglog.Record, topic string, qos byte, id uint16, subIDs []int, v5 bool, maxPacket uint32,
) []byte {
	prev := rec.Prev
	if topic != rec.To {
		prev = rec.PrevSender
	}
	p.payload = rec.AppendEnvelope(p.payload[:0], prev)
	p.props = p.props[:0]
	if v5 {
		p.props = packet.AppendDelivered(append(p.props, rec.Props...), chat.SecondsLeft(rec.Expires, p.s.engine.now().UnixMilli()), subIDs)
	}
	frame, at := packet.AppendPublish(nil, topic, qos, true, v5, p.props, p.payload)
	if maxPacket > 0 && len(frame) > int(maxPacket) {
		p.s.engine.tooLarge(p.s, rec)
		return nil
	}
	outbox.FillPacketIDs(frame, []int32{int32(at)}, id) //nolint:gosec // an offset within a packet
	return frame
}
