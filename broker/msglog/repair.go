package msglog

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/wal"
)

// damagedPrefix begins the names of damaged files that Repair has kept.
const damagedPrefix = "damaged-"

// Repaired says what Repair has given up.
type Repaired struct {
	// FirstLost to LastLost are the seqs of acknowledged messages that are gone;
	// both 0 for none, and FirstLost is 1 if nothing at all is left.
	FirstLost, LastLost uint64
	// Changes is how many changes to sessions are gone.
	Changes uint64
	// Kept are the damaged files as they were, beside the log.
	Kept []string
}

// Repair makes a log usable again that Open refuses because acknowledged messages
// are missing at its end. It gives up what cannot be read of the write-ahead log,
// keeps the damaged files under other names, and sees to it that no lost message's
// seq is given to another: Read reports the gap, as a *CorruptError, until it is
// trimmed. It changes nothing in a log that Open accepts. Damage to older files
// does not keep a log from being opened and is not repaired. It returns ErrInUse
// if another process has the log open.
func Repair(ctx context.Context, dir string, opts Options) (*Repaired, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	r := &Repaired{}
	if err := r.repair(ctx, dir, opts); err != nil {
		return nil, fmt.Errorf("repair message log in %s: %w", dir, err)
	}
	return r, nil
}

func (r *Repaired) repair(ctx context.Context, dir string, opts Options) (err error) {
	// Held to the end: a broker that starts meanwhile must not open a log that is half cut.
	lock, err := pebble.LockDirectory(dir, opts.FS)
	if err != nil {
		return wrapOpenError(err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	probe := newDatabase(dir, opts)
	probe.lock = lock
	err = probe.checkEnd()
	if err == nil || !errors.Is(err, ErrCorrupt) {
		return err
	}
	want, err := readHead(opts.FS, dir)
	if err != nil {
		return err
	}
	if err := r.cutLogs(ctx, opts.FS, dir); err != nil {
		return err
	}
	db := newDatabase(dir, opts)
	db.lock = lock
	if err := db.open(); err != nil {
		return fmt.Errorf("what is left cannot be opened, restore it from a copy: %w", err)
	}
	if err := r.recordLoss(db, want); err != nil {
		return errors.Join(err, db.pebble.Close())
	}
	return errors.Join(db.pebble.Close(), db.disk.removeBallast())
}

// cutLogs cuts each file of the write-ahead log off where it cannot be read.
func (r *Repaired) cutLogs(ctx context.Context, fsys vfs.FS, dir string) error {
	logs, err := wal.Scan(wal.Dir{FS: fsys, Dirname: dir})
	if err != nil {
		return err
	}
	for _, l := range logs {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, path := l.SegmentLocation(0)
		size, damaged, err := readableSize(l)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if !damaged {
			continue
		}
		kept := fsys.PathJoin(dir, damagedPrefix+fsys.PathBase(path))
		if err := cutFile(fsys, path, kept, size); err != nil {
			return fmt.Errorf("cut %s: %w", path, err)
		}
		r.Kept = append(r.Kept, kept)
	}
	return nil
}

// readableSize returns how many bytes of a log file can be read from its
// beginning, and whether there is more.
func readableSize(l wal.LogicalLog) (size int64, damaged bool, err error) {
	reader := l.OpenForRead()
	defer func() { err = errors.Join(err, reader.Close()) }()
	for {
		rec, at, err := reader.NextRecord()
		if err == nil {
			_, err = io.Copy(io.Discard, rec)
		}
		switch {
		case errors.Is(err, io.EOF):
			return 0, false, nil
		case errors.Is(err, record.ErrInvalidChunk), errors.Is(err, record.ErrZeroedChunk), errors.Is(err, record.ErrUnexpectedEOF):
			return at.Physical, true, nil
		case err != nil:
			return 0, false, err
		}
	}
}

// cutFile keeps a file under another name and puts its first size bytes in its
// place.
func cutFile(fsys vfs.FS, path, kept string, size int64) (err error) {
	if err := fsys.Rename(path, kept); err != nil {
		return err
	}
	src, err := fsys.Open(kept)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := fsys.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = io.CopyN(dst, src, size)
	if err := errors.Join(err, dst.Sync(), dst.Close()); err != nil {
		return err
	}
	d, err := fsys.OpenDir(fsys.PathDir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// recordLoss stores which seqs are lost, so that they are not used again.
func (r *Repaired) recordLoss(db *database, want head) error {
	end, err := db.endOf()
	if err != nil {
		return err
	}
	if end.seq < want.seq {
		r.FirstLost, r.LastLost = end.seq+1, want.seq
	}
	r.Changes = want.changes - min(want.changes, end.changes)
	// If nothing at all is left this makes a new log.
	if err := migrate(db); err != nil {
		return err
	}
	_, _, last, err := db.readBounds()
	if err != nil {
		return err
	}
	next := max(last, want.seq)
	if end.seq != 0 {
		// HEAD may say too little if power was lost as well. What comes after a
		// loss begins where a new log would, at today's microsecond.
		next = max(next, uint64(max(db.opts.Now().UnixMicro(), 0))) //nolint:gosec // not negative
	}
	if err := db.putUint(keyEndOfLost, next); err != nil {
		return err
	}
	return db.putUint(keyChanges, max(end.changes, want.changes))
}
