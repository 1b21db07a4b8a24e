package chat

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// digest returns a hash of the value that a tail stands for: the members of an object
// without white space, and its closing brace. The order of members, escapes, and how a
// number is written (1, 1.0, 10e-1) make no difference; the equality is that of RFC 8785,
// but that numbers are compared as they are and not as the doubles next to them. It is
// the same in every process, since it is stored.
//
// Nothing is sorted: the hashes of an object's members are added up. Who makes two values
// with one hash, which is not hard, only has the second of two messages with their own
// mid taken for the first.
func digest(tail []byte) uint64 {
	d := digester{b: tail}
	return d.members()
}

// digester walks over JSON that the scanner has been over.
type digester struct {
	b       []byte
	i       int
	scratch []byte
}

// What the hashes of different kinds begin with, so that 1 and "1" differ.
const (
	seedText   = 0x9fb21c651e98df25
	seedNumber = 0xd6e8feb86659fd93
	seedArray  = 0xc4ceb9fe1a85ec53
	seedObject = 0x94d049bb133111eb
	seedTrue   = 0x8ebc6af09c88c6e3
	seedFalse  = 0x589965cc75374cc3
	seedNull   = 0x1d8e4e27c47d124f
	seedLength = 0xeb44accab455d165
)

// What mix multiplies with; none of the above, or it would multiply with 0.
const (
	factorA = 0xa0761d6478bd642f
	factorB = 0xe7037ed1a0b428db
)

// mix makes one hash of two, with regard to their order.
func mix(a, b uint64) uint64 {
	high, low := bits.Mul64(a^factorA, bits.RotateLeft64(b, 32)^factorB)
	return bits.RotateLeft64(a, 27) + (high ^ low)
}

func hashBytes(h uint64, b []byte) uint64 {
	n := len(b)
	whole := n &^ 7
	for i := 0; i < whole; i += 8 {
		h = mix(h, binary.LittleEndian.Uint64(b[i:]))
	}
	var rest uint64
	if n >= 8 && whole < n {
		rest = binary.LittleEndian.Uint64(b[n-8:]) >> (8 * (8 - n + whole))
	} else {
		for i, c := range b[whole:] {
			rest |= uint64(c) << (8 * i)
		}
	}
	return mix(mix(h, rest), uint64(n)^seedLength)
}

// digestOf returns digest(tail), where tail is what becomes of a scanned object with the
// type: if all of its members are known ones, without going over the tail again. ok is false
// if it cannot tell.
func digestOf(s *scanner, o *object, typ string) (sum uint64, ok bool) {
	if o.nfew > 0 {
		return 0, false
	}
	d := digester{b: s.b}
	n := uint64(1)
	sum = mix(nameHash[fieldType], hashString(typ))
	for left := o.seen &^ written; left != 0; left &= left - 1 {
		f := field(bits.TrailingZeros32(uint32(left)))
		v := o.vals[f]
		var h uint64
		switch c := s.b[v.from]; {
		case c == '"' && bytes.IndexByte(v.of(s.b), '\\') < 0:
			h = hashBytes(seedText, s.b[v.from+1:v.to-1])
		case s.spaces && (c == '{' || c == '['): // there may be white space in it
			return 0, false
		default:
			d.i = v.from
			h = d.value()
		}
		sum += mix(nameHash[f], h)
		n++
	}
	return mix(sum^seedObject, n), true
}

// hashString is the hash of a string that has no escapes.
func hashString(s string) uint64 {
	var b [MaxTypeLen]byte
	return hashBytes(seedText, b[:copy(b[:], s)])
}

// nameHash is by field the hash of its name.
var nameHash = func() (all [fields]uint64) {
	for f, name := range fieldNames {
		all[f] = hashBytes(seedText, []byte(name))
	}
	return all
}()

// value returns the hash of the value at d.i.
func (d *digester) value() uint64 {
	switch d.b[d.i] {
	case '"':
		return d.text()
	case '{':
		d.i++
		return d.members()
	case '[':
		d.i++
		return d.elements()
	case 't':
		d.i += len("true")
		return seedTrue
	case 'f':
		d.i += len("false")
		return seedFalse
	case 'n':
		d.i += len("null")
		return seedNull
	}
	return d.number()
}

// members returns the hash of an object whose opening brace has been passed.
func (d *digester) members() uint64 {
	var sum, n uint64
	for d.b[d.i] != '}' {
		if d.b[d.i] == ',' {
			d.i++
		}
		name := d.text()
		d.i++ // the colon
		sum += mix(name, d.value())
		n++
	}
	d.i++
	return mix(sum^seedObject, n)
}

// elements returns the hash of an array whose opening bracket has been passed.
func (d *digester) elements() uint64 {
	h := uint64(seedArray)
	for d.b[d.i] != ']' {
		if d.b[d.i] == ',' {
			d.i++
		}
		h = mix(h, d.value())
	}
	d.i++
	return mix(h, seedArray)
}

// text returns the hash of the string at d.i.
func (d *digester) text() uint64 {
	d.i++
	from := d.i
	d.i += plain(d.b[d.i:])
	if d.b[d.i] == '"' {
		d.i++
		return hashBytes(seedText, d.b[from:d.i-1])
	}
	for d.b[d.i] != '"' {
		if d.b[d.i] == '\\' {
			d.i += 2
		}
		d.i += plain(d.b[d.i:])
	}
	d.scratch = unescape(d.scratch[:0], d.b[from:d.i])
	d.i++
	return hashBytes(seedText, d.scratch)
}

// number returns the hash of the number at d.i: of its sign, its digits from the first to
// the last that is not 0, and the power of ten of the last.
func (d *digester) number() uint64 {
	minus := d.b[d.i] == '-'
	if minus {
		d.i++
	}
	from := d.i
	d.digits()
	digits, power := d.b[from:d.i], 0
	if d.b[d.i] == '.' {
		d.i++
		from := d.i
		d.digits()
		power = from - d.i
		d.scratch = append(append(d.scratch[:0], digits...), d.b[from:d.i]...)
		digits = d.scratch
	}
	if d.b[d.i]|0x20 == 'e' {
		d.i++
		below := d.b[d.i] == '-'
		if below || d.b[d.i] == '+' {
			d.i++
		}
		from := d.i
		d.digits()
		exponent := 0
		for _, c := range d.b[from:d.i] {
			exponent = min(exponent*10+int(c-'0'), 1<<20)
		}
		if below {
			exponent = -exponent
		}
		power += exponent
	}
	for len(digits) > 0 && digits[0] == '0' {
		digits = digits[1:]
	}
	for len(digits) > 0 && digits[len(digits)-1] == '0' {
		digits = digits[:len(digits)-1]
		power++
	}
	if len(digits) == 0 {
		return seedNumber // also -0, as jsonb has it
	}
	h := hashBytes(seedNumber, digits)
	if minus {
		h = mix(h, seedLength)
	}
	return mix(h, uint64(int64(power)))
}

// digits passes digits. After a number there is a comma or a closing bracket or brace.
func (d *digester) digits() {
	for d.b[d.i]-'0' <= 9 {
		d.i++
	}
}
