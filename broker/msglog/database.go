package msglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// database is the Pebble database in a log's directory, with what belongs to the same
// files: the disk guard, HEAD, and the failure that ends writing. Every write goes
// through guard.
type database struct {
	opts    Options
	log     *slog.Logger
	dir     string
	lock    *pebble.Lock // of dir, if it is held for longer than the database is open; else nil
	pebble  *pebble.DB   // nil until the database is open
	disk    *diskGuard   // nil in a database that is open for reading only
	head    *headFile    // nil until the log is open
	failure failure
}

func newDatabase(dir string, opts Options) *database {
	d := &database{opts: opts, log: opts.Logger, dir: dir}
	d.failure.onFailure = opts.OnFailure
	return d
}

// open opens the database for writing.
func (d *database) open() (err error) {
	d.disk = newDiskGuard(d.opts, d.dir)
	if err := d.disk.removeBallast(); err != nil {
		return err
	}
	if err := d.disk.checkRoomToOpen(); err != nil {
		return err
	}
	cache := d.opts.newCache()
	defer cache.Unref() // the database holds its own reference
	opts := d.opts.pebble(d.pebbleLogger(), cache)
	opts.FS, opts.Lock = d.disk.guardedFS(), d.lock
	opts.EventListener = d.listener()
	// Pebble makes durable what it finds in the write-ahead log before it returns.
	if d.pebble, err = pebble.Open(d.dir, opts); err != nil {
		return wrapOpenError(err)
	}
	return nil
}

// openReadOnly opens the database for reading only.
func (d *database) openReadOnly() (err error) {
	cache := d.opts.newCache()
	defer cache.Unref()
	opts := d.opts.pebble(d.pebbleLogger(), cache)
	opts.ReadOnly, opts.Lock = true, d.lock
	opts.ErrorIfNotExists = true
	// The version stays what it is on disk: reading does not migrate.
	opts.FormatMajorVersion = pebble.FormatMinSupported
	if d.pebble, err = pebble.Open(d.dir, opts); err != nil {
		return wrapOpenError(err)
	}
	return nil
}

// close makes everything durable and closes the database.
func (d *database) close() error {
	defer func() { _ = d.head.close() }() // it is written, and not relied upon to be synced
	if err := d.failure.get(); err != nil {
		d.abandon()
		return err
	}
	// Nothing written without sync is lost by an orderly end.
	if err := d.sync(); err != nil {
		return err
	}
	if err := d.guard(d.pebble.Close); err != nil {
		return fmt.Errorf("close message log: %w", err)
	}
	if err := d.disk.removeBallast(); err != nil {
		return fmt.Errorf("close message log: %w", err)
	}
	return nil
}

// abandonTimeout is how long abandon waits for Pebble.
const abandonTimeout = 5 * time.Second

// abandon closes a failed database as far as possible. Pebble may hold its locks for ever
// after a panic, so the wait is bounded.
func (d *database) abandon() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		defer func() { _ = recover() }() // what failed was reported when it did
		_ = d.pebble.Close()
	}()
	select {
	case <-closed:
	case <-time.After(abandonTimeout):
		d.log.Warn("failed message log could not be closed; the process must end", "dir", d.dir)
	}
}

// applyAsync begins to write the batch. The batch's SyncWait returns when it is durable.
func (d *database) applyAsync(b *pebble.Batch) error {
	if d.opts.NoSync {
		return d.pebble.Apply(b, pebble.NoSync)
	}
	return d.pebble.ApplyNoSyncWait(b, pebble.Sync)
}

// sync makes durable what was written without sync.
func (d *database) sync() error {
	return d.guard(func() error { return d.pebble.LogData(nil, pebble.Sync) })
}

// newIter returns an iterator over the keys from lower up to, but not including, upper.
func (d *database) newIter(lower, upper []byte) (*pebble.Iterator, error) {
	return d.pebble.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
}

// newPrefixIter returns an iterator over the keys that begin with prefix.
func (d *database) newPrefixIter(prefix string) (*pebble.Iterator, error) {
	return d.newIter([]byte(prefix), prefixEndKey([]byte(prefix)))
}

// newBlockIter returns an iterator over the blocks with messages after the given seq.
func (d *database) newBlockIter(after uint64) (*pebble.Iterator, error) {
	return d.newIter(blockKey(nil, after+1), prefixEndKey([]byte(prefixBlock)))
}

// putUint stores a number durably.
func (d *database) putUint(key string, v uint64) error {
	return d.guard(func() error {
		return d.pebble.Set([]byte(key), binary.BigEndian.AppendUint64(nil, v), pebble.Sync)
	})
}

func setUint(b *pebble.Batch, key string, v uint64) error {
	return b.Set([]byte(key), binary.BigEndian.AppendUint64(nil, v), nil)
}

// getUint reads a number; ok is false if there is none.
func (d *database) getUint(key string) (v uint64, ok bool, err error) {
	value, closer, err := d.pebble.Get([]byte(key))
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
