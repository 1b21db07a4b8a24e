package msglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"mynah/broker/state"
)

// An entry travels as
//
//	version byte       entryVersion
//	crc uint32 LE      of all that follows
//	flags byte         bit 0 Full
//	number uvarint
//	time varint
//	trim uvarint
//	origin string      a string is its length, uvarint, and its bytes
//	records uvarint    how many
//	  flags byte       bits 0–1 QoS, bit 2 Dup, bit 3 Ask, bit 4 Request
//	  expires varint
//	  packet id uvarint
//	  digest uint64 LE
//	  raw digest uint64 LE
//	  DupAfter uvarint
//	  DupUpTo uvarint
//	  From To Type Mid Client Props Tail, strings
//	changes uvarint    how many
//	  flags byte       bit 0 Delete, bit 1 Prefix
//	  Key Value, strings
const (
	entryVersion = 1

	entryFull = 0x01

	entryDup     = 0x04
	entryAsk     = 0x08
	entryRequest = 0x10

	opDelete = 0x01
	opPrefix = 0x02

	// recordMinSize is how many bytes a record takes at least, opMinSize a change.
	recordMinSize = 1 + 1 + 1 + 8 + 8 + 1 + 1 + 7
	opMinSize     = 3
)

// ErrEntryVersion is returned for an entry of a newer release: it cannot be applied
// before this machine has that release, too.
var ErrEntryVersion = errors.New("the entry was made by a newer version of mynah")

// AppendEntry appends an entry in the form in which it travels. What the log decides is
// not part of it.
func AppendEntry(b []byte, e *Entry) []byte {
	start := len(b)
	b = append(b, entryVersion, 0, 0, 0, 0)
	b = append(b, flag(e.Full, entryFull))
	b = binary.AppendUvarint(b, e.Number)
	b = binary.AppendVarint(b, e.Time)
	b = binary.AppendUvarint(b, e.Trim)
	b = appendText(b, e.Origin)
	b = binary.AppendUvarint(b, uint64(len(e.Records)))
	for _, r := range e.Records {
		b = append(b, r.QoS&flagQoS|flag(r.Dup, entryDup)|flag(r.Ask, entryAsk)|flag(r.Request, entryRequest))
		b = binary.AppendVarint(b, r.Expires)
		b = binary.AppendUvarint(b, uint64(r.PacketID))
		b = binary.LittleEndian.AppendUint64(b, r.Digest)
		b = binary.LittleEndian.AppendUint64(b, r.RawDigest)
		b = binary.AppendUvarint(b, r.DupAfter)
		b = binary.AppendUvarint(b, r.DupUpTo)
		for _, s := range [...]string{r.From, r.To, r.Type, r.Mid, r.Client} {
			b = appendText(b, s)
		}
		b = appendText(appendText(b, r.Props), r.Tail)
	}
	b = binary.AppendUvarint(b, uint64(len(e.State)))
	for _, op := range e.State {
		b = appendOp(b, op)
	}
	binary.LittleEndian.PutUint32(b[start+1:], crc32.Checksum(b[start+5:], castagnoli))
	return b
}

func appendOp(b []byte, op state.Op) []byte {
	b = append(b, flag(op.Delete, opDelete)|flag(op.Prefix, opPrefix))
	return appendText(appendText(b, op.Key), op.Value)
}

func flag(set bool, bit byte) byte {
	if set {
		return bit
	}
	return 0
}

func appendText[S ~string | ~[]byte](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// DecodeEntry is the reverse of AppendEntry. The entry does not share b's memory.
func DecodeEntry(b []byte) (*Entry, error) {
	if len(b) < 5 {
		return nil, fmt.Errorf("decode entry: %w", errEncoding)
	}
	if b[0] > entryVersion {
		return nil, fmt.Errorf("decode entry: %w: its form is version %d, this release knows up to %d", ErrEntryVersion, b[0], entryVersion)
	}
	if b[0] == 0 {
		return nil, fmt.Errorf("decode entry: %w", errEncoding)
	}
	if binary.LittleEndian.Uint32(b[1:]) != crc32.Checksum(b[5:], castagnoli) {
		return nil, fmt.Errorf("decode entry: %w", errChecksum)
	}
	d := decoder{b: b[5:]}
	e := &Entry{}
	flags := d.byte()
	e.Full = flags&entryFull != 0
	e.Number, e.Time, e.Trim, e.Origin = d.uvarint(), d.varint(), d.uvarint(), d.text()
	if flags&^entryFull != 0 {
		d.fail()
	}
	if n := d.count(recordMinSize); n > 0 {
		recs := make([]Record, n)
		e.Records = make([]*Record, n)
		for i := range recs {
			d.record(&recs[i])
			e.Records[i] = &recs[i]
		}
	}
	if n := d.count(opMinSize); n > 0 {
		e.State = make([]state.Op, n)
		for i := range e.State {
			flags := d.byte()
			if flags&^(opDelete|opPrefix) != 0 {
				d.fail()
			}
			e.State[i] = state.Op{Delete: flags&opDelete != 0, Prefix: flags&opPrefix != 0, Key: d.text(), Value: []byte(d.text())}
		}
	}
	if d.bad || len(d.b) > 0 {
		return nil, fmt.Errorf("decode entry: %w", errEncoding)
	}
	return e, nil
}

// record reads a record of an entry.
func (d *decoder) record(r *Record) {
	flags := d.byte()
	r.QoS, r.Dup, r.Ask, r.Request = flags&flagQoS, flags&entryDup != 0, flags&entryAsk != 0, flags&entryRequest != 0
	r.Expires = d.varint()
	id := d.uvarint()
	if flags&^(flagQoS|entryDup|entryAsk|entryRequest) != 0 || id > math.MaxUint16 {
		d.fail()
	}
	r.PacketID = uint16(id)
	r.Digest, r.RawDigest, r.DupAfter, r.DupUpTo = d.uint64(), d.uint64(), d.uvarint(), d.uvarint()
	r.From, r.To, r.Type, r.Mid, r.Client = d.text(), d.text(), d.text(), d.text(), d.text()
	if r.Props = []byte(d.text()); len(r.Props) == 0 {
		r.Props = nil
	}
	r.Tail = []byte(d.text())
}

// text reads a string, which is a copy.
func (d *decoder) text() string {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

// count reads how many things follow that take at least size bytes each.
func (d *decoder) count(size int) uint64 {
	n := d.uvarint()
	if n > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return n
}
