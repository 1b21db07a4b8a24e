package msglog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// formatVersion is the version of the key space and of what is stored in it.
const formatVersion = 3

// migration brings a log from one version to the next. It may be interrupted at
// any point and is then run again from the beginning.
type migration func(*Pebble) error

// migrations[v] brings a log of version v to version v+1.
var migrations = map[uint64]migration{
	// Version 2 has records with properties. Those of version 1 are read as they are;
	// the number keeps releases away that would take the new ones for damage.
	1: func(*Pebble) error { return nil },
	// Version 3 keeps what the entries so far have led to.
	2: (*Pebble).storeDecided,
}

// storeDecided makes of the bounds and the newest message what version 3 keeps of the
// entries so far. There were none: an entry was whatever was appended at once.
func (l *Pebble) storeDecided() error {
	_, first, last, err := l.bounds()
	if err != nil {
		return err
	}
	d := decided{first: first}
	l.first.Store(first)
	l.durable.Store(last)
	err = l.Read(context.Background(), max(last, 1)-1, last, func(r *Record) bool {
		d.ts = r.TS
		return false
	})
	// Where the newest message cannot be read, TS begins with the next one.
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return err
	}
	return l.guard(func() error { return l.db.Set([]byte(keyDecided), d.append(nil), pebble.Sync) })
}

// migrate makes a new log, or brings an older one to this version. It changes
// nothing in one that a newer version has written.
func (l *Pebble) migrate() error {
	return l.migrateTo(formatVersion, migrations)
}

func (l *Pebble) migrateTo(target uint64, steps map[uint64]migration) error {
	version, ok, err := l.getUint(keyFormat)
	if err != nil {
		return err
	}
	if !ok {
		if err := l.create(target); err != nil {
			return fmt.Errorf("create: %w", err)
		}
		return nil
	}
	if err := checkVersion(version, target); err != nil {
		return err
	}
	for ; version < target; version++ {
		step := steps[version]
		if step == nil {
			return fmt.Errorf("no way from version %d of the message log to %d: use a release in between", version, target)
		}
		l.log.Info("message log is being migrated", "dir", l.dir, "from", version, "to", version+1)
		if err := step(l); err != nil {
			return fmt.Errorf("migrate from version %d to %d: %w", version, version+1, err)
		}
		// The migration's own changes come before it in the write-ahead log, so
		// they are durable when this is.
		if err := l.putUint(keyFormat, version+1); err != nil {
			return err
		}
	}
	return nil
}

// checkVersion returns ErrNewer if a log is newer than what this release knows.
func checkVersion(version, known uint64) error {
	if version > known {
		return fmt.Errorf("%w: its format is version %d, this release knows up to %d: use the newer release",
			ErrNewer, version, known)
	}
	return nil
}

// create makes the bounds of a new log: durable before anything is appended.
func (l *Pebble) create(version uint64) error {
	b := l.db.NewBatch()
	// A log that is lost and made anew goes on with higher numbers than the lost
	// one had, as long as that took no more than a million messages a second on
	// average.
	first := l.opts.FirstSeq
	if first == 0 {
		first = uint64(max(l.opts.Now().UnixMicro(), 1)) //nolint:gosec // positive
	}
	if err := setUint(b, keyFormat, version); err != nil {
		return err
	}
	if err := setUint(b, keyFirst, first); err != nil {
		return err
	}
	d := decided{first: first}
	if err := b.Set([]byte(keyDecided), d.append(nil), nil); err != nil {
		return err
	}
	if err := l.guard(func() error { return l.db.Apply(b, pebble.Sync) }); err != nil {
		return err
	}
	return b.Close()
}

// putUint stores a number durably.
func (l *Pebble) putUint(key string, v uint64) error {
	return l.guard(func() error {
		return l.db.Set([]byte(key), binary.BigEndian.AppendUint64(nil, v), pebble.Sync)
	})
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
