package msglog

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// formatVersion is the version of the key space and of what is stored in it.
const formatVersion = 3

// migration brings a log from one version to the next. It may be interrupted at
// any point and is then run again from the beginning.
type migration func(*database) error

// migrations[v] brings a log of version v to version v+1.
var migrations = map[uint64]migration{
	// Version 2 has records with properties. Records of version 1 are read as they are.
	// The number makes older releases refuse the log; they would report the new records
	// as damage.
	1: func(*database) error { return nil },
	// Version 3 keeps what the entries so far have led to.
	2: storeDecided,
}

// storeDecided stores what version 3 keeps of the entries so far. It takes that from the
// bounds and the newest message, since version 2 had no entries.
func storeDecided(db *database) error {
	_, first, last, err := db.readBounds()
	if err != nil {
		return err
	}
	d := decided{first: first}
	r := newReader(db)
	r.bounds.set(first, first, last)
	err = r.Read(context.Background(), max(last, 1)-1, last, func(r *Record) bool {
		d.ts = r.TS
		return false
	})
	// Where the newest message cannot be read, TS begins with the next one.
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return err
	}
	return db.guard(func() error { return db.pebble.Set([]byte(keyDecided), d.append(nil), pebble.Sync) })
}

// migrate makes a new log, or brings an older one to this version. It changes
// nothing in one that a newer version has written.
func migrate(db *database) error {
	return migrateTo(db, formatVersion, migrations)
}

func migrateTo(db *database, target uint64, steps map[uint64]migration) error {
	version, ok, err := db.getUint(keyFormat)
	if err != nil {
		return err
	}
	if !ok {
		if err := create(db, target); err != nil {
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
		db.log.Info("message log is being migrated", "dir", db.dir, "from", version, "to", version+1)
		if err := step(db); err != nil {
			return fmt.Errorf("migrate from version %d to %d: %w", version, version+1, err)
		}
		// The migration's own changes come before it in the write-ahead log, so
		// they are durable when this is.
		if err := db.putUint(keyFormat, version+1); err != nil {
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
func create(db *database, version uint64) error {
	b := db.pebble.NewBatch()
	// A log that replaces a lost one begins with a higher seq than the lost one had,
	// if that stored no more than a million messages a second on average.
	first := db.opts.FirstSeq
	if first == 0 {
		first = uint64(max(db.opts.Now().UnixMicro(), 1)) //nolint:gosec // positive
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
	if err := db.guard(func() error { return db.pebble.Apply(b, pebble.Sync) }); err != nil {
		return err
	}
	return b.Close()
}
