package msglog

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// bounds is which messages an open log holds, by their seqs.
type bounds struct {
	first   atomic.Uint64 // oldest message that is kept
	floor   atomic.Uint64 // oldest message that is on disk: before first until the rest is removed
	durable atomic.Uint64 // newest message that readers may see
}

func (b *bounds) set(floor, first, last uint64) {
	b.floor.Store(floor)
	b.first.Store(first)
	b.durable.Store(last)
}

// load returns the oldest message that is kept and the newest that is durable.
func (b *bounds) load() (first, last uint64) {
	// In this order: a trim in between can only make first too small, never
	// larger than last+1.
	first = b.first.Load()
	return first, b.durable.Load()
}

// clamp restricts a range to what is kept and durable.
func (b *bounds) clamp(after, upto uint64) (uint64, uint64) {
	first, last := b.load()
	return max(after, first-1), min(upto, last)
}

// trimmed reports whether the message has been trimmed since.
func (b *bounds) trimmed(seq uint64) bool { return seq < b.first.Load() }

// readBounds reads the bounds of the log from the database: the oldest message that is on
// disk, the oldest that is kept, and the newest.
func (d *database) readBounds() (floor, first, last uint64, err error) {
	floor, ok, err := d.getUint(keyFirst)
	if err != nil {
		return 0, 0, 0, err
	}
	if !ok || floor == 0 {
		return 0, 0, 0, fmt.Errorf("%w: no %s", ErrCorrupt, keyFirst)
	}
	decided, _, err := d.readDecided()
	if err != nil {
		return 0, 0, 0, err
	}
	first = max(floor, decided.first)
	end, _, err := d.getUint(keyEndOfLost)
	if err != nil {
		return 0, 0, 0, err
	}
	last = max(first-1, end)
	it, err := d.newPrefixIter(prefixBlock)
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if it.Last() {
		newest, err := keySeq(it.Key())
		if err != nil {
			return 0, 0, 0, err
		}
		last = max(last, newest)
	}
	return floor, first, last, it.Error()
}
