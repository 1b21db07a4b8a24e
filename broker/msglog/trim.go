package msglog

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// trimBlocks is how many blocks are removed at once. In between others get their turn.
const trimBlocks = 128

// Compact forgets messages up to and including seq, by an entry of its own, and
// removes them from the disk. See Log. A topic's tail, and with it prev, outlives its
// messages.
func (l *Pebble) Compact(ctx context.Context, upto uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p, err := l.Propose(&Entry{Trim: upto})
	if err != nil {
		return fmt.Errorf("trim log: %w", err)
	}
	if _, err := p.Wait(); err != nil {
		return fmt.Errorf("trim log: %w", err)
	}
	return l.Remove(ctx)
}

// removeLoop removes messages that are not kept any more.
func (l *Pebble) removeLoop() {
	defer l.bg.Done()
	for {
		// An error is kept by guard, or it is one of reading, which readers are told.
		if err := l.Remove(context.Background()); err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrFailed) {
			l.log.Warn("forgotten messages cannot be removed; it is tried again", "dir", l.dir, "err", err)
		}
		select {
		case <-l.stop:
			return
		case <-l.trimmable:
		}
	}
}

// Remove removes messages that are not kept any more from the disk: the messages, their
// places on topics, their mids and packet ids. That happens in the background as well; it
// returns when it is done.
func (l *Pebble) Remove(ctx context.Context) error {
	if err := l.use(); err != nil {
		return err
	}
	defer l.done()
	for {
		if err := l.check(ctx); err != nil {
			return err
		}
		if more, err := l.removeSome(); err != nil || !more {
			return err
		}
	}
}

// removeSome removes some blocks, and reports whether there may be more.
func (l *Pebble) removeSome() (more bool, err error) {
	l.removing.Lock()
	defer l.removing.Unlock()
	upto := l.first.Load() - 1
	t := trim{
		first: l.floor.Load(), batch: l.db.NewBatch(),
		ends: make(map[string]uint64), topics: make(map[string]uint64), devices: make(map[device]struct{}),
	}
	defer func() { err = errors.Join(err, t.batch.Close()) }()
	if t.first > upto {
		return false, nil
	}
	t.next = t.first
	if err := t.collect(l, upto); err != nil {
		return false, fmt.Errorf("remove messages: %w", err)
	}
	if err := t.finish(l); err != nil {
		return false, fmt.Errorf("remove messages: %w", err)
	}
	// One batch, so that a message and what points to it go together. It needs no sync:
	// that they are forgotten is durable, and what is left is removed after a restart.
	err = l.guard(func() error {
		return l.reused.remove(t.batch, t.next, func() error { return l.db.Apply(t.batch, pebble.NoSync) })
	})
	if err != nil {
		return false, err
	}
	l.floor.Store(t.next)
	return t.next <= upto, nil
}

// trim is the removal of some blocks.
type trim struct {
	first uint64 // oldest message on disk until now
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
		if err := t.block(l, last, value, upto); err != nil {
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
func (t *trim) block(l *Pebble, last uint64, value []byte, upto uint64) error {
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
			if err := t.mid(l, &r); err != nil {
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

// mid forgets the mid of a message, unless it leads to a newer message by now: see
// reusedMids, which knows what has been used again since the log was opened.
func (t *trim) mid(l *Pebble, r *Record) error {
	t.key = midKey(t.key, r.From, r.Mid)
	if r.Seq < l.reusedFrom {
		value, closer, err := l.db.Get(t.key)
		if errors.Is(err, pebble.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		u, err := decodeMid(value)
		if err := errors.Join(err, closer.Close()); err != nil {
			return err
		}
		if u.seq != r.Seq {
			return nil
		}
	}
	return t.batch.Delete(t.key, nil)
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

// Expired returns the newest seq that a retention does not want kept, 0 for none.
func (l *Pebble) Expired(ctx context.Context, keep Retention) (upto uint64, err error) {
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
