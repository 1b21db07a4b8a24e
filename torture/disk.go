package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// diskSize is the size of the disk for the broker's data: room for what five
// minutes make, small enough to be filled at once.
const diskSize = "512m"

// mountSmallDisk mounts a tmpfs for the broker's data, so that its disk can be
// filled without filling anybody else's.
func (w *world) mountSmallDisk() error {
	if err := unix.Mount("mynah-torture", w.data, "tmpfs", 0, "size="+diskSize+",mode=0750"); err != nil {
		return fmt.Errorf("mounting a tmpfs needs root: %w", err)
	}
	w.mounted = true
	return nil
}

func (w *world) unmountSmallDisk() {
	if err := errors.Join(w.keepData(), unix.Unmount(w.data, unix.MNT_DETACH)); err != nil {
		w.say("unmount: %v", err)
	}
}

// keepData copies the broker's data beside the tmpfs, which does not outlive us.
func (w *world) keepData() error {
	if err := os.CopyFS(filepath.Join(w.dir, "data-kept"), os.DirFS(w.data)); err != nil {
		return fmt.Errorf("keep the broker's data: %w", err)
	}
	return nil
}

// fillDisk takes all room on the broker's disk for a while.
func fillDisk(w *world, rnd *rand.Rand) string {
	path := filepath.Join(w.data, "filler")
	f, err := os.Create(filepath.Clean(path))
	if err != nil {
		return fmt.Sprintf("full disk: %v", err)
	}
	defer f.Close() //nolint:errcheck // removed below
	w.diskFull.Store(true)
	// Now and then a few pages are left, so that the end comes in the middle
	// of something.
	leave := uint64(rnd.IntN(3)) * uint64(rnd.IntN(64<<10)) //nolint:gosec // small
	for range 3 {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil { //nolint:gosec // descriptors are small
			break
		}
		free := st.Bavail * uint64(st.Bsize) //nolint:gosec // a positive size
		if free <= leave {
			break
		}
		var at unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &at); err != nil { //nolint:gosec // as above
			break
		}
		_ = unix.Fallocate(int(f.Fd()), 0, at.Size, int64(free-leave)) //nolint:gosec,errcheck // as above; others write at the same time, so it is tried again
	}
	d := between(rnd, 800*time.Millisecond, 3*time.Second)
	time.Sleep(d)
	if err := os.Remove(path); err != nil {
		w.ledger.Odd("remove the filler: %v", err)
	}
	// A server that began to start in the meantime is still forgiven.
	time.AfterFunc(500*time.Millisecond, func() { w.diskFull.Store(false) })
	w.count.full.Add(1)
	return fmt.Sprintf("full disk for %s with %d bytes left", d.Round(time.Millisecond), leave)
}
