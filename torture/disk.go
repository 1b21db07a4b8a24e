package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// diskSize is the size of the disk for the broker's data: room for what five
// minutes make, small enough to be filled at once.
const diskSize = 512 << 20

// mountSmallDisk gives the broker a disk of its own for its data, so that it can
// be filled without filling anybody else's: ext4 in a file, where a sync takes as
// long as on the disk below, or a tmpfs if that cannot be had.
func (w *world) mountSmallDisk(ctx context.Context) error {
	image := filepath.Join(w.dir, "disk.img")
	err := os.WriteFile(image, nil, 0o600)
	if err == nil {
		err = os.Truncate(image, diskSize)
	}
	if err == nil {
		err = command(ctx, "mkfs.ext4", "-q", "-m", "0", image)
	}
	if err == nil {
		err = command(ctx, "mount", "-o", "loop", image, w.data)
	}
	if err == nil {
		w.mounted = true
		return nil
	}
	w.say("no ext4 for the broker's data (%v), a tmpfs then", err)
	if err := unix.Mount("mynah-torture", w.data, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0750", diskSize)); err != nil {
		return fmt.Errorf("mounting a disk needs root: %w", err)
	}
	w.mounted = true
	return nil
}

func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil { //nolint:gosec // our own paths
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

func (w *world) unmountSmallDisk() {
	if err := errors.Join(w.keepData(), unix.Unmount(w.data, unix.MNT_DETACH), os.RemoveAll(filepath.Join(w.dir, "disk.img"))); err != nil {
		w.say("unmount: %v", err)
	}
}

// keepData copies the broker's data beside its disk, which does not outlive us.
func (w *world) keepData() error {
	if err := command(context.Background(), "cp", "-r", w.data, filepath.Join(w.dir, "data-kept")); err != nil {
		return fmt.Errorf("keep the broker's data: %w", err)
	}
	return nil
}

// fillDisk takes all room on the broker's disk for a while. Mostly that happens
// once, and the broker has to go on with what it has set aside. Sometimes whoever
// fills the disk goes on doing so and takes every byte that becomes free as well;
// nothing can be written then, and a broker that ends is forgiven, but not what it
// loses.
func fillDisk(w *world, rnd *rand.Rand) string {
	w.diskMu.Lock()
	defer w.diskMu.Unlock()
	greedy := rnd.IntN(4) == 0
	path := filepath.Join(w.data, "filler")
	f, err := os.Create(filepath.Clean(path))
	if err != nil {
		return fmt.Sprintf("full disk: %v", err)
	}
	defer f.Close() //nolint:errcheck // removed below
	// Now and then a few pages are left, so that the end comes in the middle
	// of something.
	leave := int64(rnd.IntN(3) * rnd.IntN(64<<10))
	d := between(rnd, 800*time.Millisecond, 3*time.Second)
	w.diskFull.Store(true)
	w.diskGreedy.Store(greedy)
	w.takeRoom(f, leave)
	for until := time.Now().Add(d); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if greedy {
			w.takeRoom(f, 0)
		}
	}
	if err := os.Remove(path); err != nil {
		w.ledger.Odd("remove the filler: %v", err)
	}
	how := ""
	if greedy {
		how = ", whatever became free was taken too"
	}
	// A server that began to start in the meantime is still forgiven.
	time.Sleep(300 * time.Millisecond)
	w.diskGreedy.Store(false)
	w.diskFull.Store(false)
	w.count.full.Add(1)
	return fmt.Sprintf("full disk for %s with %d bytes left%s", d.Round(time.Millisecond), leave, how)
}

// takeRoom makes the file as large as the disk allows.
func (w *world) takeRoom(f *os.File, leave int64) {
	fd := int(f.Fd()) //nolint:gosec // descriptors are small
	for range 3 {     // others write at the same time
		var disk unix.Statfs_t
		var file unix.Stat_t
		if unix.Fstatfs(fd, &disk) != nil || unix.Fstat(fd, &file) != nil {
			return
		}
		free := int64(disk.Bavail)*disk.Bsize - leave //nolint:gosec // a size
		if free <= 0 || unix.Fallocate(fd, 0, file.Size, free) == nil {
			return
		}
	}
}
