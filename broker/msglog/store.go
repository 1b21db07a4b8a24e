package msglog

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"mynah/broker/state"
)

// store is the state store that shares a Pebble log's database.
type store struct {
	db   *database
	life *lifecycle

	mu      sync.Mutex  // guards changes and the order in which they are written
	changes uint64      // number of changes with sync since the log was made
	dirty   atomic.Bool // something was changed without sync
}

// State returns the state store that shares the log's database. It ends with the log.
func (l *Pebble) State() state.Store { return l.store }

// Apply makes all changes at once. See state.Store.
func (s *store) Apply(ops []state.Op, sync bool) error {
	if err := s.life.beginCall(); err != nil {
		return err
	}
	defer s.life.endCall()
	b := s.db.pebble.NewBatch()
	err := addStateOps(b, ops)
	if err != nil {
		return errors.Join(fmt.Errorf("change state: %w", err), b.Close())
	}
	if sync && !s.db.opts.NoSync {
		err = s.applySync(b)
	} else {
		err = s.db.guard(func() error { return s.db.pebble.Apply(b, pebble.NoSync) })
		s.dirty.Store(true)
	}
	if err != nil {
		return fmt.Errorf("change state: %w", err)
	}
	return b.Close()
}

// applySync makes a change durable.
func (s *store) applySync(b *pebble.Batch) error {
	number, err := s.applyCounted(b, func(b *pebble.Batch) error { return s.db.pebble.ApplyNoSyncWait(b, pebble.Sync) })
	if err != nil {
		return err
	}
	// Waiting without mu, so that changes that are made at once share a sync.
	return s.db.guard(func() error {
		if err := b.SyncWait(); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		return s.db.head.advance(head{changes: number})
	})
}

// applyCounted begins to write a batch that changes the store, and returns the number of
// the change. The number is stored with it, so that a change that is lost later is found
// missing.
func (s *store) applyCounted(b *pebble.Batch, write func(*pebble.Batch) error) (number uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	number = s.changes + 1
	err = s.db.guard(func() error {
		if err := setUint(b, keyChanges, number); err != nil {
			return err
		}
		return write(b)
	})
	if err == nil {
		s.changes = number
	}
	return number, err
}

// sync makes durable what was applied without sync.
func (s *store) sync() {
	if s.db.opts.NoSync || !s.dirty.Swap(false) {
		return
	}
	// The error is kept by guard, and the next write returns it.
	_ = s.db.sync()
}

// Scan calls fn for each key with the prefix, in byte order, until fn returns
// false. fn may keep neither key's nor value's bytes.
func (s *store) Scan(prefix string, fn func(key string, value []byte) bool) (err error) {
	if err := s.life.beginCall(); err != nil {
		return err
	}
	defer s.life.endCall()
	lower := append([]byte(prefixStore), prefix...)
	it, err := s.db.newIter(lower, prefixEndKey(lower))
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
