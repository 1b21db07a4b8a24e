package listener

// maxRemaining is the largest remaining length that four bytes can encode (MQTT
// 5, section 1.5.5).
const maxRemaining = 268_435_455

// framer tracks the packet boundaries of a client's byte stream, to find
// remaining lengths of more than four bytes. Mochi 2.7.9 limits the value of a
// length but not the number of its bytes: it answers c0 80 80 80 80 80 00 as a
// PINGREQ, and reads continuation bytes as long as they come. Mochi's
// MaximumPacketSize limits the size of packets; its arithmetic cannot overflow.
//
// A length that is encoded in more bytes than needed, but at most four, is
// accepted. MQTT 3.1.1 does not forbid it, and small devices that reserve the
// bytes beforehand send it.
type framer struct {
	body  uint32 // bytes of the current packet still to come
	value uint32 // the length read so far
	step  uint8  // 0: a type byte comes next; 1 to 4: that byte of the length
}

// scan processes p, the next bytes of the stream. If they are well framed, it
// returns len(p) and true. Otherwise it returns the number of bytes before the
// malformed packet, and false.
func (f *framer) scan(p []byte) (int, bool) {
	start := 0 // where the current packet begins, if it begins in p
	for i := 0; i < len(p); {
		if f.body > 0 {
			n := min(len(p)-i, int(f.body))
			f.body -= uint32(n) //nolint:gosec // n is at most f.body
			i += n
			continue
		}
		if f.step == 0 {
			start = i
			f.step, f.value = 1, 0
			i++
			continue
		}
		b := p[i]
		i++
		f.value |= uint32(b&0x7f) << (7 * (f.step - 1))
		switch {
		case b&0x80 == 0:
			f.body, f.step = f.value, 0
		case f.step == 4:
			return start, false
		default:
			f.step++
		}
	}
	return len(p), true
}
