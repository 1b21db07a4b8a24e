package msglog

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"reflect"
	"testing"

	"mynah/broker/state"
	"mynah/chat"
)

// FuzzDecodeRecord: whatever the bytes, decoding neither panics nor takes more
// memory than there are bytes, and what it accepts is what would be stored.
func FuzzDecodeRecord(f *testing.F) {
	add := func(r *Record) { f.Add(r.Seq, appendRecord(nil, r)[recordCRCLen:]) }
	add(&Record{})
	add(&Record{
		Message: chat.Message{
			Seq: 1_795_331_188_759_494, From: "alice", To: "group/42", TS: 1_795_331_188_759, Type: "text",
			Mid: "5f1c", Expires: 1_795_331_199_000, Tail: []byte(`"type":"text","body":"hello","mid":"5f1c"}`),
		},
		QoS: 2, Prev: 1_795_331_188_759_000, PrevSender: 17, Client: "phone", PacketID: 65535, Digest: 1<<64 - 1,
	})
	add(&Record{
		Message: chat.Message{Seq: 9, From: "a", To: "user/b", Expires: -1, Tail: []byte("}")}, Props: []byte{8, 0, 1, 'r'}, Request: true,
	})
	f.Add(uint64(5), []byte{})
	f.Add(uint64(5), bytes.Repeat([]byte{0xff}, 64))
	f.Add(uint64(9), []byte{1, 2, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, seq uint64, body []byte) {
		stored := binary.LittleEndian.AppendUint32(nil, recordCRC(seq, body))
		stored = append(stored, body...)
		var r Record
		if err := decodeRecord(&r, seq, stored); err != nil {
			return
		}
		if n := len(r.From) + len(r.To) + len(r.Type) + len(r.Mid) + len(r.Client) + len(r.Tail) + len(r.Props); n > len(body) {
			t.Fatalf("%d bytes from %d", n, len(body))
		}
		if r.Prev > seq || r.PrevSender > seq || r.Seq != seq {
			t.Fatalf("seq %d: %+v", seq, r)
		}
		var again Record
		if err := decodeRecord(&again, seq, appendRecord(nil, &r)); err != nil {
			t.Fatalf("what was decoded cannot be stored: %v", err)
		}
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("decoded %+v, stored and decoded %+v", r, again)
		}
		// A record in another's place, or with a bit flipped, is found out.
		if err := decodeRecord(&again, seq+1, stored); err == nil {
			t.Fatal("accepted in another's place")
		}
	})
}

// FuzzBlock does the same for blocks and for what points into them.
func FuzzBlock(f *testing.F) {
	var b blockBuilder
	for i := range uint64(3) {
		b.add(&Record{Message: chat.Message{Seq: 98 + i, From: "alice", To: "user/bob", Tail: []byte("}")}})
	}
	whole := b.finish()
	f.Add(uint64(100), whole)
	f.Add(uint64(2), whole)
	f.Add(uint64(100), whole[1:])
	f.Add(uint64(100), []byte{2, 1, 0})
	f.Add(uint64(100), bytes.Repeat([]byte{1}, 40))
	f.Fuzz(func(t *testing.T, last uint64, value []byte) {
		check := func(value []byte) {
			b, err := parseBlock(last, value)
			if err != nil {
				return
			}
			if b.first == 0 || b.first > last || last-b.first >= blockRecordsMax {
				t.Fatalf("block from %d to %d", b.first, last)
			}
			for seq := b.first; seq <= last && seq >= b.first; seq++ {
				var r Record
				_ = b.decode(&r, seq) // any error will do
				_, _ = b.forEachRecord(seq, min(seq+readChunk-1, last), func(*Record) bool { return true })
				if seq == 1<<64-1 {
					break
				}
			}
		}
		check(value)
		// The same with a footer that is right, so that what is behind it is met.
		if len(value) >= blockFooter {
			fixed := bytes.Clone(value)
			foot := len(fixed) - blockFooter
			n := binary.LittleEndian.Uint16(fixed[foot+4:])
			if foot >= 4*int(n) {
				binary.LittleEndian.PutUint32(fixed[foot:], blockCRC(fixed[foot-4*int(n):foot], n))
				fixed[len(fixed)-1] = blockVersion
				check(fixed)
			}
		}
		before := uint64(0)
		_ = decodePosting(last, value, func(seq uint64) bool {
			if seq <= before || seq > last {
				t.Fatalf("posting of block %d has %d after %d", last, seq, before)
			}
			before = seq
			return true
		})
		if uses, err := decodeUses(last, value); err == nil && len(uses) > len(value)/10 {
			t.Fatalf("%d packet ids from %d bytes", len(uses), len(value))
		}
		_, _ = decodeIndex(last, value)
		_, _ = decodeMid(value)
		if s, rest, err := cutString(value); err == nil {
			if again, rest2, err := cutString(append(appendString(nil, s), rest...)); err != nil || again != s || !bytes.Equal(rest, rest2) {
				t.Fatalf("%q: %q and %q, %v", value, again, rest2, err)
			}
		}
	})
}

// FuzzDecodeEntry: whatever comes from another broker, decoding neither panics nor takes more
// memory than there are bytes, and what it accepts is what would be sent.
func FuzzDecodeEntry(f *testing.F) {
	for _, e := range []*Entry{
		{},
		{Origin: "a", Number: 3, Time: 5, Full: true, Trim: 9},
		{Records: []*Record{{Message: chat.Message{From: "a", To: "user/b", Tail: []byte("}")}, QoS: 2, Dup: true, Props: []byte{1}}}},
		{State: []state.Op{{Key: "k", Value: []byte("v")}, {Key: "p", Delete: true, Prefix: true}}},
	} {
		f.Add(AppendEntry(nil, e)[5:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		b := append([]byte{entryVersion, 0, 0, 0, 0}, body...)
		binary.LittleEndian.PutUint32(b[1:], crc32.Checksum(body, castagnoli))
		e, err := DecodeEntry(b)
		if err != nil {
			return
		}
		if len(e.Records)*recordMinSize+len(e.State)*opMinSize > len(body) {
			t.Fatalf("%d records and %d changes from %d bytes", len(e.Records), len(e.State), len(body))
		}
		again, err := DecodeEntry(AppendEntry(nil, e))
		if err != nil || !reflect.DeepEqual(again, e) {
			t.Fatalf("%+v was sent as %+v: %v", e, again, err)
		}
	})
}
