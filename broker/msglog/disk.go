package msglog

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const ballastName = "BALLAST"

// fullRetryDelay is how long a write waits before it is tried again, when the disk is full
// and there is no ballast to release.
const fullRetryDelay = 50 * time.Millisecond

// minFreeToOpen is how many bytes opening the log writes, besides the contents of its
// write-ahead log.
const minFreeToOpen = 1 << 20

// diskGuard keeps the database from filling the disk, since a database that meets a full
// disk may fail. It refuses new messages while there is still room to finish running
// writes. It also keeps a ballast file, which it removes if the disk is full all the same.
type diskGuard struct {
	fs      vfs.FS // the disk's own, not the one that reports to the guard
	dir     string
	log     *slog.Logger
	minFree uint64
	ballast int64

	full atomic.Bool
	free atomic.Uint64 // at the last check

	mu                 sync.Mutex // guards what follows; nothing is locked under it
	hasBallast         bool       // the ballast is there
	freeUnknown        bool       // the file system does not tell how much is free
	lastWarned         time.Time  // when it was last logged that there is no ballast left
	appendedSinceCheck uint64     // bytes since the last check; guarded by Pebble.applying
}

func newDiskGuard(o Options, dir string) *diskGuard {
	return &diskGuard{fs: o.FS, dir: dir, log: o.Logger, minFree: o.MinFree, ballast: o.Ballast}
}

// guardedFS returns the file system on which the database writes.
func (g *diskGuard) guardedFS() vfs.FS { return vfs.OnDiskFull(g.fs, g.releaseBallast) }

// releaseBallast removes the ballast. The write that found the disk full is tried once
// more when it returns.
func (g *diskGuard) releaseBallast() {
	g.full.Store(true)
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.hasBallast {
		if now := time.Now(); now.Sub(g.lastWarned) > time.Minute {
			g.lastWarned = now
			g.log.Error("disk is full and there is no ballast left", "dir", g.dir)
		}
		// Pebble repeats flushes without a pause while the disk is full.
		time.Sleep(fullRetryDelay)
		return
	}
	g.hasBallast = false
	if err := g.fs.Remove(g.ballastPath()); err != nil {
		g.log.Error("disk is full and the ballast cannot be removed", "dir", g.dir, "err", err)
		return
	}
	g.log.Error("disk is full: messages are refused until there is room", "dir", g.dir, "ballast_released", g.ballast)
}

func (g *diskGuard) ballastPath() string { return g.fs.PathJoin(g.dir, ballastName) }

// checkFreeSpace asks how much is free and decides whether messages are accepted.
func (g *diskGuard) checkFreeSpace() {
	usage, err := g.fs.GetDiskUsage(g.dir)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		// The free space is not known, so only the ballast protects the log.
		if !g.freeUnknown {
			g.log.Warn("free space on the disk is not known", "dir", g.dir, "err", err)
		}
		g.freeUnknown = true
		g.ensureBallast()
		g.full.Store(!g.hasBallast && g.ballast > 0)
		return
	}
	g.freeUnknown = false
	g.free.Store(usage.AvailBytes)
	// After the disk was full, more than the minimum is required, so that the state does
	// not change back and forth. The bytes of a released ballast alone do not suffice.
	enough, missing := g.minFree, uint64(0)
	if !g.hasBallast && g.ballast > 0 {
		missing = uint64(g.ballast)
	}
	if g.full.Load() {
		enough += (g.minFree + missing) / 4
	}
	if usage.AvailBytes < enough+missing {
		// Room for the minimum without the ballast suffices if the ballast was never
		// released: otherwise a small disk would refuse all messages.
		if usage.AvailBytes < enough || g.full.Load() {
			if !g.full.Swap(true) {
				g.log.Error("disk is nearly full: messages are refused until there is room",
					"dir", g.dir, "free", usage.AvailBytes, "min_free", g.minFree)
			}
			return
		}
	} else {
		g.ensureBallast()
	}
	if g.full.Swap(false) {
		g.log.Info("disk has room again: messages are accepted", "dir", g.dir, "free", usage.AvailBytes)
	}
}

// ensureBallast makes the ballast if it is not there. It runs under mu.
func (g *diskGuard) ensureBallast() {
	if g.hasBallast || g.ballast <= 0 {
		return
	}
	if err := g.makeBallast(); err != nil {
		g.log.Warn("ballast cannot be made", "dir", g.dir, "size", g.ballast, "err", err)
		return
	}
	g.hasBallast = true
}

func (g *diskGuard) makeBallast() (err error) {
	f, err := g.fs.Create(g.ballastPath(), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, g.removeBallast())
		}
	}()
	if f.Preallocate(0, g.ballast) != nil {
		// Not every file system can; zeros take as much room.
		zeros := make([]byte, 1<<20)
		for left := g.ballast; left > 0; left -= int64(len(zeros)) {
			if _, err := f.Write(zeros[:min(left, int64(len(zeros)))]); err != nil {
				return err
			}
		}
	}
	return f.Sync()
}

// checkRoomToOpen returns ErrFull if the disk may not have the room that opening the log
// needs: opening writes the contents of the write-ahead log to a table. Without the check
// Pebble would retry for ever.
func (g *diskGuard) checkRoomToOpen() error {
	names, err := g.fs.List(g.dir)
	if err != nil {
		return err
	}
	need := uint64(minFreeToOpen)
	for _, name := range names {
		if strings.HasSuffix(name, ".log") {
			if info, err := g.fs.Stat(g.fs.PathJoin(g.dir, name)); err == nil {
				need += uint64(info.Size()) //nolint:gosec // a size
			}
		}
	}
	usage, err := g.fs.GetDiskUsage(g.dir)
	if err != nil {
		return nil //nolint:nilerr // where it is not known, opening is tried
	}
	if usage.AvailBytes < need {
		return fmt.Errorf("%w: %d bytes are free in %s, %d are needed to open it", ErrFull, usage.AvailBytes, g.dir, need)
	}
	return nil
}

// removeBallast removes what is left of an earlier ballast.
func (g *diskGuard) removeBallast() error {
	if err := g.fs.Remove(g.ballastPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// checkRoom returns ErrFull if a batch of about size bytes may not be appended.
func (g *diskGuard) checkRoom(size int) error {
	// Much can be written between two polls.
	if g.appendedSinceCheck += uint64(size); g.appendedSinceCheck > g.minFree/8 { //nolint:gosec // a size
		g.appendedSinceCheck = 0
		g.checkFreeSpace()
	}
	if g.full.Load() {
		return fmt.Errorf("%w: %d bytes are free in %s, %d are needed", ErrFull, g.free.Load(), g.dir, g.minFree)
	}
	return nil
}
