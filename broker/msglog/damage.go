package msglog

import (
	"errors"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// damage remembers which messages cannot be read. When a checksum is wrong Pebble
// checks whether a single flipped bit explains it, which takes half a second of
// computing each time. So the same messages are not read a second time.
type damage struct {
	mu    sync.Mutex
	spans []CorruptError
}

// check returns an error if the message at seq is known to be unreadable.
func (d *damage) check(seq, upto uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.spans {
		if s.First <= seq && seq <= s.Last {
			return &CorruptError{First: seq, Last: min(s.Last, upto), Err: s.Err}
		}
	}
	return nil
}

// findAndRecord is called when an iterator over blocks has failed after the given seq. It
// finds the messages that cannot be read, remembers them, and returns the error.
func (d *damage) findAndRecord(it *pebble.Iterator, after, upto uint64) error {
	e := findUnreadable(it, after, upto, "", func(seq uint64) []byte { return blockKey(nil, seq) })
	if pebble.IsCorruptionError(e.Err) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.spans = append(d.spans, *e)
	}
	return e
}

// findDamage records the block that ends with last, and what follows it, if they cannot
// be read.
func (r *reader) findDamage(last uint64) error {
	it, err := r.db.newBlockIter(last - 1)
	if err != nil {
		return err
	}
	var found error
	if !it.First() && it.Error() != nil {
		_, upto := r.Bounds()
		found = r.damage.findAndRecord(it, last-1, upto)
	}
	return errors.Join(found, it.Close())
}

// The steps, in seqs, by which findUnreadable searches for the next readable message. The
// first is larger than what one damaged sector destroys; each is twice the one before.
const (
	unreadableStep    = 1 << 9
	unreadableMaxStep = 1 << 20
)

// findUnreadable returns which messages cannot be read when an iterator has failed after
// the given seq. It steps forward until reading succeeds, and then back to the first
// readable message, so that it reads damaged data as seldom as possible.
func findUnreadable(it *pebble.Iterator, after, upto uint64, topic string, key func(seq uint64) []byte) *CorruptError {
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
