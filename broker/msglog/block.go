package msglog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A block is up to blockRecords records with consecutive seqs, or fewer if they
// reach blockBytes; its key is the seq of its last record.
//
//	records
//	offsets  uint32 LE × n  where each record begins
//	crc      uint32 LE      of offsets and n
//	n        uint16 LE
//	version  byte           blockVersion
//
// One record can be read without touching the others.
const (
	blockRecords = 128
	blockBytes   = 48 << 10
	blockVersion = 1

	// blockRecordsMax is how many records a block of any version may have.
	blockRecordsMax = 1 << 16

	blockFooter = 4 + 2 + 1
)

// blockBuilder puts a block together. Its buffers are used again.
type blockBuilder struct {
	buf     []byte
	offsets []uint32
}

func (b *blockBuilder) reset() { b.buf, b.offsets = b.buf[:0], b.offsets[:0] }

func (b *blockBuilder) add(r *Record) {
	b.offsets = append(b.offsets, uint32(len(b.buf))) //nolint:gosec // far below 4 GiB: blockBytes and one record
	b.buf = appendRecord(b.buf, r)
}

func (b *blockBuilder) full() bool {
	return len(b.offsets) >= blockRecords || len(b.buf) >= blockBytes
}

// finish returns the block. It is valid until the next reset.
func (b *blockBuilder) finish() []byte {
	start := len(b.buf)
	for _, o := range b.offsets {
		b.buf = binary.LittleEndian.AppendUint32(b.buf, o)
	}
	n := uint16(len(b.offsets)) //nolint:gosec // at most blockRecords
	crc := blockCRC(b.buf[start:], n)
	b.buf = binary.LittleEndian.AppendUint32(b.buf, crc)
	b.buf = binary.LittleEndian.AppendUint16(b.buf, n)
	b.buf = append(b.buf, blockVersion)
	return b.buf
}

func blockCRC(offsets []byte, n uint16) uint32 {
	return crc32.Update(uint32(n), castagnoli, offsets)
}

// block is a stored block whose footer has been checked; its records have not.
type block struct {
	first, last uint64
	data        []byte // the records
	offsets     []byte
}

// parseBlock checks the footer of the block whose key says last.
func parseBlock(last uint64, value []byte) (block, error) {
	if len(value) < blockFooter {
		return block{}, fmt.Errorf("block %d: too short", last)
	}
	foot := value[len(value)-blockFooter:]
	crc, n, version := binary.LittleEndian.Uint32(foot), binary.LittleEndian.Uint16(foot[4:]), foot[6]
	value = value[:len(value)-blockFooter]
	if version != blockVersion || n == 0 || uint64(n) > last || len(value) < 4*int(n) {
		return block{}, fmt.Errorf("block %d: malformed footer", last)
	}
	offsets := value[len(value)-4*int(n):]
	if blockCRC(offsets, n) != crc {
		return block{}, fmt.Errorf("block %d: footer: %w", last, errChecksum)
	}
	return block{first: last - uint64(n) + 1, last: last, data: value[:len(value)-len(offsets)], offsets: offsets}, nil
}

// offset returns where the record at seq, one of the block's, begins.
func (b *block) offset(seq uint64) uint32 {
	return binary.LittleEndian.Uint32(b.offsets[4*(seq-b.first):])
}

// end returns where the record at seq, one of the block's, ends.
func (b *block) end(seq uint64) uint32 {
	if seq < b.last {
		return b.offset(seq + 1)
	}
	return uint32(len(b.data)) //nolint:gosec // a value is below 4 GiB
}

// records returns the stored form of the records from one seq to another, which
// must be the block's.
func (b *block) records(from, to uint64) ([]byte, error) {
	for seq := from; seq <= to; seq++ {
		if b.offset(seq) > b.end(seq) || int(b.end(seq)) > len(b.data) {
			return nil, fmt.Errorf("record %d: %w", seq, errEncoding)
		}
	}
	return b.data[b.offset(from):b.end(to)], nil
}

// decode reads the record at seq, which must be one of the block's, into r.
func (b *block) decode(r *Record, seq uint64) error {
	stored, err := b.records(seq, seq)
	if err != nil {
		return err
	}
	if err := decodeRecord(r, seq, stored); err != nil {
		return fmt.Errorf("record %d: %w", seq, err)
	}
	return nil
}
