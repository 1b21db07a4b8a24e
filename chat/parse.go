package chat

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"unicode/utf8"
)

// The longest type and mid, in characters.
const (
	MaxTypeLen = 32
	MaxMidLen  = 64
)

// MaxDepth is the most that Limits.Depth can be set to. PostgreSQL and JSON
// libraries have limits of their own, far above it.
const MaxDepth = 1000

// maxInt is the largest integer that JavaScript reads exactly.
const maxInt = 1<<53 - 1

// maxHead is the most that the broker's fields can add to a tail:
// seq, prev and ts with up to 20 digits, an id and the longest topic.
const maxHead = len(`{"seq":,"prev":,"from":"","to":"","ts":,`) + 3*20 +
	MaxIDLen + len(groupPrefix) + MaxIDLen + len(signalSuffix)

// Refusals that Parse returns again and again. They are not changed.
var (
	errNUL       = Refuse(CodeBadMessage, "the message contains U+0000, which cannot be stored")
	errSurrogate = Refuse(CodeBadMessage, "a string of the message has half of a surrogate pair, which cannot be stored")
	errNumber    = Refuse(CodeBadMessage, "a number of the message is out of the range of a double")
	errDepth     = Refuse(CodeBadMessage, "the message is nested too deeply")
	errTwice     = Refuse(CodeBadMessage, "a field of the message is there twice")
	errAlike     = Refuse(CodeBadMessage, "a field differs from seq, prev, from, to, ts or type by upper and lower case only; receivers could take it for that one")
	errType      = Refuse(CodeBadMessage, "type must be 1 to 32 characters of a-z 0-9 . _ -")
	errTypeKind  = Refuse(CodeBadMessage, "type must be a string")
	errNotice    = Refuse(CodeBadMessage, "types that begin with notice are sent by the system only")
	errMid       = Refuse(CodeBadMessage, "mid must be a string of 1 to 64 characters")
	errReplyTo   = Refuse(CodeBadMessage, "reply_to must be the seq of a message, a positive integer")
	errMentions  = Refuse(CodeBadMessage, `mentions must be an array of ids, or ["*"]`)
	errExpires   = Refuse(CodeBadMessage, "expires must be a positive integer, milliseconds since 1970")
	errExt       = Refuse(CodeBadMessage, "ext must be an object")
)

func (l Limits) withDefaults() Limits {
	if l.Payload <= 0 {
		l.Payload = 64 << 10
	}
	if l.Depth <= 0 {
		l.Depth = 32
	}
	if l.Rendered <= 0 {
		l.Rendered = 100 << 10
	}
	l.Depth = min(l.Depth, MaxDepth)
	return l
}

// Parse reads what a client published to a chat topic (PROTOCOL.md, Messages).
// system says that the publisher may use the types notice and notice.….
//
// A payload is, by the first of these that fits:
//
//   - not UTF-8: a message of type binary, its body in base64 (RFC 4648 section 4);
//   - a JSON object with a string type or a body: a message. Names count with
//     their escapes resolved and with regard to case. seq, prev, from, to and ts
//     are left out; type, text if there is none, comes first; every other field
//     follows in its order, as it was written but for white space between tokens;
//   - any other JSON object: a message of type data with the object as its body.
//     What the object's fields are called has no meaning then;
//   - anything else, malformed JSON and the empty payload too: a message of type
//     text.
//
// The error is an *Error. With CodeTooLarge the payload, or the message rendered
// with the longest possible ids, is over the limit. With CodeBadMessage
//
//   - the text, or a string anywhere in the object, contains U+0000;
//   - a string anywhere in the object has an unpaired surrogate;
//   - a number anywhere in the object overflows a double, vanishes in it without
//     being 0, or has more than 16,383 decimals;
//   - the object is nested deeper than Limits.Depth, itself counted;
//   - a message has a field twice, or one that differs from type or from the
//     broker's fields by its case only, or type, mid, reply_to, mentions, expires or
//     ext of the wrong kind (null is a kind of its own), or a type that is not
//     the sender's to use.
//
// So what Parse accepts is accepted by PostgreSQL's jsonb and by any JSON parser,
// and they agree on what it says.
//
// The Draft has no part of payload. With an error it is empty but for Mid, which
// is there if the payload has one, so that the refusal can name it.
func (l Limits) Parse(payload []byte, system bool) (Draft, error) {
	l = l.withDefaults()
	if len(payload) > l.Payload {
		return Draft{}, tooLarge("the payload", l.Payload)
	}
	if !utf8.Valid(payload) {
		return l.binary(payload)
	}
	o := object{drop: written}
	s := scanner{b: payload, depth: l.Depth}
	if !s.document(&o) {
		return l.text(payload)
	}
	if o.typed || o.seen.has(fieldBody) {
		return l.message(&s, &o, system)
	}
	return l.data(&s, &o)
}

func tooLarge(what string, limit int) *Error {
	return Refuse(CodeTooLarge, fmt.Sprintf("%s is over the limit of %d bytes", what, limit))
}

// room reports by an error that a tail of the given length is too long.
func (l Limits) room(tail int) error {
	if tail > l.Rendered-maxHead {
		return tooLarge("the rendered message", l.Rendered)
	}
	return nil
}

func (l Limits) binary(payload []byte) (Draft, error) {
	const head, end = `"type":"binary","body":"`, `"}`
	n := len(head) + base64.StdEncoding.EncodedLen(len(payload)) + len(end)
	if err := l.room(n); err != nil {
		return Draft{}, err
	}
	tail := append(make([]byte, 0, n), head...)
	tail = base64.StdEncoding.AppendEncode(tail, payload)
	return Draft{Type: "binary", Tail: append(tail, end...)}, nil
}

func (l Limits) text(payload []byte) (Draft, error) {
	if bytes.IndexByte(payload, 0) >= 0 {
		return Draft{}, errNUL
	}
	const head, end = `"type":"text","body":"`, `"}`
	n := len(head) + escapedLen(payload) + len(end)
	if err := l.room(n); err != nil {
		return Draft{}, err
	}
	tail := append(make([]byte, 0, n), head...)
	tail = appendEscaped(tail, payload)
	return Draft{Type: "text", Tail: append(tail, end...)}, nil
}

func (l Limits) data(s *scanner, o *object) (Draft, error) {
	if s.bad != nil {
		return Draft{}, s.bad
	}
	const head = `"type":"data","body":`
	n := len(head) + o.all.to - o.all.from + 1
	tail := append(make([]byte, 0, n), head...)
	tail = s.appendJSON(tail, o.all)
	tail = append(tail, '}')
	if err := l.room(len(tail)); err != nil {
		return Draft{}, err
	}
	return Draft{Type: "data", Tail: tail}, nil
}

// appendJSON appends a part of the scanned text without its white space.
func (s *scanner) appendJSON(dst []byte, v span) []byte {
	if s.spaces {
		return appendCompact(dst, v.of(s.b))
	}
	return append(dst, v.of(s.b)...)
}

func (l Limits) message(s *scanner, o *object, system bool) (Draft, error) {
	var d Draft
	if v := o.vals[fieldMid]; o.seen.has(fieldMid) {
		mid, ok := s.text(v)
		if !ok || len(mid) == 0 || len(mid) > MaxMidLen && utf8.RuneCount(mid) > MaxMidLen {
			s.fail(errMid)
		} else {
			d.Mid = string(mid)
		}
	}
	d.Type = "text"
	if v := o.vals[fieldType]; o.seen.has(fieldType) {
		name, ok := s.text(v)
		switch {
		case !ok:
			s.fail(errTypeKind)
		case !validType(name):
			s.fail(errType)
		case !system && isNotice(name):
			s.fail(errNotice)
		default:
			d.Type = typeName(name)
		}
	}
	if o.repeated(s.b) {
		s.fail(errTwice)
	}
	if o.alike {
		s.fail(errAlike)
	}
	s.checkOptional(o, &d)
	if s.bad != nil {
		return Draft{Mid: d.Mid}, s.bad
	}
	const head = `"type":"`
	n := len(head) + len(d.Type) + len(`"`) + o.size() + len(`}`)
	tail := append(make([]byte, 0, n), head...)
	tail = append(tail, d.Type...)
	tail = append(tail, '"')
	for _, r := range o.runs[:o.nruns] {
		tail = s.appendJSON(append(tail, ','), r)
	}
	tail = append(tail, '}')
	if err := l.room(len(tail)); err != nil {
		return Draft{Mid: d.Mid}, err
	}
	d.Tail = tail
	return d, nil
}

// checkOptional checks the kinds of the optional fields and fills in Expires.
func (s *scanner) checkOptional(o *object, d *Draft) {
	if o.seen.has(fieldReplyTo) {
		if _, ok := s.positive(o.vals[fieldReplyTo]); !ok {
			s.fail(errReplyTo)
		}
	}
	if o.seen.has(fieldMentions) && !s.mentions(o.vals[fieldMentions]) {
		s.fail(errMentions)
	}
	if o.seen.has(fieldExpires) {
		ms, ok := s.positive(o.vals[fieldExpires])
		if !ok {
			s.fail(errExpires)
		}
		d.Expires = ms
	}
	if o.seen.has(fieldExt) && s.b[o.vals[fieldExt].from] != '{' {
		s.fail(errExt)
	}
}

// text returns what the string v stands for. The bytes may be the payload's.
func (s *scanner) text(v span) ([]byte, bool) {
	b := v.of(s.b)
	if b[0] != '"' {
		return nil, false
	}
	b = b[1 : len(b)-1]
	if bytes.IndexByte(b, '\\') >= 0 {
		b = unescape(make([]byte, 0, len(b)), b)
	}
	return b, true
}

// positive returns the value of v if it is an integer from 1 to 2^53-1, written
// without fraction and exponent.
func (s *scanner) positive(v span) (int64, bool) {
	n, ok := natural(v.of(s.b))
	if !ok || n == 0 || n > maxInt {
		return 0, false
	}
	return int64(n), true
}

// natural reads decimal digits; 19 of them fit.
func natural(b []byte) (n uint64, ok bool) {
	if len(b) == 0 || len(b) > 19 {
		return 0, false
	}
	for _, c := range b {
		if c -= '0'; c > 9 {
			return 0, false
		}
		n = n*10 + uint64(c)
	}
	return n, true
}

// mentions reports whether v is an array of ids, or of "*" alone.
func (s *scanner) mentions(v span) bool {
	if s.b[v.from] != '[' {
		return false
	}
	in := scanner{b: s.b, i: v.from + 1}
	all := false
	for n := 0; ; {
		switch in.space() {
		case '"':
			from := in.i
			if _, ok := in.str(); !ok {
				return false
			}
			id, _ := s.text(span{from, in.i})
			n++
			all = all || string(id) == "*"
			if all && n > 1 || !all && !ValidID(string(id)) {
				return false
			}
		case ',':
			in.i++
		case ']':
			return true
		default:
			return false
		}
	}
}

func validType(b []byte) bool {
	if len(b) == 0 || len(b) > MaxTypeLen {
		return false
	}
	for _, c := range b {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

func isNotice(b []byte) bool {
	const notice = "notice"
	return len(b) >= len(notice) && string(b[:len(notice)]) == notice &&
		(len(b) == len(notice) || b[len(notice)] == '.')
}

// typeName returns b as a string, without a new one for the types that
// PROTOCOL.md names.
func typeName(b []byte) string {
	switch string(b) {
	case "text":
		return "text"
	case "image":
		return "image"
	case "voice":
		return "voice"
	case "video":
		return "video"
	case "file":
		return "file"
	case "location":
		return "location"
	case "card":
		return "card"
	case "data":
		return "data"
	case "binary":
		return "binary"
	case "read":
		return "read"
	case "recall":
		return "recall"
	case "edit":
		return "edit"
	case "reaction":
		return "reaction"
	}
	return string(b)
}
