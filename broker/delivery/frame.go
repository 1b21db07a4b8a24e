package delivery

import (
	"encoding/binary"
	"math"
	"time"

	"mynah/broker/msglog"
)

// MQTT 5 properties of a PUBLISH (section 3.3.2.3).
const (
	propMessageExpiry  = 0x02
	propSubscriptionID = 0x0B
)

// varintLen returns how long n is as a variable byte integer (MQTT 5, 1.5.5). Up to the
// four bytes that MQTT allows, that is what encoding/binary calls a uvarint.
func varintLen(n int) int {
	switch {
	case n < 1<<7:
		return 1
	case n < 1<<14:
		return 2
	case n < 1<<21:
		return 3
	}
	return 4
}

// maxFrameOverhead bounds what appendPublish adds to topic, properties and payload.
const maxFrameOverhead = 1 + 4 + 2 + 2 + 4

// appendPublish appends a PUBLISH (MQTT 3.1.1 and 5, 3.3) with packet id 0 and
// returns where the packet id is, -1 for QoS 0. props are the encoded MQTT 5
// properties without their length.
func appendPublish(dst []byte, topic string, qos byte, dup, v5 bool, props, payload []byte) ([]byte, int) {
	n := 2 + len(topic) + len(payload)
	if qos > 0 {
		n += 2
	}
	if v5 {
		n += varintLen(len(props)) + len(props)
	}
	head := 0x30 | qos<<1
	if dup {
		head |= 0x08
	}
	dst = append(dst, head)
	dst = binary.AppendUvarint(dst, uint64(n))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(topic))) //nolint:gosec // chat topics are short
	dst = append(dst, topic...)
	at := -1
	if qos > 0 {
		at = len(dst)
		dst = append(dst, 0, 0)
	}
	if v5 {
		dst = binary.AppendUvarint(dst, uint64(len(props)))
		dst = append(dst, props...)
	}
	return append(dst, payload...), at
}

// appendProps appends the MQTT 5 properties of a delivery.
func appendProps(dst []byte, expires, now int64, subIDs []int) []byte {
	if expires > 0 {
		left := min(max((expires-now+500)/1000, 1), math.MaxUint32)
		dst = append(dst, propMessageExpiry)
		dst = binary.BigEndian.AppendUint32(dst, uint32(left)) //nolint:gosec // bounded by the line above
	}
	for _, id := range subIDs {
		dst = append(dst, propSubscriptionID)
		dst = binary.AppendUvarint(dst, uint64(id))
	}
	return dst
}

// Bounds of a run, so that one fits any outbox.
const (
	maxRun      = 64
	maxRunBytes = 32 << 10
)

// run is some messages that follow each other in the log and go to the same topics.
// They are rendered once and encoded once for each combination of QoS and protocol
// version among the recipients; a recipient's copy differs in its packet ids only.
type run struct {
	topic  string
	sender bool // topic is the sender's own, so prev is PrevSender
	recs   []*msglog.Record
	now    int64 // milliseconds since 1970

	payloads []byte
	ends     []int // end of the i-th payload
	rendered bool
	expires  bool        // some message has a time after which nobody is to get it
	encoded  [6]encoding // by subscription QoS and version
	props    []byte
}

// encoding is a run as it goes to the subscribers of one QoS and version.
type encoding struct {
	ready   bool
	frames  []byte
	ids     []int32          // where the packet ids go, one for each frame of QoS 1 or 2
	numbers []*msglog.Record // the messages that they belong to
	longest int              // bytes of the longest frame
	qos2    bool             // some frame is QoS 2
}

func (r *run) reset(topic string, sender bool, recs []*msglog.Record, now time.Time) {
	r.topic, r.sender, r.recs, r.now = topic, sender, recs, now.UnixMilli()
	r.rendered, r.expires = false, false
	for _, rec := range recs {
		r.expires = r.expires || rec.Expires != 0
	}
	for i := range r.encoded {
		r.encoded[i].ready = false
	}
}

func (r *run) prev(rec *msglog.Record) uint64 {
	if r.sender {
		return rec.PrevSender
	}
	return rec.Prev
}

func (r *run) render() {
	r.payloads, r.ends = r.payloads[:0], r.ends[:0]
	for _, rec := range r.recs {
		r.payloads = rec.AppendEnvelope(r.payloads, r.prev(rec))
		r.ends = append(r.ends, len(r.payloads))
	}
	r.rendered = true
}

// encode returns the run for subscribers of a QoS and version.
func (r *run) encode(qos byte, v5 bool) *encoding {
	i := int(qos) * 2
	if v5 {
		i++
	}
	e := &r.encoded[i]
	if e.ready {
		return e
	}
	if !r.rendered {
		r.render()
	}
	e.frames, e.ids, e.numbers, e.longest, e.qos2 = e.frames[:0], e.ids[:0], e.numbers[:0], 0, false
	start := 0
	for i, rec := range r.recs {
		q := min(qos, rec.QoS)
		r.props = r.props[:0]
		if v5 {
			r.props = appendProps(r.props, rec.Expires, r.now, nil)
		}
		before := len(e.frames)
		var at int
		e.frames, at = appendPublish(e.frames, r.topic, q, false, v5, r.props, r.payloads[start:r.ends[i]])
		start = r.ends[i]
		e.longest = max(e.longest, len(e.frames)-before)
		if at >= 0 {
			e.ids = append(e.ids, int32(at)) //nolint:gosec // a run is bounded
			e.numbers = append(e.numbers, rec)
		}
		e.qos2 = e.qos2 || q == 2
	}
	e.ready = true
	return e
}
