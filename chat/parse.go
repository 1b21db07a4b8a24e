package chat

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The longest type and mid, in characters.
const (
	MaxTypeLen = 32
	MaxMidLen  = 64
)

// MaxKeyLen is the longest key of a reaction, in bytes: more than any emoji has.
const MaxKeyLen = 64

// MaxDepth is the most that Limits.Depth can be set to. PostgreSQL and JSON
// libraries have limits of their own, far above it.
const MaxDepth = 1000

// The defaults of Limits.
const (
	DefaultPayload  = 64 << 10
	DefaultDepth    = 32
	DefaultRendered = 100 << 10
)

// maxInt is the largest integer that JavaScript reads exactly.
const maxInt = 1<<53 - 1

// maxHead is the most that the broker's fields can add to a tail:
// seq, prev and ts with up to 20 digits, an id and the longest topic.
const maxHead = len(`{"seq":,"prev":,"from":"","to":"","ts":,`) + 3*20 +
	MaxIDLen + len(groupPrefix) + MaxIDLen + len(signalSuffix)

// Refusals that Parse returns again and again. They are not changed.
var (
	errNUL       = Refuse(CodeBadMessage, "the message contains U+0000, which cannot be stored; leave it out")
	errSurrogate = Refuse(CodeBadMessage, "a string of the message has half of a surrogate pair, which cannot be stored; write both halves or U+FFFD")
	errNumber    = Refuse(CodeBadMessage, "a number of the message is out of the range of a double; write it as a string")
	errTwice     = Refuse(CodeBadMessage, "a field of the message is there twice; leave one out")
	errAlike     = Refuse(CodeBadMessage, "a field differs from seq, prev, from, to, ts or type by upper and lower case only, and receivers could take it for that one; choose another name")
	errType      = Refuse(CodeBadMessage, "type must be 1 to 32 characters of a-z 0-9 . _ -")
	errTypeKind  = Refuse(CodeBadMessage, "type must be a string")
	errNotice    = Refuse(CodeBadMessage, "types that begin with notice are sent by the system only; an application's own begin with x-")
	errMid       = Refuse(CodeBadMessage, "mid must be a string of 1 to 64 characters")
	errReplyTo   = Refuse(CodeBadMessage, "reply_to must be the seq of a message, a positive integer")
	errMentions  = Refuse(CodeBadMessage, `mentions must be an array of ids, or ["*"]`)
	errExpires   = Refuse(CodeBadMessage, "expires must be a positive integer, milliseconds since 1970")
	errExt       = Refuse(CodeBadMessage, "ext must be an object")
	errUpto      = missing(TypeRead, "upto, the seq of the last message that was read, a positive integer")
	errEdit      = missing(TypeEdit, "body, the new content")
	errKey       = missing(TypeReaction, "key, 1 to 64 bytes of visible text such as an emoji")
	errRemove    = Refuse(CodeBadMessage, "remove must be true or false")
	errEmpty     = Refuse(CodeBadMessage, `the message is empty; an empty text is {"body":""}`)
)

// errOf is by the type that needs the field.
var errOf = func() map[string]*Error {
	all := map[string]*Error{}
	for _, typ := range []string{TypeRecall, TypeEdit, TypeReaction, TypePin} {
		all[typ] = missing(typ, "of, the seq of the message that it is about, a positive integer")
	}
	return all
}()

func missing(typ, field string) *Error {
	return Refuse(CodeBadMessage, "a message of type "+typ+" needs "+field)
}

func (l Limits) withDefaults() Limits {
	if l.Payload <= 0 {
		l.Payload = DefaultPayload
	}
	if l.Depth <= 0 {
		l.Depth = DefaultDepth
	}
	if l.Rendered <= 0 {
		l.Rendered = DefaultRendered
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
//   - any other JSON object, an array, a number, true, false or null: a message of
//     type data with that as its body. What the object's fields are called has no
//     meaning then;
//   - anything else, also malformed JSON, a JSON string and a lone number that no
//     double holds: a message of type text.
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
//     the sender's to use;
//   - a message of a type that changes something lacks a field of its type, or has it
//     of the wrong kind;
//   - the payload is empty.
//
// Numbers count against the rendered limit by what jsonb makes of them, which knows no
// exponents: 1e308 has 309 digits there.
//
// So what Parse accepts is accepted by PostgreSQL's jsonb and by any JSON parser,
// and they agree on what it says.
//
// The Draft has no part of payload. With an error it is empty but for Mid, which
// is there if the payload has one, so that the refusal can name it.
func (l Limits) Parse(payload []byte, system bool) (Draft, error) {
	return l.ParseWith(payload, system, nil)
}

// ParseWith is Parse for a payload that came with properties of MQTT: mqtt is a JSON
// object without white space that becomes the message's ext.mqtt, in place of what the
// payload has there; nil leaves that as it is.
func (l Limits) ParseWith(payload []byte, system bool, mqtt []byte) (Draft, error) {
	l = l.withDefaults()
	switch {
	case len(payload) > l.Payload:
		return Draft{}, tooLarge("the payload", l.Payload)
	case len(payload) == 0:
		return Draft{}, errEmpty
	case !utf8.Valid(payload):
		return l.binary(payload, mqtt)
	}
	s := scanner{b: payload, depth: l.Depth}
	switch c := s.space(); {
	case c == '{':
		o := object{drop: written}
		if mqtt != nil {
			o.drop |= 1 << fieldExt
		}
		switch ok := s.document(&o); {
		case ok && (o.typed || o.seen.has(fieldBody)):
			return l.message(&s, &o, system, mqtt)
		case ok:
			return l.data(&s, o.all, mqtt)
		}
	case beginsOther[c]:
		if v, ok := s.other(); ok && (s.bad == nil || c == '[') {
			return l.data(&s, v, mqtt)
		}
	}
	return l.text(payload, mqtt)
}

// beginsOther says which bytes a JSON value begins with that is no object and no string.
var beginsOther = [256]bool{
	'[': true, 't': true, 'f': true, 'n': true, '-': true,
	'0': true, '1': true, '2': true, '3': true, '4': true, '5': true, '6': true, '7': true, '8': true, '9': true,
}

func tooLarge(what string, limit int) *Error {
	return Refuse(CodeTooLarge, fmt.Sprintf("%s is over the limit of %d bytes; send what is large as a file, and its address in the message", what, limit))
}

func tooDeep(limit int) *Error {
	return Refuse(CodeBadMessage, fmt.Sprintf("the message is nested too deeply; it may have %d arrays and objects inside each other", limit))
}

// room reports by an error that a tail of the given length is too long.
func (l Limits) room(tail int) error {
	if tail > l.Rendered-maxHead {
		return tooLarge("the rendered message", l.Rendered)
	}
	return nil
}

// extLen returns how long the field ext with nothing but mqtt is.
func extLen(mqtt []byte) int {
	if mqtt == nil {
		return 0
	}
	return len(`,"ext":{"mqtt":}`) + len(mqtt)
}

// finish appends ext.mqtt, unless that is nil, and the closing brace to a tail.
func finish(tail, mqtt []byte) []byte {
	if mqtt != nil {
		tail = appendMQTT(tail, mqtt)
	}
	return append(tail, '}')
}

// appendMQTT appends the field ext with nothing but mqtt.
func appendMQTT(tail, mqtt []byte) []byte {
	tail = append(tail, `,"ext":{"mqtt":`...)
	return append(append(tail, mqtt...), '}')
}

func (l Limits) binary(payload, mqtt []byte) (Draft, error) {
	const head = `"type":"binary","body":"`
	n := len(head) + base64.StdEncoding.EncodedLen(len(payload)) + len(`"}`) + extLen(mqtt)
	if err := l.room(n); err != nil {
		return Draft{}, err
	}
	tail := append(make([]byte, 0, n), head...)
	tail = append(base64.StdEncoding.AppendEncode(tail, payload), '"')
	return Draft{Type: "binary", Tail: finish(tail, mqtt)}, nil
}

func (l Limits) text(payload, mqtt []byte) (Draft, error) {
	if bytes.IndexByte(payload, 0) >= 0 {
		return Draft{}, errNUL
	}
	const head = `"type":"text","body":"`
	n := len(head) + escapedLen(payload) + len(`"}`) + extLen(mqtt)
	if err := l.room(n); err != nil {
		return Draft{}, err
	}
	tail := append(make([]byte, 0, n), head...)
	tail = append(appendEscaped(tail, payload), '"')
	return Draft{Type: "text", Tail: finish(tail, mqtt)}, nil
}

// data makes the value v a message's body.
func (l Limits) data(s *scanner, v span, mqtt []byte) (Draft, error) {
	if s.bad != nil {
		return Draft{}, s.bad
	}
	const head = `"type":"data","body":`
	n := len(head) + v.to - v.from + len(`}`) + extLen(mqtt)
	tail := append(make([]byte, 0, n), head...)
	tail = finish(s.appendJSON(tail, v), mqtt)
	if err := l.room(len(tail) + s.grown); err != nil {
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

func (l Limits) message(s *scanner, o *object, system bool, mqtt []byte) (Draft, error) {
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
		case !system && len(name) >= len(notice) && IsNotice(string(name)):
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
	if ChangesSomething(d.Type) {
		s.checkChange(o, &d)
	}
	if s.bad != nil {
		return Draft{Mid: d.Mid}, s.bad
	}
	const head = `"type":"`
	n := len(head) + len(d.Type) + len(`"`) + o.size() + len(`}`)
	if mqtt != nil {
		n += extLen(mqtt)
		if v := o.vals[fieldExt]; o.seen.has(fieldExt) {
			n += v.to - v.from
		}
	}
	tail := append(make([]byte, 0, n), head...)
	tail = append(tail, d.Type...)
	tail = append(tail, '"')
	for _, r := range o.runs[:o.nruns] {
		tail = s.appendJSON(append(tail, ','), r)
	}
	if mqtt != nil {
		tail = s.appendExt(tail, o, mqtt)
	}
	tail = append(tail, '}')
	if err := l.room(len(tail) + s.grown); err != nil {
		return Draft{Mid: d.Mid}, err
	}
	d.Tail = tail
	if d.Mid != "" {
		var ok bool
		if d.Digest, ok = digestOf(s, o, d.Type); !ok || mqtt != nil {
			d.Digest = digest(tail)
		}
	}
	return d, nil
}

// appendExt appends the field ext with mqtt in it, and what else the payload has there.
func (s *scanner) appendExt(dst []byte, o *object, mqtt []byte) []byte {
	dst = append(dst, `,"ext":{"mqtt":`...)
	dst = append(dst, mqtt...)
	if v := o.vals[fieldExt]; o.seen.has(fieldExt) {
		in := scanner{b: s.b, i: v.from + 1, depth: s.depth}
		for c := in.space(); c != '}'; c = in.space() {
			if c == ',' {
				in.i++
				in.space()
			}
			from := in.i
			in.key()
			name := in.i
			in.value(2)
			if !isName(s.b[from:name], "mqtt") {
				dst = s.appendJSON(append(dst, ','), span{from, in.i})
			}
		}
	}
	return append(dst, '}')
}

// isName reports whether written, a quoted name with a colon and perhaps space behind it,
// is the given one.
func isName(written []byte, name string) bool {
	inside := written[1:bytes.LastIndexByte(written, '"')]
	return string(unescape(make([]byte, 0, len(inside)), inside)) == name
}

// checkChange checks the fields of a message that changes something and fills in Change.
func (s *scanner) checkChange(o *object, d *Draft) {
	if d.Type == TypeRead {
		d.Change.Upto = s.seqOf(o, fieldUpto, errUpto)
		return
	}
	d.Change.Of = s.seqOf(o, fieldOf, errOf[d.Type])
	switch d.Type {
	case TypeEdit:
		if !o.seen.has(fieldBody) || s.b[o.vals[fieldBody].from] == 'n' { // null
			s.fail(errEdit)
		}
	case TypeReaction:
		var key []byte
		ok := o.seen.has(fieldKey)
		if ok {
			key, ok = s.text(o.vals[fieldKey])
		}
		if !ok || len(key) == 0 || len(key) > MaxKeyLen || !visible(key) {
			s.fail(errKey)
		} else {
			d.Change.Key = string(key)
		}
	}
	if o.seen.has(fieldRemove) && (d.Type == TypeReaction || d.Type == TypePin) {
		switch s.b[o.vals[fieldRemove].from] {
		case 't':
			d.Change.Remove = true
		case 'f':
		default:
			s.fail(errRemove)
		}
	}
}

// seqOf returns the seq that a field holds.
func (s *scanner) seqOf(o *object, f field, wrong *Error) uint64 {
	if o.seen.has(f) {
		if n, ok := s.positive(o.vals[f]); ok {
			return uint64(n) //nolint:gosec // positive
		}
	}
	s.fail(wrong)
	return 0
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

// notice is the type, and the first word of the types, that only the system sends.
const notice = "notice"

// IsNotice reports whether a type is one that only the system sends.
func IsNotice(typ string) bool {
	rest, ok := strings.CutPrefix(typ, notice)
	return ok && (rest == "" || rest[0] == '.')
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
	case "pin":
		return "pin"
	}
	return string(b)
}
