package chat

import (
	"encoding/binary"
	"math/bits"
)

// scanner walks once over a JSON text (RFC 8259) that is known to be UTF-8. It
// copies nothing and does not recurse. A text that is no JSON ends the walk; a
// rule that JSON as such does not have (what jsonb cannot hold, depth) is noted
// in bad and the walk goes on, because text that turns out to be malformed
// further on is no JSON, and the rules do not hold for it.
type scanner struct {
	b      []byte
	i      int
	depth  int    // arrays and objects that may be open at once
	bad    *Error // the first rule that was broken
	spaces bool   // white space was skipped
	grown  int    // bytes by which numbers become longer when jsonb renders them
}

func (s *scanner) fail(e *Error) {
	if s.bad == nil {
		s.bad = e
	}
}

// space skips white space (RFC 8259 section 2) and returns the byte after it, 0
// at the end. A NUL in the text is no JSON token either, so 0 is not ambiguous.
func (s *scanner) space() byte {
	for s.i < len(s.b) {
		c := s.b[s.i]
		if c > ' ' || c != ' ' && c != '\n' && c != '\r' && c != '\t' {
			return c
		}
		s.spaces = true
		s.i++
	}
	return 0
}

// SWAR constants: a byte of every lane.
const (
	lanes = 0x0101010101010101
	tops  = 0x8080808080808080
)

// special marks, of eight bytes, those that end the plain run of a JSON string:
// '"', '\\' and everything below 0x20. Only the lowest mark is exact, as a borrow
// may run into the lanes above it.
func special(x uint64) uint64 {
	q := x ^ lanes*'"'
	e := x ^ lanes*'\\'
	return ((q-lanes)&^q | (e-lanes)&^e | (x-lanes*' ')&^x) & tops
}

// plain returns the length of the run at the start of b that may stand in a JSON
// string as it is.
func plain(b []byte) int {
	i := 0
	for ; len(b)-i >= 8; i += 8 {
		if m := special(binary.LittleEndian.Uint64(b[i:])); m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c < ' ' || c == '"' || c == '\\' {
			break
		}
	}
	return i
}

// str scans the string whose opening quote is at s.i. escaped says that it holds
// an escape.
func (s *scanner) str() (escaped, ok bool) {
	s.i++
	for {
		s.i += plain(s.b[s.i:])
		if s.i >= len(s.b) {
			return escaped, false
		}
		switch s.b[s.i] {
		case '"':
			s.i++
			return escaped, true
		case '\\':
			escaped = true
			if !s.escape() {
				return true, false
			}
		default: // a control character
			return escaped, false
		}
	}
}

// escape scans the escape whose backslash is at s.i; a pair of surrogates is one
// escape.
func (s *scanner) escape() bool {
	if s.i+1 >= len(s.b) {
		return false
	}
	switch s.b[s.i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i += 2
		return true
	case 'u':
	default:
		return false
	}
	r, ok := hex4(s.b[s.i+2:])
	if !ok {
		return false
	}
	s.i += 6
	switch {
	case r == 0:
		s.fail(errNUL)
	case isLow(r):
		s.fail(errSurrogate)
	case isHigh(r):
		rest := s.b[s.i:]
		if len(rest) < 2 || rest[0] != '\\' || rest[1] != 'u' {
			s.fail(errSurrogate)
			return true
		}
		low, ok := hex4(rest[2:])
		if !ok {
			return false
		}
		if !isLow(low) {
			// What follows is an escape of its own; the next turn checks it.
			s.fail(errSurrogate)
			return true
		}
		s.i += 6
	}
	return true
}

func isHigh(r rune) bool { return r >= 0xd800 && r < 0xdc00 }
func isLow(r rune) bool  { return r >= 0xdc00 && r < 0xe000 }

// hex4 reads four hexadecimal digits.
func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// digits skips decimal digits and returns how many there were.
func (s *scanner) digits() int {
	from := s.i
	for s.i < len(s.b) && s.b[s.i]-'0' <= 9 {
		s.i++
	}
	return s.i - from
}

// number scans the number at s.i (RFC 8259 section 6).
func (s *scanner) number() bool {
	if s.b[s.i] == '-' {
		s.i++
	}
	first := s.i
	whole := s.digits()
	if whole == 0 || whole > 1 && s.b[first] == '0' {
		return false
	}
	fraction := 0
	if s.i < len(s.b) && s.b[s.i] == '.' {
		s.i++
		if fraction = s.digits(); fraction == 0 {
			return false
		}
	}
	end, exponent := s.i, 0
	if s.i < len(s.b) && s.b[s.i]|0x20 == 'e' {
		s.i++
		minus := false
		if s.i < len(s.b) && (s.b[s.i] == '+' || s.b[s.i] == '-') {
			minus = s.b[s.i] == '-'
			s.i++
		}
		digits := s.i
		if s.digits() == 0 {
			return false
		}
		for _, c := range s.b[digits:s.i] {
			exponent = min(exponent*10+int(c-'0'), 1<<20)
		}
		if minus {
			exponent = -exponent
		}
	}
	// 300 digits on either side of the point are well inside a double.
	if exponent != 0 || whole > 300 || fraction > 300 {
		length, ok := decimal(s.b[first:end], whole, fraction, exponent)
		if !ok {
			s.fail(errNumber)
			return true
		}
		s.grown += max(length-(s.i-first), 0)
	}
	return true
}

// The digits of the largest number that rounds to no double but infinity, times
// 10^308, and of the largest that rounds to 0, times 10^-324 (IEEE 754 binary64,
// to nearest, ties to even): 2^1024-2^970 and 2^-1075. A number that begins with
// all these digits counts as beyond them.
const (
	overflows = "179769313486231580793728971405"
	vanishes  = "247032822920623272088284396434"
)

// decimal reports whether jsonb and a double hold the number whose digits, with
// the point, are mantissa: it neither overflows a double nor vanishes in it, and
// PostgreSQL's numeric has room for its decimals. length is that of the number as
// jsonb renders it, which knows no exponents: 309 digits for 1e308, and for 0e-99
// as many decimals. strconv.ParseFloat would tell the first, but takes 60 µs for a
// number near the smallest double, and there may be ten thousand of them in a payload.
func decimal(mantissa []byte, whole, fraction, exponent int) (length int, ok bool) {
	const maxScale = 16383 // decimals of a numeric
	if exponent > maxScale || fraction-exponent > maxScale {
		return 0, false
	}
	if scale := fraction - exponent; scale > 0 {
		length = 1 + scale // with the point
	}
	lead := 0 // where the first digit is that counts
	for lead < len(mantissa) && (mantissa[lead] == '0' || mantissa[lead] == '.') {
		lead++
	}
	if lead == len(mantissa) {
		return length + 1, true // it is 0
	}
	power := whole - 1 - lead + exponent // of ten, of that digit
	if lead > whole {
		power++ // the point is no digit
	}
	switch {
	case power > 308 || power < -324:
		return 0, false
	case power == 308 && compareDigits(mantissa[lead:], overflows) >= 0:
		return 0, false
	case power == -324 && compareDigits(mantissa[lead:], vanishes) <= 0:
		return 0, false
	}
	return length + max(power+1, 1), true
}

// compareDigits compares as many of the digits, which may have a point among
// them, as edge has; what is missing at the end is zeros.
func compareDigits(digits []byte, edge string) int {
	for i := range len(edge) {
		if len(digits) > 0 && digits[0] == '.' {
			digits = digits[1:]
		}
		d := byte('0')
		if len(digits) > 0 {
			d, digits = digits[0], digits[1:]
		}
		if d != edge[i] {
			return int(d) - int(edge[i])
		}
	}
	return 0
}

// literal scans true, false or null at s.i.
func (s *scanner) literal(word string) bool {
	if len(s.b)-s.i < len(word) || string(s.b[s.i:s.i+len(word)]) != word {
		return false
	}
	s.i += len(word)
	return true
}

// scalar scans the value at s.i that begins with c and is no array or object.
func (s *scanner) scalar(c byte) bool {
	switch c {
	case '"':
		_, ok := s.str()
		return ok
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return s.number()
	}
	return false
}

// other scans a text that is one JSON value, but neither an object nor a string. It
// reports whether it is one.
func (s *scanner) other() (v span, ok bool) {
	c := s.space()
	if c == '{' || c == '"' {
		return v, false
	}
	s.spaces = false
	v.from = s.i
	if !s.value(0) {
		return v, false
	}
	v.to = s.i
	spaces := s.spaces
	if s.space(); s.i != len(s.b) {
		return v, false
	}
	s.spaces = spaces
	return v, true
}

// key scans the name at s.i, the colon after it and the space around both.
func (s *scanner) key() bool {
	if s.space() != '"' {
		return false
	}
	if _, ok := s.str(); !ok || s.space() != ':' {
		return false
	}
	s.i++
	return true
}

// value scans the value at s.i, after any space. outer is the number of arrays
// and objects that are open around it.
func (s *scanner) value(outer int) bool {
	c := s.space()
	if c != '{' && c != '[' {
		return s.scalar(c)
	}
	// One bit for every open array (0) or object (1). It grows only for what
	// is refused or turns out to be text, by one bit for a byte of payload.
	var first [2]uint64
	open := first[:]
	n := 0
	for {
		// A value begins here with c.
		if c == '{' || c == '[' {
			if n>>6 == len(open) {
				open = append(open, 0)
			}
			if c == '{' {
				open[n>>6] |= 1 << (n & 63)
			} else {
				open[n>>6] &^= 1 << (n & 63)
			}
			n++
			if outer+n > s.depth && s.bad == nil {
				s.bad = tooDeep(s.depth)
			}
			s.i++
			if next := s.space(); next != c+2 { // not '}' after '{', nor ']' after '['
				if c == '{' && !s.key() {
					return false
				}
				c = s.space()
				continue
			}
			// It is empty: leave the closing byte to the loop below.
		} else if !s.scalar(c) {
			return false
		}
		// A value or an opening ended; close what closes.
		for {
			if n == 0 {
				return true
			}
			object := open[(n-1)>>6]>>((n-1)&63)&1 == 1
			next := s.space()
			if next == ',' {
				s.i++
				if object && !s.key() {
					return false
				}
				c = s.space()
				break
			}
			if object && next != '}' || !object && next != ']' {
				return false
			}
			s.i++
			n--
		}
	}
}
