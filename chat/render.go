package chat

import (
	"strconv"
)

// AppendEnvelope appends the message as subscribers receive it: one JSON object
// of seq, prev, from, to and ts, in this order, and the tail. prev is the seq of
// the message before it on the topic that it is delivered on, 0 for none.
func (m *Message) AppendEnvelope(dst []byte, prev uint64) []byte {
	dst = append(dst, `{"seq":`...)
	dst = strconv.AppendUint(dst, m.Seq, 10)
	dst = append(dst, `,"prev":`...)
	dst = strconv.AppendUint(dst, prev, 10)
	return m.appendRest(dst)
}

func (m *Message) appendRest(dst []byte) []byte {
	dst = append(dst, `,"from":`...)
	dst = appendName(dst, m.From)
	dst = append(dst, `,"to":`...)
	dst = appendName(dst, m.To)
	dst = append(dst, `,"ts":`...)
	dst = strconv.AppendInt(dst, m.TS, 10)
	dst = append(dst, ',')
	return append(dst, m.Tail...)
}

// appendName appends an id or a topic as a JSON string. Both need no escape; that
// of anything else is the last guard against a from that ends early.
func appendName(dst []byte, s string) []byte {
	for i := range len(s) {
		if !idByte[s[i]] && s[i] != '/' {
			return appendQuoted(dst, []byte(s))
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// TypeGap is the type of the notice that tells a session that messages which it
// has not seen are no longer in the log.
const TypeGap = "notice.gap"

// GapNotice returns the notice that the messages from first to last (seq) were
// trimmed from the log before they could be delivered on the topic to; ts is now,
// in milliseconds since 1970. It has no place in the log itself: its seq is 0, it
// is rendered with prev 0 and from nobody.
//
//	{"seq":0,"prev":0,"from":"","to":"group/42","ts":1764000000123,
//	 "type":"notice.gap","body":{"from":1764000000000042,"to":1764000000000099}}
func GapNotice(to string, first, last uint64, ts int64) Message {
	tail := []byte(`"type":"` + TypeGap + `","body":{"from":`)
	tail = strconv.AppendUint(tail, first, 10)
	tail = append(tail, `,"to":`...)
	tail = strconv.AppendUint(tail, last, 10)
	tail = append(tail, "}}"...)
	return Message{To: to, TS: ts, Type: TypeGap, Tail: tail}
}
