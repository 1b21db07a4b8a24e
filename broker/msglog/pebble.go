package msglog

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Pebble is a Log on one machine's disk. DESIGN.md describes what it stores and
// why; the guarantees are those of Log and of this package.
type Pebble struct {
	opts Options
	log  *slog.Logger
	dir  string
	lock *pebble.Lock // of dir, if it is held for longer than the database is open; else nil
	db   *pebble.DB

	first     atomic.Uint64 // oldest message that is kept
	floor     atomic.Uint64 // oldest message that is on disk: before first until the rest is removed
	durable   atomic.Uint64 // newest message that readers may see
	applying  sync.Mutex    // guards applier, and the order of commits
	applier   applier
	commits   chan *pending
	committed chan struct{} // closed when the committer has ended
	feeds     feeds

	placeMu sync.Mutex
	place   decided // what the entries that are durable have led to

	removing   sync.Mutex    // held while messages are removed from the disk
	trimmable  chan struct{} // has a value when there is something to remove
	reused     reusedMids
	reusedFrom uint64 // it is not known which mids of messages before this one are in use again

	failure failure
	head    *headFile
	disk    *diskGuard
	damage  damage

	useMu  sync.Mutex // guards closed and, with it, that using grows no more
	closed bool
	using  sync.WaitGroup // calls that are using db
	stop   chan struct{}  // closed by Close, ends the background work
	bg     sync.WaitGroup

	storeMu    sync.Mutex  // guards changes and the order in which they are written
	changes    uint64      // changes to the store with sync
	storeDirty atomic.Bool // the store was changed without sync
}

var _ Log = (*Pebble)(nil)

// Open opens the log in the directory, or makes a new one. It returns ErrInUse
// if another process has it open, ErrNewer if a newer version wrote it, ErrFull
// if the disk has no room to open it, and a *CorruptError or ErrCorrupt, changing
// nothing, if acknowledged messages are missing at its end. What had been written without having been acknowledged may
// be there or not; what is there after Open is durable.
func Open(dir string, opts Options) (*Pebble, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	l := newPebble(dir, opts)
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open message log in %s: %w", dir, err)
	}
	go l.commitLoop()
	l.bg.Add(3)
	go l.background()
	go l.removeLoop()
	go l.applier.filter.build(l.durable.Load())
	return l, nil
}

func newPebble(dir string, opts Options) *Pebble {
	l := &Pebble{
		opts: opts, log: opts.Logger, dir: dir,
		commits: make(chan *pending, 256), committed: make(chan struct{}), stop: make(chan struct{}),
		trimmable: make(chan struct{}, 1),
	}
	l.failure.onFailure = opts.OnFailure
	return l
}

func (l *Pebble) open() (err error) {
	if err := l.opts.FS.MkdirAll(l.dir, 0o750); err != nil {
		return err
	}
	if err := l.checkEnd(); err != nil {
		return err
	}
	if err := l.openDB(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.db.Close())
		}
	}()
	// Here the directory is known to be ours.
	if err := removeSnapshots(l.opts.FS, l.dir); err != nil {
		return err
	}
	l.disk.look()
	if err := l.prepare(); err != nil {
		return err
	}
	l.head, err = openHead(l.opts.FS, l.dir, head{l.durable.Load(), l.changes})
	return err
}

// openDB opens the database for writing.
func (l *Pebble) openDB() (err error) {
	l.disk = newDiskGuard(l.opts, l.dir)
	if err := l.disk.removeBallast(); err != nil {
		return err
	}
	if err := l.disk.roomToOpen(); err != nil {
		return err
	}
	cache := l.opts.newCache()
	defer cache.Unref() // the database holds its own reference
	opts := l.opts.pebble(l.pebbleLogger(), cache)
	opts.FS, opts.Lock = l.disk.wrap(), l.lock
	opts.EventListener = l.listener()
	// Pebble makes durable what it finds in the write-ahead log before it returns.
	if l.db, err = pebble.Open(l.dir, opts); err != nil {
		return openError(err)
	}
	return nil
}

// prepare brings the database into today's format and reads where the log begins
// and ends.
func (l *Pebble) prepare() error {
	if err := l.migrate(); err != nil {
		return err
	}
	floor, first, last, err := l.bounds()
	if err != nil {
		return err
	}
	l.floor.Store(floor)
	l.first.Store(first)
	l.durable.Store(last)
	l.reusedFrom = first
	if l.changes, _, err = l.getUint(keyChanges); err != nil {
		return err
	}
	if err := l.applier.init(l); err != nil {
		return err
	}
	l.place = l.applier.decided
	return nil
}

// bounds reads the bounds of the log from the database: the oldest message that is on
// disk, the oldest that is kept, and the newest.
func (l *Pebble) bounds() (floor, first, last uint64, err error) {
	floor, ok, err := l.getUint(keyFirst)
	if err != nil {
		return 0, 0, 0, err
	}
	if !ok || floor == 0 {
		return 0, 0, 0, fmt.Errorf("%w: no %s", ErrCorrupt, keyFirst)
	}
	d, _, err := l.readDecided()
	if err != nil {
		return 0, 0, 0, err
	}
	first = max(floor, d.first)
	end, _, err := l.getUint(keyEndOfLost)
	if err != nil {
		return 0, 0, 0, err
	}
	last = max(first-1, end)
	it, err := l.db.NewIter(&pebble.IterOptions{
		LowerBound: []byte(prefixBlock), UpperBound: prefixEndKey([]byte(prefixBlock)),
	})
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if it.Last() {
		newest, err := keySeq(it.Key())
		if err != nil {
			return 0, 0, 0, err
		}
		last = max(last, newest)
	}
	return floor, first, last, it.Error()
}

// use says that the database is about to be used; done must be called if it
// returns nil.
func (l *Pebble) use() error {
	l.useMu.Lock()
	defer l.useMu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.using.Add(1)
	return nil
}

func (l *Pebble) done() { l.using.Done() }

// Bounds returns the seq of the oldest message that is still there and that of
// the newest that is durable.
func (l *Pebble) Bounds() (first, last uint64) {
	// In this order: a trim in between can only make first too small, never
	// larger than last+1.
	first = l.first.Load()
	return first, l.durable.Load()
}

// Close makes everything durable and releases the log. Calls that are running
// end with ErrClosed or as usual; Close waits for them.
func (l *Pebble) Close() error {
	l.useMu.Lock()
	if l.closed {
		l.useMu.Unlock()
		return nil
	}
	l.closed = true
	l.useMu.Unlock()

	close(l.stop)
	l.using.Wait()
	l.bg.Wait()
	close(l.commits)
	<-l.committed
	return l.closeDB()
}

func (l *Pebble) closeDB() error {
	defer func() { _ = l.head.close() }() // it is written, and not relied upon to be synced
	if err := l.failure.get(); err != nil {
		l.abandon()
		return err
	}
	// Nothing written without sync is to be lost by an orderly end.
	if err := l.guard(func() error { return l.db.LogData(nil, pebble.Sync) }); err != nil {
		return err
	}
	if err := l.guard(l.db.Close); err != nil {
		return fmt.Errorf("close message log: %w", err)
	}
	if err := l.disk.removeBallast(); err != nil {
		return fmt.Errorf("close message log: %w", err)
	}
	return nil
}

// abandon closes the database of a failed log as far as that goes. Where Pebble
// gave up it may hold its locks for ever, and it is not waited for for ever.
func (l *Pebble) abandon() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		defer func() { _ = recover() }() // what failed was reported when it did
		_ = l.db.Close()
	}()
	select {
	case <-closed:
	case <-time.After(abandonAfter):
		l.log.Warn("failed message log could not be closed; the process must end", "dir", l.dir)
	}
}

const abandonAfter = 5 * time.Second

func (l *Pebble) background() {
	defer l.bg.Done()
	sync := time.NewTicker(time.Second)
	defer sync.Stop()
	look := time.NewTicker(l.opts.DiskPoll)
	defer look.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-sync.C:
			l.syncStore()
		case <-look.C:
			l.disk.look()
		}
	}
}
