package msglog

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"mynah/broker/state"
)

// store is the state store that shares a Pebble log's database.
type store struct{ log *Pebble }

// State returns the state store that shares the log's database. It ends with the log.
func (l *Pebble) State() state.Store { return store{l} }

// Apply makes all changes at once. See state.Store.
func (s store) Apply(ops []state.Op, sync bool) error {
	l := s.log
	if err := l.use(); err != nil {
		return err
	}
	defer l.done()
	b := l.db.NewBatch()
	err := setOps(b, ops)
	if err != nil {
		return errors.Join(fmt.Errorf("change state: %w", err), b.Close())
	}
	if sync && !l.opts.NoSync {
		err = l.applyChange(b)
	} else {
		err = l.guard(func() error { return l.db.Apply(b, pebble.NoSync) })
		l.storeDirty.Store(true)
	}
	if err != nil {
		return fmt.Errorf("change state: %w", err)
	}
	return b.Close()
}

// applyChange makes a change to the store durable, and counts it so that it is
// missed if it should not be there after all.
func (l *Pebble) applyChange(b *pebble.Batch) error {
	l.storeMu.Lock()
	n := l.changes + 1
	err := l.guard(func() error {
		if err := setUint(b, keyChanges, n); err != nil {
			return err
		}
		return l.db.ApplyNoSyncWait(b, pebble.Sync)
	})
	if err == nil {
		l.changes = n
	}
	// Waiting outside, so that changes that are made at once share a sync.
	l.storeMu.Unlock()
	if err != nil {
		return err
	}
	return l.guard(func() error {
		if err := b.SyncWait(); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		return l.head.raise(head{store: n})
	})
}

// syncStore makes durable what was applied without sync.
func (l *Pebble) syncStore() {
	if l.opts.NoSync || !l.storeDirty.Swap(false) {
		return
	}
	// An error is kept by guard and told to whoever writes next.
	_ = l.guard(func() error { return l.db.LogData(nil, pebble.Sync) })
}

// Scan calls fn for each key with the prefix, in byte order, until fn returns
// false. fn may keep neither key's nor value's bytes.
func (s store) Scan(prefix string, fn func(key string, value []byte) bool) (err error) {
	l := s.log
	if err := l.use(); err != nil {
		return err
	}
	defer l.done()
	lower := append([]byte(prefixStore), prefix...)
	it, err := l.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: prefixEndKey(lower)})
	if err != nil {
		return fmt.Errorf("scan state: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			break // it.Error says the same
		}
		if !fn(string(it.Key()[len(prefixStore):]), value) {
			return nil
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("scan state: %w", err)
	}
	return nil
}
