package msglog

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// Pebble is a Log on one machine's disk. DESIGN.md describes what it stores and
// why; the guarantees are those of Log and of this package.
//
// It has one part for each task. The applier decides about entries. The committer waits
// for the disk. The reader reads. The feeds send entries to followers. The remover removes
// messages that are not kept any more. The store is the state store. All share the database, the lifecycle and the bounds.
type Pebble struct {
	*reader

	applying  sync.Mutex // guards applier, and the order of commits
	applier   applier
	committer *committer
	feeds     *feeds
	remover   *remover
	store     *store
}

var _ Log = (*Pebble)(nil)

// Open opens the log in the directory, or makes a new one. It returns ErrInUse
// if another process has it open, ErrNewer if a newer version wrote it, ErrFull
// if the disk has no room to open it, and a *CorruptError or ErrCorrupt, changing
// nothing, if acknowledged messages are missing at its end. What had been written
// without having been acknowledged may be there or not; what is there after Open is
// durable.
func Open(dir string, opts Options) (*Pebble, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	l := newPebble(newDatabase(dir, opts))
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open message log in %s: %w", dir, err)
	}
	go l.committer.run()
	l.life.background.Add(3)
	go l.runMaintenance()
	go l.remover.run()
	go l.applier.filter.build(l.bounds.durable.Load())
	return l, nil
}

// newPebble makes the parts of a log whose database is not open yet.
func newPebble(db *database) *Pebble {
	reader := newReader(db)
	l := &Pebble{
		reader:  reader,
		feeds:   &feeds{reader: reader},
		remover: newRemover(reader),
		store:   &store{db: db, life: reader.life},
	}
	l.committer = newCommitter(reader, l.feeds, l.remover)
	return l
}

func (l *Pebble) open() (err error) {
	if err := l.db.opts.FS.MkdirAll(l.db.dir, 0o750); err != nil {
		return err
	}
	if err := l.db.checkEnd(); err != nil {
		return err
	}
	if err := l.db.open(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.db.pebble.Close())
		}
	}()
	// The database is locked: nobody else writes to the directory.
	if err := removeSnapshots(l.db.opts.FS, l.db.dir); err != nil {
		return err
	}
	l.db.disk.checkFreeSpace()
	if err := l.prepare(); err != nil {
		return err
	}
	end := head{l.bounds.durable.Load(), l.store.changes}
	l.db.head, err = openHead(l.db.opts.FS, l.db.dir, end)
	return err
}

// prepare migrates the database to the current format and reads where the log begins
// and ends.
func (l *Pebble) prepare() error {
	if err := migrate(l.db); err != nil {
		return err
	}
	floor, first, last, err := l.db.readBounds()
	if err != nil {
		return err
	}
	l.bounds.set(floor, first, last)
	l.remover.reusedFrom = first
	if l.store.changes, _, err = l.db.getUint(keyChanges); err != nil {
		return err
	}
	if err := l.applier.init(l); err != nil {
		return err
	}
	l.committer.decided = l.applier.decided
	return nil
}

// Close makes everything durable and releases the log. Calls that are running
// end with ErrClosed or as usual; Close waits for them.
func (l *Pebble) Close() error {
	if !l.life.close() {
		return nil
	}
	l.committer.close()
	return l.db.close()
}

// runMaintenance syncs the state store and checks the free space, each at its interval.
func (l *Pebble) runMaintenance() {
	defer l.life.background.Done()
	sync := time.NewTicker(time.Second)
	defer sync.Stop()
	disk := time.NewTicker(l.db.opts.DiskPoll)
	defer disk.Stop()
	for {
		select {
		case <-l.life.stop:
			return
		case <-sync.C:
			l.store.sync()
		case <-disk.C:
			l.db.disk.checkFreeSpace()
		}
	}
}
