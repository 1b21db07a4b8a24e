package delivery

import (
	"fmt"
	"slices"

	"mynah/broker/msglog"
	"mynah/broker/packet"
	"mynah/broker/session"
	"mynah/chat"
)

// Signal hands a message that is not logged to the attached sessions that subscribe to
// its topic, at QoS 0, and to none that is under pressure.
func (e *Engine) Signal(topic string, payload []byte) { e.SignalWith(topic, nil, payload) }

// SignalWith is Signal with MQTT 5 properties, as in a PUBLISH (3.3.2.3), for clients that
// take them.
func (e *Engine) SignalWith(topic string, props, payload []byte) {
	if en := e.topics.get(topic); en != nil {
		e.signal(en, topic, props, payload)
	}
	if chat.ParseTopic(topic).Kind != chat.KindUserSignal {
		return
	}
	if en := e.topics.get(session.AllUserSignals); en != nil {
		e.signal(en, topic, props, payload)
	}
}

// signal hands it to the sessions of one entry.
func (e *Engine) signal(en *entry, topic string, props, payload []byte) {
	var frames [2][]byte
	en.mu.RLock()
	defer en.mu.RUnlock()
	for _, t := range en.subs {
		s := t.feed
		s.Mu.Lock()
		conn, v5, maxPacket, ids, started := s.Conn, s.V5, s.MaxPacket, t.ids, s.mode != offline
		s.Mu.Unlock()
		if conn == nil || !started {
			continue // nothing may come before the CONNACK
		}
		var frame []byte
		switch {
		case v5 && ids != nil:
			frame, _ = packet.AppendPublish(nil, topic, 0, false, true, packet.AppendDelivered(slices.Clone(props), -1, ids), payload)
		case v5:
			if frames[1] == nil {
				frames[1], _ = packet.AppendPublish(nil, topic, 0, false, true, props, payload)
			}
			frame = frames[1]
		default:
			if frames[0] == nil {
				frames[0], _ = packet.AppendPublish(nil, topic, 0, false, false, nil, payload)
			}
			frame = frames[0]
		}
		if (maxPacket == 0 || len(frame) <= int(maxPacket)) && conn.OfferSignal(frame) {
			e.stats.Signals.Add(1)
		} else {
			e.stats.Dropped.Add(1)
		}
	}
}

// tooLarge tells a client that it misses a message because of its own Maximum Packet
// Size (MQTT 5, 3.1.2.11.4), so that it can fetch it from history.
func (e *Engine) tooLarge(s *feed, rec *msglog.Record) {
	e.stats.TooLarge.Add(1)
	refusal := chat.Refuse(chat.CodeTooLarge,
		fmt.Sprintf("message %d is larger than the maximum packet size that you announced; fetch it from history", rec.Seq))
	go e.Signal(chat.ErrorTopic(s.Subject), refusal.Payload(rec.To, rec.Mid))
}
