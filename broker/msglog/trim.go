package msglog

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// trimBlocks is how many blocks Trim forgets at once. In between it looks at its
// context, and others get their turn.
const trimBlocks = 128

// Trim forgets messages up to and including seq: the messages, their places on
// topics, their mids and packet ids. It returns when that is durable. What was
// trimmed when ctx ended stays so. A topic's tail, and with it prev, outlives its
// messages.
func (l *Pebble) Trim(ctx context.Context, upto uint64) error {
	if err := l.use(); err != nil {
		return err
	}
	defer l.done()
	l.trimMu.Lock()
	defer l.trimMu.Unlock()
	upto = min(upto, l.durable.Load())
	trimmed := false
	for l.first.Load() <= upto {
		if err := l.check(ctx); err != nil {
			return err
		}
		if err := l.trimSome(upto); err != nil {
			return fmt.Errorf("trim log: %w", err)
		}
		trimmed = true
	}
	if !trimmed {
		return nil
	}
	return l.guard(func() error { return l.db.LogData(nil, l.syncOption()) })
}

func (l *Pebble) syncOption() *pebble.WriteOptions {
	if l.opts.NoSync {
		return pebble.NoSync
	}
	return pebble.Sync
}

// trimSome forgets some blocks.
func (l *Pebble) trimSome(upto uint64) (err error) {
	t := trim{
		first: l.first.Load(), batch: l.db.NewBatch(),
		ends: make(map[string]uint64), topics: make(map[string]uint64), devices: make(map[device]struct{}),
	}
	defer func() { err = errors.Join(err, t.batch.Close()) }()
	t.next = t.first
	if err := t.collect(l, upto); err != nil {
		return err
	}
	if err := t.finish(l); err != nil {
		return err
	}
	// One batch, so that a message and what points to it go together. An Append
	// that finds a mid of a trimmed message gone writes it after this batch, so
	// that it cannot be deleted here by mistake. And first is published after
	// the batch: an Append that takes a mid for forgotten because of it writes
	// after this batch as well.
	if err := l.guard(func() error { return l.db.Apply(t.batch, pebble.NoSync) }); err != nil {
		return err
	}
	l.first.Store(t.next)
	return nil
}

// trim is the forgetting of some blocks.
type trim struct {
	first uint64 // oldest message until now
	next  uint64 // oldest message from now on
	gone  uint64 // newest block that goes as a whole, 0 for none
	batch *pebble.Batch
	ends  map[string]uint64 // newest trimmed message of each topic

	topics  map[string]uint64   // the same for the block at hand
	devices map[device]struct{} // whose packet ids are in the block at hand
	key     []byte
}

func (t *trim) collect(l *Pebble, upto uint64) error {
	it, err := l.blocks(t.first - 1)
	if err != nil {
		return err
	}
	// What went wrong in reading is dealt with here and not an error of Close.
	defer func() { _ = it.Close() }()
	n := 0
	for ok := it.First(); ok && n < trimBlocks && t.next <= upto; ok = it.Next() {
		last, err := keySeq(it.Key())
		if err != nil {
			return err
		}
		value, err := it.ValueAndErr()
		if err != nil {
			break // it.Error says the same
		}
		if err := t.block(last, value, upto); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				return err
			}
			// What points to it stays and points to nothing, which readers
			// understand. The alternative were a log that grows for ever.
			l.log.Warn("trimmed messages that could not be read", "last", last, "err", err)
		}
		n++
		t.next = min(last, upto) + 1
		if last <= upto {
			t.gone = last
		}
	}
	switch {
	case it.Error() != nil:
		e := unreadable(it, t.next-1, upto, "", func(seq uint64) []byte { return blockKey(nil, seq) })
		l.log.Warn("trimmed messages that could not be read", "first", e.First, "last", e.Last, "err", e.Err)
		t.gone, t.next = e.Last, e.Last+1
	case t.next == t.first:
		t.next = upto + 1 // there is nothing more: Read has reported that
	}
	return nil
}

// block forgets what points to the messages of a block up to and including upto.
// The block itself goes when all of its messages have.
func (t *trim) block(last uint64, value []byte, upto uint64) error {
	b, err := parseBlock(last, value)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	clear(t.topics)
	clear(t.devices)
	var bad error
	var r Record
	for seq := b.first; seq <= min(last, upto); seq++ {
		if err := b.decode(&r, seq); err != nil {
			bad = fmt.Errorf("%w: %w", ErrCorrupt, err)
			continue
		}
		// The mids of a block that was trimmed in part are gone already, and may
		// be in use again.
		if r.Mid != "" && seq >= t.first {
			t.key = midKey(t.key, r.From, r.Mid)
			if err := t.batch.Delete(t.key, nil); err != nil {
				return err
			}
		}
		if last > upto {
			continue
		}
		if isTracked(&r) {
			t.devices[device{r.From, r.Client}] = struct{}{}
		}
		t.topics[r.To] = seq
		if own := ownTopic(&r); own != "" {
			t.topics[own] = seq
		}
	}
	// Each of these keys was written once, with the block.
	for topic, seq := range t.topics {
		t.ends[topic] = seq
		t.key = postingKey(t.key, topic, last)
		if err := t.batch.SingleDelete(t.key, nil); err != nil {
			return err
		}
	}
	for d := range t.devices {
		t.key = deviceKey(t.key, d.from, d.client, last)
		if err := t.batch.SingleDelete(t.key, nil); err != nil {
			return err
		}
	}
	return bad
}

// finish adds what is done once for all blocks.
func (t *trim) finish(l *Pebble) error {
	if t.gone != 0 {
		if err := t.batch.DeleteRange(blockKey(nil, t.first), blockKey(nil, t.gone+1), nil); err != nil {
			return err
		}
	}
	for topic, seq := range t.ends {
		t.key = endKey(t.key, topic)
		if err := setUint(t.batch, string(t.key), seq); err != nil {
			return err
		}
	}
	// The newest index entry before what is kept stays: it says how many bytes
	// had been appended up to there.
	base, err := l.indexBefore(t.next)
	if err != nil {
		return err
	}
	if base.seq != 0 {
		if err := t.batch.DeleteRange([]byte(prefixIndex), indexKey(nil, base.seq), nil); err != nil {
			return err
		}
	}
	return setUint(t.batch, keyFirst, t.next)
}

// Retention says how much of the log is kept. The zero value of a field means
// without bound.
type Retention struct {
	MaxAge   time.Duration // messages older than this are forgotten
	MaxBytes uint64        // the oldest are forgotten when more than this was appended; to about a megabyte
}

// Enforce forgets what the retention does not want kept, but nothing after
// archivedUpTo, the seq up to which the archive has everything; math.MaxUint64
// if nothing is archived. It returns the new first seq.
func (l *Pebble) Enforce(ctx context.Context, keep Retention, archivedUpTo uint64) (first uint64, err error) {
	upto, err := l.trimPoint(ctx, keep)
	if err != nil {
		return l.first.Load(), fmt.Errorf("find where to trim the log: %w", err)
	}
	upto = min(upto, archivedUpTo)
	err = l.Trim(ctx, upto)
	return l.first.Load(), err
}

// trimPoint returns the newest seq that the retention does not want kept, 0 for
// none.
func (l *Pebble) trimPoint(ctx context.Context, keep Retention) (upto uint64, err error) {
	if keep.MaxAge <= 0 && keep.MaxBytes == 0 {
		return 0, nil
	}
	if err := l.use(); err != nil {
		return 0, err
	}
	defer l.done()
	newest, err := l.lastIndex()
	if err != nil {
		return 0, err
	}
	cutoff := int64(math.MinInt64)
	if keep.MaxAge > 0 {
		cutoff = l.opts.Now().Add(-keep.MaxAge).UnixMilli()
	}
	it, err := l.db.NewIter(&pebble.IterOptions{
		LowerBound: []byte(prefixIndex), UpperBound: prefixEndKey([]byte(prefixIndex)),
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if err := l.check(ctx); err != nil {
			return 0, err
		}
		e, err := indexAt(it)
		if err != nil {
			return 0, err
		}
		tooMany := keep.MaxBytes > 0 && newest.bytes-e.bytes >= keep.MaxBytes
		if e.ts > cutoff && !tooMany {
			break
		}
		upto = e.seq
	}
	if err := it.Error(); err != nil {
		return 0, err
	}
	if keep.MaxAge <= 0 {
		return upto, nil
	}
	// The index is sparse: look at the messages themselves up to its next entry.
	_, last := l.Bounds()
	err = l.Read(ctx, upto, last, func(r *Record) bool {
		if r.TS > cutoff {
			return false
		}
		upto = r.Seq
		return true
	})
	if _, corrupt := errors.AsType[*CorruptError](err); corrupt {
		err = nil // Read's callers are told; here it only ends the search
	}
	return upto, err
}

// indexAt decodes the index entry that the iterator is at.
func indexAt(it *pebble.Iterator) (indexEntry, error) {
	seq, err := keySeq(it.Key())
	if err != nil {
		return indexEntry{}, err
	}
	value, err := it.ValueAndErr()
	if err != nil {
		return indexEntry{}, err
	}
	return decodeIndex(seq, value)
}

// indexBefore returns the newest entry of the sparse index below seq, the zero
// one if there is none.
func (l *Pebble) indexBefore(seq uint64) (e indexEntry, err error) {
	it, err := l.db.NewIter(&pebble.IterOptions{
		LowerBound: []byte(prefixIndex), UpperBound: indexKey(nil, seq),
	})
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.Last() {
		return e, it.Error()
	}
	return indexAt(it)
}

// lastIndex returns the newest entry of the sparse index.
func (l *Pebble) lastIndex() (indexEntry, error) { return l.indexBefore(math.MaxUint64) }
