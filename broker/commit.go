package broker

import (
	"encoding/binary"
	"errors"
	"strconv"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/broker/msglog"
	"mynah/broker/packet"
	"mynah/chat"
)

// maxIdleAcks is how many bytes for acknowledgements a connection keeps between batches.
const maxIdleAcks = 512

// commit waits for each batch to be on disk, acknowledges it to the publishers and
// hands it to delivery.
func (b *Broker) commit() {
	defer close(b.explanations)
	var touched []*conn
	for t := range b.batches {
		err := t.err
		var outcomes []msglog.Outcome
		if err == nil && t.pending != nil {
			outcomes = t.pending.Outcomes()
			err = t.pending.Wait()
		}
		if err != nil {
			b.appendFailed(err, len(t.recs))
		}
		stored := t.recs[:0]
		n := 0
		for i := range t.items {
			p := &t.items[i]
			if p.rec != nil && p.refusal == nil {
				switch {
				case err != nil:
					p.refusal = refusalOf(err)
				case outcomes[n] == msglog.Conflict:
					p.refusal = chat.Refuse(chat.CodeConflict, "you used this mid before with another content; choose a new mid")
				case outcomes[n] == msglog.NoRoom:
					p.refusal = refusalOf(msglog.ErrFull)
				case outcomes[n] == msglog.Unknown:
					p.refusal = p.unlessStored
				case outcomes[n] == msglog.Stored:
					stored = append(stored, p.rec)
				}
				n++
			}
			if p.c == nil {
				continue
			}
			if len(p.c.acks) == 0 {
				touched = append(touched, p.c)
			}
			p.c.acks = b.appendAck(p.c.acks, p)
		}
		for i, c := range touched {
			if len(c.acks) > 0 {
				_, _ = c.Write(c.acks)
				if c.acks = c.acks[:0]; cap(c.acks) > maxIdleAcks {
					c.acks = nil
				}
			}
			touched[i] = nil
		}
		touched = touched[:0]
		b.engine.Deliver(stored)
		b.metrics.committed(len(stored), len(t.items))
		b.queue.done(t.items)
		clear(t.items)
		select {
		case b.spares <- t.items:
		default:
		}
	}
}

// appendFailed logs a batch that was not stored.
func (b *Broker) appendFailed(err error, messages int) {
	if errors.Is(err, msglog.ErrFull) {
		b.full.Do(func() {
			b.logger.Error("the disk of the message log is full: new messages are refused until there is room; delivery and archiving go on",
				"refused", messages)
		})
		return
	}
	b.logger.Error("cannot append to the message log; the publishers are told to try again", "messages", messages, "error", err)
}

// refusalOf returns what publishers are told of a batch that was not stored.
func refusalOf(err error) *chat.Error {
	if errors.Is(err, msglog.ErrFull) {
		return chat.Refuse(chat.CodeLogFull, "the server has no room for new messages at the moment; try again later")
	}
	return chat.Refuse(chat.CodeUnavailable, "the server could not store the message; try again")
}

// reasons maps refusals to the reason codes that PUBACK and PUBREC may carry (MQTT 5,
// 3.4.2.1 and 3.5.2.1), and CONNACK for a will (3.2.2.2).
var reasons = map[chat.Code]packets.Code{
	chat.CodeBadMessage:  packets.ErrPayloadFormatInvalid,
	chat.CodeTooLarge:    packets.ErrQuotaExceeded,
	chat.CodeBadTopic:    packets.ErrTopicNameInvalid,
	chat.CodeNotAllowed:  packets.ErrNotAuthorized,
	chat.CodeNotMember:   packets.ErrNotAuthorized,
	chat.CodeMuted:       packets.ErrNotAuthorized,
	chat.CodeConflict:    packets.ErrImplementationSpecificError,
	chat.CodeRateLimited: packets.ErrQuotaExceeded,
	chat.CodeLogFull:     packets.ErrQuotaExceeded,
	chat.CodeUnavailable: packets.ErrUnspecifiedError,
}

// reasonOf returns the reason code of a refusal.
func reasonOf(refusal *chat.Error) packets.Code {
	if reason, ok := reasons[refusal.Code]; ok {
		return reason
	}
	return packets.ErrUnspecifiedError
}

// retriable reports whether a 3.1.1 publisher, whose protocol has no negative
// acknowledgement, must be disconnected instead of being told that all is well: the
// message itself is good and it is to try again.
func retriable(refusal *chat.Error) bool {
	switch refusal.Code {
	case chat.CodeLogFull, chat.CodeUnavailable, chat.CodeRateLimited:
		return true
	}
	return false
}

// appendAck appends the acknowledgement of a publication, and explains a refusal on the
// sender's error topic where the protocol has no place for it.
func (b *Broker) appendAck(dst []byte, p *publication) []byte {
	v5 := p.c.v5.Load()
	if p.refusal != nil {
		b.metrics.refused(p.refusal.Code)
		switch {
		case !v5 && p.qos > 0 && retriable(p.refusal):
			b.engine.Signal(chat.ErrorTopic(p.c.subject()), p.refusal.Payload(p.topic, p.mid)) // while it can be had
			_ = p.c.Close()
			return dst
		case !v5 || p.qos == 0:
			b.explain(p)
		}
	}
	if p.qos == 0 {
		return dst
	}
	head := packets.Puback << 4
	if p.qos == 2 {
		head = packets.Pubrec << 4
		if p.refusal != nil && v5 { // that ends the exchange (MQTT 5, 4.3.3)
			b.devices.closed(p.c.session.Key, p.id)
		}
	}
	dst = append(dst, head)
	if !v5 {
		return append(dst, 2, byte(p.id>>8), byte(p.id))
	}
	var props [128]byte
	body := props[:0]
	reason := packets.CodeSuccess
	switch {
	case p.refusal != nil:
		reason = reasonOf(p.refusal)
		if !p.c.quiet {
			body = appendRefusal(body, p.c, p.refusal)
		}
	case p.nobody:
		reason = packets.CodeNoMatchingSubscribers
	case p.rec != nil && !p.c.quiet:
		body = appendString(append(body, packet.User), "seq")
		var digits [20]byte
		body = appendString(body, string(strconv.AppendUint(digits[:0], p.rec.Seq, 10)))
	}
	if !p.c.takes(len(body)) {
		body = nil // [MQTT-3.4.2-2], [MQTT-3.4.2-3]
	}
	remaining := 2 + 1 + varintLen(len(body)) + len(body)
	// A variable byte integer of MQTT is, within its four bytes, Go's uvarint.
	dst = binary.AppendUvarint(dst, uint64(remaining))
	dst = append(dst, byte(p.id>>8), byte(p.id), reason.Code)
	dst = binary.AppendUvarint(dst, uint64(len(body)))
	return append(dst, body...)
}

// takes reports whether a client takes an acknowledgement with so many bytes of properties
// (MQTT 5, 3.1.2.11.4).
func (c *conn) takes(properties int) bool {
	remaining := 2 + 1 + varintLen(properties) + properties
	return c.maxPacket <= 0 || 1+varintLen(remaining)+remaining <= c.maxPacket
}

// appendRefusal appends the properties that explain a refusal, as many as the client takes:
// the reason string for people, which begins with the code, goes before the user property
// code, for programs.
func appendRefusal(dst []byte, c *conn, refusal *chat.Error) []byte {
	before := len(dst)
	dst = appendString(append(dst, packet.ReasonString), refusal.Error())
	if !c.takes(len(dst) - before) {
		dst = dst[:before]
	}
	reason := len(dst)
	dst = appendString(appendString(append(dst, packet.User), "code"), string(refusal.Code))
	if !c.takes(len(dst) - before) {
		dst = dst[:reason]
	}
	return dst
}

// appendString appends a UTF-8 encoded string (MQTT 5, 1.5.4).
func appendString(dst []byte, s string) []byte {
	s = s[:min(len(s), 65535)]
	return append(append(dst, byte(len(s)>>8), byte(len(s))), s...)
}

// varintLen returns how long n is as a variable byte integer, for what an
// acknowledgement may hold.
func varintLen(n int) int {
	if n < 0x80 {
		return 1
	}
	return 2
}
