package msglog

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// A mid that was forgotten with its message may be used again before the message is
// removed from the disk. Then its key leads to the new message, and must not go with the
// old one. reusedMids knows of these; it is empty nearly always.
type reusedMids struct {
	mu  sync.Mutex // held while what it guards and the database change together
	all map[string]reusedMid
}

// reusedMid is a mid that leads to a new message while its old one is on disk.
type reusedMid struct {
	key string
	old uint64 // the forgotten message
	use        // the new one
}

// note writes a batch with new messages and remembers which of their mids are in use
// again.
func (m *reusedMids) note(mids []reusedMid, b *pebble.Batch, write func(*pebble.Batch) error) error {
	if len(mids) == 0 {
		return write(b)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all == nil {
		m.all = make(map[string]reusedMid)
	}
	for _, mid := range mids {
		m.all[mid.key] = mid
	}
	return write(b)
}

// remove writes a batch that removes the messages before next with their mids, but not
// the mids that are in use again.
func (m *reusedMids) remove(b *pebble.Batch, next uint64, write func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, mid := range m.all {
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
	for key, mid := range m.all {
		if mid.old < next {
			delete(m.all, key)
		}
	}
	return nil
}
