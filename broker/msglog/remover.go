package msglog

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// removeBatch is how many blocks are removed at once. In between others can write.
const removeBatch = 128

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

// Remove removes messages that are not kept any more from the disk: the messages, their
// places on topics, their mids and packet ids. That happens in the background as well; it
// returns when it is done.
func (l *Pebble) Remove(ctx context.Context) error { return l.remover.remove(ctx) }

// remover removes messages that are not kept any more from the disk.
type remover struct {
	db     *database
	life   *lifecycle
	bounds *bounds

	wakeup     chan struct{} // has a value when there is something to remove
	removing   sync.Mutex    // held while messages are removed from the disk
	reused     reusedMids
	reusedFrom uint64 // it is not known which mids of messages before this one are in use again
}

func newRemover(r *reader) *remover {
	return &remover{db: r.db, life: r.life, bounds: &r.bounds, wakeup: make(chan struct{}, 1)}
}

// wake tells run that there is something to remove.
func (r *remover) wake() {
	select {
	case r.wakeup <- struct{}{}:
	default:
	}
}

// run removes messages in the background whenever there are some to remove.
func (r *remover) run() {
	defer r.life.background.Done()
	for {
		// A failed write is kept by guard; damage is reported by readers.
		if err := r.remove(context.Background()); err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrFailed) {
			r.db.log.Warn("forgotten messages cannot be removed; it is tried again", "dir", r.db.dir, "err", err)
		}
		select {
		case <-r.life.stop:
			return
		case <-r.wakeup:
		}
	}
}

// remove is Pebble.Remove.
func (r *remover) remove(ctx context.Context) error {
	if err := r.life.beginCall(); err != nil {
		return err
	}
	defer r.life.endCall()
	for {
		if err := r.life.check(ctx); err != nil {
			return err
		}
		if more, err := r.removeSome(); err != nil || !more {
			return err
		}
	}
}

// removeSome removes some blocks, and reports whether there may be more.
func (r *remover) removeSome() (more bool, err error) {
	r.removing.Lock()
	defer r.removing.Unlock()
	upto := r.bounds.first.Load() - 1
	t := removal{
		first: r.bounds.floor.Load(), batch: r.db.pebble.NewBatch(),
		ends: make(map[string]uint64), topics: make(map[string]uint64), devices: make(map[device]struct{}),
	}
	defer func() { err = errors.Join(err, t.batch.Close()) }()
	if t.first > upto {
		return false, nil
	}
	t.next = t.first
	if err := t.collect(r, upto); err != nil {
		return false, fmt.Errorf("remove messages: %w", err)
	}
	if err := t.finish(r); err != nil {
		return false, fmt.Errorf("remove messages: %w", err)
	}
	// One batch, so that a message and what points to it go together. It needs no sync:
	// that they are forgotten is durable, and what is left is removed after a restart.
	err = r.db.guard(func() error {
		return r.reused.applyRemoval(t.batch, t.next, func() error { return r.db.pebble.Apply(t.batch, pebble.NoSync) })
	})
	if err != nil {
		return false, err
	}
	r.bounds.floor.Store(t.next)
	return t.next <= upto, nil
}

// removal is the removal of some blocks.
type removal struct {
	first     uint64 // oldest message on disk until now
	next      uint64 // oldest message from now on
	lastBlock uint64 // newest block of which no message is kept, 0 for none
	batch     *pebble.Batch
	ends      map[string]uint64 // newest trimmed message of each topic

	topics  map[string]uint64   // the same for the block being removed
	devices map[device]struct{} // whose packet ids are in the block being removed
	key     []byte
}

func (t *removal) collect(rm *remover, upto uint64) error {
	it, err := rm.db.newBlockIter(t.first - 1)
	if err != nil {
		return err
	}
	// Read errors are handled below; Close would return them again.
	defer func() { _ = it.Close() }()
	n := 0
	for ok := it.First(); ok && n < removeBatch && t.next <= upto; ok = it.Next() {
		last, err := keySeq(it.Key())
		if err != nil {
			return err
		}
		value, err := it.ValueAndErr()
		if err != nil {
			break // it.Error says the same
		}
		if err := t.removeBlock(rm, last, value, upto); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				return err
			}
			// Its postings stay, and readers pass over them. If damage stopped
			// the removal, the log would grow for ever.
			rm.db.log.Warn("trimmed messages that could not be read", "last", last, "err", err)
		}
		n++
		t.next = min(last, upto) + 1
		if last <= upto {
			t.lastBlock = last
		}
	}
	switch {
	case it.Error() != nil:
		e := findUnreadable(it, t.next-1, upto, "", func(seq uint64) []byte { return blockKey(nil, seq) })
		rm.db.log.Warn("trimmed messages that could not be read", "first", e.First, "last", e.Last, "err", e.Err)
		t.lastBlock, t.next = e.Last, e.Last+1
	case t.next == t.first:
		t.next = upto + 1 // there is nothing more: Read has reported that
	}
	return nil
}

// removeBlock removes the keys that point to the messages of a block up to and including
// upto. The block itself is removed once none of its messages is kept.
func (t *removal) removeBlock(rm *remover, last uint64, value []byte, upto uint64) error {
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
			if err := t.removeMid(rm, &r); err != nil {
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

// removeMid removes the mid of a message, unless it leads to a newer message by now: see
// reusedMids, which knows what has been used again since the log was opened.
func (t *removal) removeMid(rm *remover, r *Record) error {
	t.key = midKey(t.key, r.From, r.Mid)
	if r.Seq < rm.reusedFrom {
		value, closer, err := rm.db.pebble.Get(t.key)
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

// finish adds to the batch what is done once for all blocks.
func (t *removal) finish(rm *remover) error {
	if t.lastBlock != 0 {
		if err := t.batch.DeleteRange(blockKey(nil, t.first), blockKey(nil, t.lastBlock+1), nil); err != nil {
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
	base, err := rm.db.indexBefore(t.next)
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
