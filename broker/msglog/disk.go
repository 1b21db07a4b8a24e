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

// fullPause is how long a write waits that has found the disk full, without a ballast
// to give up, before it is tried again.
const fullPause = 50 * time.Millisecond

// openRoom is what opening the log writes besides what is in its write-ahead log.
const openRoom = 1 << 20

// diskGuard keeps the log from running into a full disk, which a database cannot
// do without risk: it refuses new messages while there is still room to finish
// what has been begun, and holds a ballast for when that was too late.
type diskGuard struct {
	fs      vfs.FS // the disk's own, not the one that reports to the guard
	dir     string
	log     *slog.Logger
	minFree uint64
	ballast int64

	full atomic.Bool
	free atomic.Uint64 // at the last look

	mu       sync.Mutex // guards what follows; nothing is locked under it
	held     bool       // the ballast is there
	unknown  bool       // the file system does not tell how much is free
	told     time.Time  // when it was last logged that there is no ballast left
	appended uint64     // bytes since the last look; the appender's alone
}

func newDiskGuard(o Options, dir string) *diskGuard {
	return &diskGuard{fs: o.FS, dir: dir, log: o.Logger, minFree: o.MinFree, ballast: o.Ballast}
}

// wrap returns the file system on which the database writes.
func (g *diskGuard) wrap() vfs.FS { return vfs.OnDiskFull(g.fs, g.release) }

// release gives up the ballast. The write that found the disk full is tried once
// more when it returns.
func (g *diskGuard) release() {
	g.full.Store(true)
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.held {
		if now := time.Now(); now.Sub(g.told) > time.Minute {
			g.told = now
			g.log.Error("disk is full and there is no ballast left", "dir", g.dir)
		}
		// Pebble tries flushes again at once, for as long as the disk is full.
		time.Sleep(fullPause)
		return
	}
	g.held = false
	if err := g.fs.Remove(g.ballastPath()); err != nil {
		g.log.Error("disk is full and the ballast cannot be removed", "dir", g.dir, "err", err)
		return
	}
	g.log.Error("disk is full: messages are refused until there is room", "dir", g.dir, "ballast_released", g.ballast)
}

func (g *diskGuard) ballastPath() string { return g.fs.PathJoin(g.dir, ballastName) }

// look finds out how much is free and decides whether messages are accepted.
func (g *diskGuard) look() {
	usage, err := g.fs.GetDiskUsage(g.dir)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		// Without knowing, the ballast is what is left.
		if !g.unknown {
			g.log.Warn("free space on the disk is not known", "dir", g.dir, "err", err)
		}
		g.unknown = true
		g.holdBallast()
		g.full.Store(!g.held && g.ballast > 0)
		return
	}
	g.unknown = false
	g.free.Store(usage.AvailBytes)
	// After it was full some more than what is needed, so that it does not go to
	// and fro: giving up the ballast alone is not room.
	enough, missing := g.minFree, uint64(0)
	if !g.held && g.ballast > 0 {
		missing = uint64(g.ballast)
	}
	if g.full.Load() {
		enough += (g.minFree + missing) / 4
	}
	if usage.AvailBytes < enough+missing {
		// Room for the minimum but not for the ballast will do if it was never
		// released: a small disk is no reason to refuse everything.
		if usage.AvailBytes < enough || g.full.Load() {
			if !g.full.Swap(true) {
				g.log.Error("disk is nearly full: messages are refused until there is room",
					"dir", g.dir, "free", usage.AvailBytes, "min_free", g.minFree)
			}
			return
		}
	} else {
		g.holdBallast()
	}
	if g.full.Swap(false) {
		g.log.Info("disk has room again: messages are accepted", "dir", g.dir, "free", usage.AvailBytes)
	}
}

// holdBallast makes the ballast if it is not there. It runs under mu.
func (g *diskGuard) holdBallast() {
	if g.held || g.ballast <= 0 {
		return
	}
	if err := g.makeBallast(); err != nil {
		g.log.Warn("ballast cannot be made", "dir", g.dir, "size", g.ballast, "err", err)
		return
	}
	g.held = true
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

// roomToOpen returns ErrFull if the disk may not have the room that opening the log takes:
// what is in the write-ahead log becomes a table then. Without it Pebble would try for as
// long as it takes.
func (g *diskGuard) roomToOpen() error {
	names, err := g.fs.List(g.dir)
	if err != nil {
		return err
	}
	need := uint64(openRoom)
	for _, name := range names {
		if strings.HasSuffix(name, ".log") {
			if info, err := g.fs.Stat(g.fs.PathJoin(g.dir, name)); err == nil {
				need += uint64(info.Size()) //nolint:gosec // a size
			}
		}
	}
	usage, err := g.fs.GetDiskUsage(g.dir)
	if err != nil {
		return nil //nolint:nilerr // where it is not known, trying tells
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

// admit tells whether a batch of about size bytes may be appended.
func (g *diskGuard) admit(size int) error {
	// Much can be written between two polls.
	if g.appended += uint64(size); g.appended > g.minFree/8 { //nolint:gosec // a size
		g.appended = 0
		g.look()
	}
	if g.full.Load() {
		return fmt.Errorf("%w: %d bytes are free in %s, %d are needed", ErrFull, g.free.Load(), g.dir, g.minFree)
	}
	return nil
}
