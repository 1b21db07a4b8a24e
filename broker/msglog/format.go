package msglog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// formatVersion is the version of the key space and of what is stored in it.
const formatVersion = 1

// create makes the bounds of a new log: durable before anything is appended.
func (l *Pebble) create() error {
	b := l.db.NewBatch()
	// A log that is lost and made anew goes on with higher numbers than the lost
	// one had, as long as that took no more than a million messages a second on
	// average.
	first := uint64(max(l.opts.Now().UnixMicro(), 1)) //nolint:gosec // positive
	if err := setUint(b, keyFormat, formatVersion); err != nil {
		return err
	}
	if err := setUint(b, keyFirst, first); err != nil {
		return err
	}
	if err := l.guard(func() error { return l.db.Apply(b, pebble.Sync) }); err != nil {
		return err
	}
	return b.Close()
}

func setUint(b *pebble.Batch, key string, v uint64) error {
	return b.Set([]byte(key), binary.BigEndian.AppendUint64(nil, v), nil)
}

// getUint reads a number; ok is false if there is none.
func (l *Pebble) getUint(key string) (v uint64, ok bool, err error) {
	value, closer, err := l.db.Get([]byte(key))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, false, nil
	} else if err != nil {
		return 0, false, fmt.Errorf("read %q: %w", key, err)
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	if len(value) != 8 {
		return 0, false, fmt.Errorf("%w: %q has %d bytes", ErrCorrupt, key, len(value))
	}
	return binary.BigEndian.Uint64(value), true, nil
}
