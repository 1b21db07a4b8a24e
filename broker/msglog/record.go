package msglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// A record is stored as a CRC-32C and a body:
//
//	crc uint32 LE       of the body, begun with the two halves of the seq, so that
//	                    a record in another's place is found out
//	flags byte          bits 0–1 QoS, bit 2 has Expires, bit 3 has Props, bit 4 Request
//	ts varint
//	expires varint      if flagged
//	prev uvarint        seq - Prev, 0 for none
//	prevSender uvarint  seq - PrevSender, 0 for none
//	packet id uvarint
//	digest uint64 LE
//	props length uvarint, props   if flagged
//	lengths 5 uvarint   of From, To, Type, Mid, Client
//	From To Type Mid Client Tail
const (
	flagQoS     = 0x03
	flagExpires = 0x04
	flagProps   = 0x08
	flagRequest = 0x10
	flagsKnown  = flagQoS | flagExpires | flagProps | flagRequest

	recordCRCLen = 4
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	errChecksum = errors.New("checksum does not match")
	errEncoding = errors.New("malformed record")
)

// RawDigest returns a hash of a topic and a tail as they are written.
func RawDigest(topic string, tail []byte) uint64 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.WriteString(topic)
	_, _ = d.Write([]byte{0})
	_, _ = d.Write(tail)
	return d.Sum64()
}

// hasDigest reports whether a stored digest is that of r's content. What earlier versions
// have stored has the raw one.
func (r *Record) hasDigest(digest uint64) bool {
	if digest == r.Digest {
		return true
	}
	if r.RawDigest != 0 {
		return digest == r.RawDigest
	}
	return digest == RawDigest(r.To, r.Tail)
}

// recordCRC returns the checksum of a record's body at a place in the log.
func recordCRC(seq uint64, body []byte) uint32 {
	return crc32.Update(uint32(seq)^uint32(seq>>32), castagnoli, body) //nolint:gosec // both halves are meant
}

// appendRecord appends r, whose seq has been assigned, in its stored form.
func appendRecord(b []byte, r *Record) []byte {
	start := len(b)
	flags := r.QoS & flagQoS
	if r.Expires != 0 {
		flags |= flagExpires
	}
	if len(r.Props) > 0 {
		flags |= flagProps
	}
	if r.Request {
		flags |= flagRequest
	}
	b = append(b, 0, 0, 0, 0, flags)
	b = binary.AppendVarint(b, r.TS)
	if r.Expires != 0 {
		b = binary.AppendVarint(b, r.Expires)
	}
	b = binary.AppendUvarint(b, distance(r.Seq, r.Prev))
	b = binary.AppendUvarint(b, distance(r.Seq, r.PrevSender))
	b = binary.AppendUvarint(b, uint64(r.PacketID))
	b = binary.LittleEndian.AppendUint64(b, r.Digest)
	if len(r.Props) > 0 {
		b = binary.AppendUvarint(b, uint64(len(r.Props)))
		b = append(b, r.Props...)
	}
	for _, s := range [...]string{r.From, r.To, r.Type, r.Mid, r.Client} {
		b = binary.AppendUvarint(b, uint64(len(s)))
	}
	b = append(b, r.From...)
	b = append(b, r.To...)
	b = append(b, r.Type...)
	b = append(b, r.Mid...)
	b = append(b, r.Client...)
	b = append(b, r.Tail...)
	binary.LittleEndian.PutUint32(b[start:], recordCRC(r.Seq, b[start+recordCRCLen:]))
	return b
}

func distance(seq, prev uint64) uint64 {
	if prev == 0 {
		return 0
	}
	return seq - prev
}

// decodeRecord reads the stored form of the record at seq into r. r.Tail aliases
// stored; everything else is a copy.
func decodeRecord(r *Record, seq uint64, stored []byte) error {
	if len(stored) < recordCRCLen {
		return errEncoding
	}
	body := stored[recordCRCLen:]
	if binary.LittleEndian.Uint32(stored) != recordCRC(seq, body) {
		return errChecksum
	}
	d := decoder{b: body}
	flags := d.byte()
	*r = Record{QoS: flags & flagQoS, Request: flags&flagRequest != 0}
	r.Seq = seq
	r.TS = d.varint()
	if flags&flagExpires != 0 {
		r.Expires = d.varint()
	}
	r.Prev = d.seqBefore(seq)
	r.PrevSender = d.seqBefore(seq)
	id := d.uvarint()
	r.Digest = d.uint64()
	if flags&flagProps != 0 {
		if r.Props = bytes.Clone(d.take([]uint64{d.uvarint()})); len(r.Props) == 0 {
			d.bad = true
		}
	}
	var lens [5]uint64
	for i := range lens {
		lens[i] = d.uvarint()
	}
	if flags&^flagsKnown != 0 || id > math.MaxUint16 {
		d.bad = true
	}
	r.PacketID = uint16(id) //nolint:gosec // checked above
	text := string(d.take(lens[:]))
	if d.bad {
		return errEncoding
	}
	for i, field := range [...]*string{&r.From, &r.To, &r.Type, &r.Mid, &r.Client} {
		*field, text = text[:lens[i]], text[lens[i]:]
	}
	r.Tail = slices.Clip(d.b)
	return nil
}

// decoder takes values off the front of a byte slice. Once it has met something
// that cannot be, bad is set and everything it returns is zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) uint64() uint64 {
	if len(d.b) < 8 {
		d.fail()
		return 0
	}
	v := binary.LittleEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// seqBefore reads the distance to an earlier seq, 0 for none.
func (d *decoder) seqBefore(seq uint64) uint64 {
	n := d.uvarint()
	if n == 0 {
		return 0
	}
	if n >= seq {
		d.fail()
		return 0
	}
	return seq - n
}

// take returns as many bytes as lens add up to.
func (d *decoder) take(lens []uint64) []byte {
	var n uint64
	for _, l := range lens {
		// Each is bounded before it is added, so that the sum cannot wrap around.
		if l > uint64(len(d.b)) {
			d.fail()
			return nil
		}
		n += l
	}
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}
