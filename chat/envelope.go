package chat

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// ErrEnvelope is returned by ParseEnvelope for what is no rendered message.
var ErrEnvelope = errors.New("not a message of the broker")

// Envelope is what a receiver needs to know of a rendered message.
type Envelope struct {
	Seq  uint64 // position in the log; 0 for what is not in it: signals, notice.gap
	Prev uint64 // seq of the message before it on the topic of delivery, 0 for none
	From string // the sender's id, "" for the broker itself
	To   string // the topic it was published to
	TS   int64  // milliseconds since 1970
	Type string
	Mid  string // or ""
	// Change is what a message of a type that changes something says, as far as
	// it does: what an earlier version has stored may lack its fields.
	Change Change
	// Object is the whole object less prev, as it is archived. It
	// is memory of its own.
	Object []byte
}

// ParseEnvelope reads a message as AppendEnvelope rendered it, with or without prev;
// the fields may stand in any order. Its error wraps ErrEnvelope and says what is
// wrong. Of the other fields only that is checked which jsonb insists on.
func ParseEnvelope(b []byte) (Envelope, error) {
	if !utf8.Valid(b) {
		return Envelope{}, fmt.Errorf("%w: not UTF-8", ErrEnvelope)
	}
	o := object{drop: 1 << fieldPrev}
	s := scanner{b: b, depth: len(b)}
	if !s.document(&o) {
		return Envelope{}, fmt.Errorf("%w: not a JSON object", ErrEnvelope)
	}
	if s.bad != nil {
		return Envelope{}, fmt.Errorf("%w: %s", ErrEnvelope, s.bad.Reason)
	}
	if o.twice != fieldOther {
		return Envelope{}, fmt.Errorf("%w: a field of the broker is there twice", ErrEnvelope)
	}
	const must fieldSet = 1<<fieldSeq | 1<<fieldFrom | 1<<fieldTo | 1<<fieldTS | 1<<fieldType
	if o.seen&must != must {
		return Envelope{}, fmt.Errorf("%w: seq, from, to, ts or type is missing", ErrEnvelope)
	}
	r := reader{s: &s, o: &o}
	e := Envelope{
		Seq:  r.number(fieldSeq),
		Prev: r.number(fieldPrev),
		From: r.text(fieldFrom),
		To:   r.text(fieldTo),
		TS:   int64(min(r.number(fieldTS), maxInt)),
		Type: r.text(fieldType),
		Mid:  r.text(fieldMid),
	}
	if r.wrong {
		return Envelope{}, fmt.Errorf("%w: seq, prev, from, to, ts, type or mid is of the wrong kind", ErrEnvelope)
	}
	if ChangesSomething(e.Type) {
		var d Draft
		d.Type = e.Type
		s.checkChange(&o, &d)
		e.Change = d.Change
	}
	e.Object = make([]byte, 0, o.size()+1)
	for _, run := range o.runs[:o.nruns] {
		e.Object = s.appendJSON(append(e.Object, ','), run)
	}
	e.Object[0] = '{'
	e.Object = append(e.Object, '}')
	return e, nil
}

// reader takes known fields out of a scanned object. A field that is not there is
// 0 or "".
type reader struct {
	s     *scanner
	o     *object
	wrong bool // a field is of the wrong kind
}

func (r *reader) number(f field) uint64 {
	if !r.o.seen.has(f) {
		return 0
	}
	n, ok := natural(r.o.vals[f].of(r.s.b))
	if !ok || n > maxInt {
		r.wrong = true
	}
	return n
}

func (r *reader) text(f field) string {
	if !r.o.seen.has(f) {
		return ""
	}
	b, ok := r.s.text(r.o.vals[f])
	if !ok {
		r.wrong = true
	}
	if f == fieldType {
		return typeName(b)
	}
	return string(b)
}
