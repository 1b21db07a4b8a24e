package msglog

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// A mid that was forgotten with its message may be used again before the message is
// removed from the disk. Then its key leads to the new message, and must not go with the
// old one. reusedMids has these mids; it is nearly always empty.
type reusedMids struct {
	mu    sync.Mutex // held while what it guards and the database change together
	byKey map[string]reusedMid
}

// reusedMid is a mid that leads to a new message while its old one is on disk.
type reusedMid struct {
	key string
	old uint64 // the forgotten message
	use        // the new one
}

// applyNew writes a batch with new messages and remembers which of their mids are in use
// again.
func (m *reusedMids) applyNew(mids []reusedMid, b *pebble.Batch, write func(*pebble.Batch) error) error {
	if len(mids) == 0 {
		return write(b)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byKey == nil {
		m.byKey = make(map[string]reusedMid)
	}
	for _, mid := range mids {
		m.byKey[mid.key] = mid
	}
	return write(b)
}

// applyRemoval writes a batch that removes the messages before next with their mids, but not
// the mids that are in use again.
func (m *reusedMids) applyRemoval(b *pebble.Batch, next uint64, write func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, mid := range m.byKey {
		if mid.seq < next {
			continue // its new message goes as well
		}
		if err := b.Set([]byte(mid.key), appendMid(nil, mid.use), nil); err != nil {
			return err
		}
	}
	if err := write(); err != nil {
		return err
	}
	for key, mid := range m.byKey {
		if mid.old < next {
			delete(m.byKey, key)
		}
	}
	return nil
}
