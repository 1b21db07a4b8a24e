package msglog

import "encoding/binary"

// What points into a block counts backwards from its last message, whose seq is
// in the key: a posting is a uvarint for each message on the topic, in order.

// appendPosting encodes which of a block's n messages are on a topic.
func appendPosting(b []byte, n int, index []uint8) []byte {
	for _, i := range index {
		b = binary.AppendUvarint(b, uint64(n-1-int(i))) //nolint:gosec // i is below n
	}
	return b
}

// decodePosting calls fn for each seq of a posting until it returns false. It
// returns errEncoding if value is not a posting.
func decodePosting(last uint64, value []byte, fn func(seq uint64) bool) error {
	d := decoder{b: value}
	before := uint64(0)
	for len(d.b) > 0 {
		back := d.uvarint()
		if d.bad || back >= last || back >= blockRecordsMax || last-back <= before {
			return errEncoding
		}
		before = last - back
		if !fn(before) {
			return nil
		}
	}
	if before == 0 {
		return errEncoding
	}
	return nil
}

// appendUses encodes the packet ids of a device in a block: distance from last,
// packet id, digest of each.
func appendUses(b []byte, last uint64, uses []packetEntry) []byte {
	for _, u := range uses {
		b = binary.AppendUvarint(b, last-u.seq)
		b = binary.AppendUvarint(b, uint64(u.id))
		b = binary.LittleEndian.AppendUint64(b, u.digest)
	}
	return b
}

// decodeUses is the reverse of appendUses.
func decodeUses(last uint64, value []byte) ([]packetEntry, error) {
	d := decoder{b: value}
	uses := make([]packetEntry, 0, len(value)/10)
	for len(d.b) > 0 {
		back, id := d.uvarint(), d.uvarint()
		digest := d.uint64()
		if d.bad || back >= last || id == 0 || id > 0xffff {
			return nil, errEncoding
		}
		uses = append(uses, packetEntry{uint16(id), use{last - back, digest}})
	}
	return uses, nil
}

// indexEntry is one entry of the sparse index that finds the seq to trim up to.
type indexEntry struct {
	seq   uint64
	bytes uint64 // appended since the log was made, up to here
	ts    int64  // of the message, milliseconds since 1970
}

func (e indexEntry) append(b []byte) []byte {
	return binary.AppendVarint(binary.AppendUvarint(b, e.bytes), e.ts)
}

func decodeIndex(seq uint64, value []byte) (indexEntry, error) {
	d := decoder{b: value}
	e := indexEntry{seq: seq, bytes: d.uvarint(), ts: d.varint()}
	if d.bad || len(d.b) > 0 {
		return indexEntry{}, errEncoding
	}
	return e, nil
}
