package msglog

import (
	"errors"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// damage remembers which messages cannot be read. When a checksum is wrong Pebble
// tries whether a single flipped bit explains it, which takes it half a second of
// computing each time: nobody is to ask twice.
type damage struct {
	mu    sync.Mutex
	spans []CorruptError
}

// known returns an error if the message at seq is known to be unreadable.
func (d *damage) known(seq, upto uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.spans {
		if s.First <= seq && seq <= s.Last {
			return &CorruptError{First: seq, Last: min(s.Last, upto), Err: s.Err}
		}
	}
	return nil
}

// find finds out and remembers which messages cannot be read after an iterator
// over blocks has failed after the given seq.
func (d *damage) find(it *pebble.Iterator, after, upto uint64) error {
	e := unreadable(it, after, upto, "", func(seq uint64) []byte { return blockKey(nil, seq) })
	if pebble.IsCorruptionError(e.Err) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.spans = append(d.spans, *e)
	}
	return e
}

// findDamage finds out what else cannot be read besides the block.
func (r *reader) findDamage(last uint64) error {
	it, err := r.db.blocks(last - 1)
	if err != nil {
		return err
	}
	var found error
	if !it.First() && it.Error() != nil {
		_, upto := r.Bounds()
		found = r.damage.find(it, last-1, upto)
	}
	return errors.Join(found, it.Close())
}

// The steps by which unreadable looks for where reading is possible again: the
// first is more than one damaged sector takes away, and from there they grow.
const (
	unreadableStep    = 1 << 9
	unreadableMaxStep = 1 << 20
)

// unreadable finds out which messages are concerned when an iterator has failed
// after the given seq: it jumps ahead until it can read, and from there back to
// where that begins, so that it reads what is damaged as seldom as possible.
func unreadable(it *pebble.Iterator, after, upto uint64, topic string, key func(seq uint64) []byte) *CorruptError {
	e := &CorruptError{First: after + 1, Last: upto, Topic: topic, Err: it.Error()}
	step := uint64(unreadableStep)
	for seq := after + 1 + step; seq <= upto; seq += step {
		if !it.SeekGE(key(seq)) {
			if it.Error() == nil {
				e.Last = seq - 1 // there is nothing behind it
				return e
			}
			step = min(2*step, unreadableMaxStep)
			continue
		}
		e.Last = seq - 1
		for ok := true; ok; ok = it.Prev() {
			last, err := keySeq(it.Key())
			if err != nil {
				break
			}
			first := last
			if topic == "" {
				value, err := it.ValueAndErr()
				if err != nil {
					break
				}
				b, err := parseBlock(last, value)
				if err != nil {
					break // damaged in itself: Read will say so
				}
				first = b.first
			} else if value, err := it.ValueAndErr(); err != nil ||
				decodePosting(last, value, func(s uint64) bool { first = s; return false }) != nil {
				break
			}
			e.Last = first - 1
		}
		e.Last = max(e.Last, e.First)
		return e
	}
	return e
}
