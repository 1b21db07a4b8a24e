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

// diskSize is the size of the broker's data disk in bytes. It holds the data
// of five minutes, and is small enough to be filled quickly.
const diskSize = 512 << 20

// mountSmallDisk mounts a disk for the broker's data only, so that a full disk
// affects nothing else. It is ext4 in a file, where a sync takes as long as on
// the disk below. Where that is not possible it is a tmpfs.
func (h *harness) mountSmallDisk(ctx context.Context) error {
	image := filepath.Join(h.dir, "disk.img")
	err := os.WriteFile(image, nil, 0o600)
	if err == nil {
		err = os.Truncate(image, diskSize)
	}
	if err == nil {
		err = runCommand(ctx, "mkfs.ext4", "-q", "-m", "0", image)
	}
	if err == nil {
		err = runCommand(ctx, "mount", "-o", "loop", image, h.data)
	}
	if err == nil {
		h.mounted = true
		return nil
	}
	h.logLine("no ext4 for the broker's data (%v), a tmpfs then", err)
	if err := unix.Mount("mynah-torture", h.data, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0750", diskSize)); err != nil {
		return fmt.Errorf("mounting a disk needs root: %w", err)
	}
	h.mounted = true
	return nil
}

func runCommand(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil { //nolint:gosec // our own paths
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

func (h *harness) unmountSmallDisk() {
	if err := errors.Join(h.keepData(), unix.Unmount(h.data, unix.MNT_DETACH), os.RemoveAll(filepath.Join(h.dir, "disk.img"))); err != nil {
		h.logLine("unmount: %v", err)
	}
}

// keepData copies the broker's data to the run's folder, since the small disk
// is unmounted at the end.
func (h *harness) keepData() error {
	if err := runCommand(context.Background(), "cp", "-r", h.data, filepath.Join(h.dir, "data-kept")); err != nil {
		return fmt.Errorf("keep the broker's data: %w", err)
	}
	return nil
}

// fillDisk fills the broker's disk for a while. Usually it fills the disk once,
// and the broker has to continue with its reserve. Sometimes (greedy) it also
// takes every byte that becomes free. Then nothing can be written, and the broker
// may end, but it must not lose anything.
func fillDisk(h *harness, rnd *rand.Rand) string {
	h.diskMu.Lock()
	defer h.diskMu.Unlock()
	greedy := rnd.IntN(4) == 0
	path := filepath.Join(h.data, "filler")
	f, err := os.Create(filepath.Clean(path))
	if err != nil {
		return fmt.Sprintf("full disk: %v", err)
	}
	defer f.Close() //nolint:errcheck // removed below
	// Sometimes a few pages are left free, so that the disk is full in the
	// middle of a write.
	leave := int64(rnd.IntN(3) * rnd.IntN(64<<10))
	d := randomDuration(rnd, 800*time.Millisecond, 3*time.Second)
	h.diskFull.Store(true)
	h.diskGreedy.Store(greedy)
	h.takeRoom(f, leave)
	for until := time.Now().Add(d); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if greedy {
			h.takeRoom(f, 0)
		}
	}
	if err := os.Remove(path); err != nil {
		h.ledger.Violation("remove the filler: %v", err)
	}
	how := ""
	if greedy {
		how = ", whatever became free was taken too"
	}
	// A server whose start began meanwhile may still fail.
	time.Sleep(300 * time.Millisecond)
	h.diskGreedy.Store(false)
	h.diskFull.Store(false)
	h.counts.full.Add(1)
	return fmt.Sprintf("full disk for %s with %d bytes left%s", d.Round(time.Millisecond), leave, how)
}

// takeRoom makes the file as large as the disk allows.
func (h *harness) takeRoom(f *os.File, leave int64) {
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
