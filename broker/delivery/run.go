package delivery

import (
	"time"

	"mynah/broker/msglog"
	"mynah/broker/packet"
	"mynah/chat"
)

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
	requests bool        // some message has a Response Topic
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
	r.rendered, r.expires, r.requests = false, false, false
	for _, rec := range recs {
		r.expires = r.expires || rec.Expires != 0
		r.requests = r.requests || rec.Request
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
			r.props = packet.AppendDelivered(append(r.props, rec.Props...), chat.SecondsLeft(rec.Expires, r.now), nil)
		}
		before := len(e.frames)
		var at int
		e.frames, at = packet.AppendPublish(e.frames, r.topic, q, false, v5, r.props, r.payloads[start:r.ends[i]])
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
