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

// commit follows the log, until all that this broker has proposed is settled. Committed
// entries come in one order, this broker's own and others': messages go on to delivery, and
// publishers get their acknowledgements.
func (pipe *pipeline) commit() {
	defer close(pipe.refusals.waiting)
	defer pipe.feed.Close()
	c := committer{pipe: pipe, feed: pipe.feed.C}
	for {
		select {
		case t, ok := <-pipe.batches:
			if !ok {
				return
			}
			c.settle(t, c.outcome(t))
		case entry, ok := <-c.feed:
			switch {
			case !ok:
				c.feed = nil // the log is closed
			case isOurs(entry):
				c.settleUpTo(entry)
			default:
				c.deliver(entry)
			}
		}
	}
}

// isOurs reports whether publishers wait for a committed entry.
func isOurs(c *msglog.Committed) bool {
	return c.Mine && len(c.Entry.Records) > 0 // others of ours change only what is kept
}

// committer is what belongs to the goroutine that follows the log.
type committer struct {
	pipe    *pipeline
	feed    <-chan *msglog.Committed // nil when it has ended
	stored  []*msglog.Record         // scratch
	touched []*conn                  // scratch
}

// outcome waits for what became of a batch, nil if nothing of it was proposed or that is
// never to be known. Others' entries that come before are delivered.
func (c *committer) outcome(t batch) *msglog.Committed {
	for t.entry != nil && c.feed != nil {
		switch entry, ok := <-c.feed; {
		case !ok:
			c.feed = nil
		case isOurs(entry):
			return entry // what was proposed first is committed first
		default:
			c.deliver(entry)
		}
	}
	return nil
}

// settleUpTo settles the batch of an entry that was committed, and those before it, of which
// nothing was proposed.
func (c *committer) settleUpTo(entry *msglog.Committed) {
	for t := range c.pipe.batches {
		if t.entry == entry.Entry {
			c.settle(t, entry)
			return
		}
		c.settle(t, nil)
	}
}

// deliver hands the messages of an entry to delivery.
func (c *committer) deliver(entry *msglog.Committed) {
	c.stored = entry.Stored(c.stored[:0])
	c.pipe.engine.Deliver(c.stored)
	c.pipe.metrics.messages.Add(float64(len(c.stored)))
	clear(c.stored)
}

// settle acknowledges a batch to its publishers and hands its messages to delivery. The
// committed entry is nil if nothing was proposed, or if it is not known what became of it.
func (c *committer) settle(t batch, committed *msglog.Committed) {
	pipe := c.pipe
	err := t.err
	var outcomes []msglog.Outcome
	switch {
	case committed != nil:
		err, outcomes = committed.Err, committed.Outcomes
	case t.entry != nil:
		err = errOutcomeUnknown
	}
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
			}
			n++
		}
		if p.c == nil {
			continue
		}
		if len(p.c.acks) == 0 {
			c.touched = append(c.touched, p.c)
		}
		p.c.acks = pipe.appendAck(p.c.acks, p)
	}
	if err != nil {
		pipe.appendFailed(err, n)
	}
	for i, conn := range c.touched {
		if len(conn.acks) > 0 {
			_, _ = conn.Write(conn.acks)
			if conn.acks = conn.acks[:0]; cap(conn.acks) > maxIdleAcks {
				conn.acks = nil
			}
		}
		c.touched[i] = nil
	}
	c.touched = c.touched[:0]
	if committed != nil {
		c.deliver(committed)
	}
	pipe.metrics.batches.Observe(float64(len(t.items)))
	pipe.queue.done(t.items)
	clear(t.items)
	select {
	case pipe.freeBatches <- t.items:
	default:
	}
}

// errOutcomeUnknown is what there is to say of a batch when the log has ended before it said
// what became of it.
var errOutcomeUnknown = errors.New("the message log ended before it said what became of the batch")

// appendFailed logs a batch that was not stored.
func (pipe *pipeline) appendFailed(err error, messages int) {
	if errors.Is(err, msglog.ErrFull) {
		pipe.fullDisk.Do(func() {
			pipe.logger.Error("the disk of the message log is full: new messages are refused until there is room; delivery and archiving go on",
				"refused", messages)
		})
		return
	}
	pipe.logger.Error("cannot append to the message log; the publishers are told to try again", "messages", messages, "error", err)
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
func (pipe *pipeline) appendAck(dst []byte, p *publication) []byte {
	v5 := p.c.v5.Load()
	if p.refusal != nil {
		pipe.metrics.refused(p.refusal.Code)
		switch {
		case !v5 && p.qos > 0 && retriable(p.refusal):
			pipe.engine.Signal(chat.ErrorTopic(p.c.subject()), p.refusal.Payload(p.topic, p.mid)) // while it can be had
			_ = p.c.Close()
			return dst
		case !v5 || p.qos == 0:
			pipe.refusals.enqueue(p)
		}
	}
	if p.qos == 0 {
		return dst
	}
	head := packets.Puback << 4
	if p.qos == 2 {
		head = packets.Pubrec << 4
		if p.refusal != nil && v5 { // that ends the exchange (MQTT 5, 4.3.3)
			pipe.devices.closed(p.c.session.Key, p.id)
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
