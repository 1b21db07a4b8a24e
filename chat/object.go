package chat

import (
	"bytes"
	"strings"
)

// field is a name at the top of a message that has a meaning. Names are compared
// after their escapes are resolved and with regard to case, as JSON.parse and
// jsonb do.
type field uint8

const (
	fieldOther field = iota // the application's own
	fieldSeq
	fieldPrev
	fieldFrom
	fieldTo
	fieldTS
	fieldType
	fieldBody
	fieldMid
	fieldReplyTo
	fieldMentions
	fieldExpires
	fieldExt
	fieldUpto
	fieldOf
	fieldKey
	fieldRemove
	fields // how many there are
)

// fieldNames has the names of the fields that are the client's to write.
var fieldNames = [fields]string{
	fieldType: "type", fieldBody: "body", fieldMid: "mid", fieldReplyTo: "reply_to", fieldMentions: "mentions", fieldExpires: "expires",
	fieldExt: "ext", fieldUpto: "upto", fieldOf: "of", fieldKey: "key", fieldRemove: "remove",
}

func fieldNamed(name []byte) field {
	switch string(name) {
	case "seq":
		return fieldSeq
	case "prev":
		return fieldPrev
	case "from":
		return fieldFrom
	case "to":
		return fieldTo
	case "ts":
		return fieldTS
	case "type":
		return fieldType
	case "body":
		return fieldBody
	case "mid":
		return fieldMid
	case "reply_to":
		return fieldReplyTo
	case "mentions":
		return fieldMentions
	case "expires":
		return fieldExpires
	case "ext":
		return fieldExt
	case "upto":
		return fieldUpto
	case "of":
		return fieldOf
	case "key":
		return fieldKey
	case "remove":
		return fieldRemove
	}
	return fieldOther
}

// The fields that are the broker's to write, and type, which it moves to the
// front of the tail.
const written fieldSet = 1<<fieldSeq | 1<<fieldPrev | 1<<fieldFrom | 1<<fieldTo | 1<<fieldTS | 1<<fieldType

// looksWritten reports whether there are receivers who take a name for one of written.
// Many a JSON library, Go's among them, does not regard case where it fills a struct, and
// the last of two such names wins.
func looksWritten(name []byte) bool {
	if len(name) > 4 { // "ſeq" has four bytes, too
		return false
	}
	for _, known := range [...]string{"seq", "prev", "from", "to", "ts", "type"} {
		if bytes.EqualFold(name, []byte(known)) {
			return true
		}
	}
	return false
}

type fieldSet uint32

func (s fieldSet) has(f field) bool { return s>>f&1 == 1 }

// span is a part of the scanned text; the zero span is none.
type span struct{ from, to int }

func (v span) of(b []byte) []byte { return b[v.from:v.to] }

// object is what the scanner finds at the top of a JSON object.
type object struct {
	drop  fieldSet     // in: fields that are left out of the runs
	seen  fieldSet     // known fields that are there
	vals  [fields]span // values of the known fields
	runs  [8]span      // members that are kept, as they stand side by side: at most one more than can be dropped
	nruns int
	all   span  // from brace to brace
	typed bool  // there is a type that is a string
	twice field // a known field that is there twice, or fieldOther
	alike bool  // a name that is not known differs from one of written by its case only

	// Where the names that are not known stand, without their quotes: the
	// first few without an allocation.
	few   [8]span
	nfew  int
	other []span
}

// document scans a text that is one JSON object. It reports whether it is one.
func (s *scanner) document(o *object) bool {
	if s.space() != '{' {
		return false
	}
	s.spaces = false
	o.all.from = s.i
	s.i++
	c := s.space()
	for open := false; c != '}'; {
		from := s.i
		if c != '"' {
			return false
		}
		escaped, ok := s.str()
		if !ok {
			return false
		}
		name := span{from + 1, s.i - 1}
		key := name.of(s.b)
		if escaped {
			key = unescape(make([]byte, 0, len(key)), key)
		}
		if s.space() != ':' {
			return false
		}
		s.i++
		s.space()
		val := s.i
		if !s.value(1) {
			return false
		}
		f := fieldNamed(key)
		o.typed = o.typed || f == fieldType && s.b[val] == '"'
		switch {
		case f == fieldOther:
			o.add(name)
			o.alike = o.alike || looksWritten(key)
		case o.seen.has(f):
			o.twice = f
		default:
			o.seen |= 1 << f
			o.vals[f] = span{val, s.i}
		}
		switch {
		case o.drop.has(f):
			open = false
		case open:
			o.runs[o.nruns-1].to = s.i
		default:
			// A run begins at the start or after a dropped field. A field that
			// is there twice is refused, so what runs hold then is of no use.
			if o.nruns < len(o.runs) {
				o.nruns++
			}
			o.runs[o.nruns-1] = span{from, s.i}
			open = true
		}
		c = s.space()
		if c == ',' {
			s.i++
			if c = s.space(); c == '}' {
				return false
			}
		} else if c != '}' {
			return false
		}
	}
	s.i++
	o.all.to = s.i
	spaces := s.spaces
	if s.space(); s.i != len(s.b) {
		return false
	}
	s.spaces = spaces
	return true
}

// size is the length of the runs with a comma before each.
func (o *object) size() int {
	n := 0
	for _, r := range o.runs[:o.nruns] {
		n += 1 + r.to - r.from
	}
	return n
}

func (o *object) add(name span) {
	if o.nfew < len(o.few) {
		o.few[o.nfew] = name
		o.nfew++
		return
	}
	o.other = append(o.other, name)
}

// repeated reports whether a name is there twice. Receivers differ in which of
// the two they take.
func (o *object) repeated(b []byte) bool {
	if o.twice != fieldOther {
		return true
	}
	if o.nfew < 2 {
		return false
	}
	few := o.few[:o.nfew]
	if len(o.other) == 0 {
		for i, v := range few {
			for _, w := range few[:i] {
				if sameName(v.of(b), w.of(b)) {
					return true
				}
			}
		}
		return false
	}
	// A payload may hold many thousand names: do not compare each with each.
	text := string(b)
	seen := make(map[string]struct{}, len(few)+len(o.other))
	for _, names := range [][]span{few, o.other} {
		for _, v := range names {
			name := text[v.from:v.to]
			if strings.IndexByte(name, '\\') >= 0 {
				name = string(unescape(nil, v.of(b)))
			}
			if _, ok := seen[name]; ok {
				return true
			}
			seen[name] = struct{}{}
		}
	}
	return false
}

// sameName compares two names as they are written between the quotes.
func sameName(v, w []byte) bool {
	if bytes.IndexByte(v, '\\') < 0 && bytes.IndexByte(w, '\\') < 0 {
		return bytes.Equal(v, w)
	}
	return bytes.Equal(unescape(nil, v), unescape(nil, w))
}
