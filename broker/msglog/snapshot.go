package msglog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// snapshotPrefix begins the names of the directories of snapshots.
// Open removes those that a killed process has left.
const snapshotPrefix = "inspect-"

// snapshot makes a directory inside dir that holds the log as it is now: hard
// links to the tables, which never change, and copies of the rest. Pebble opens
// no database, not even for reading, that another process has open; and looking
// at the one of a broker that is stopped must not keep it from starting.
func snapshot(ctx context.Context, dir string) (path string, err error) {
	if _, err := os.Stat(filepath.Join(dir, "LOCK")); err != nil {
		return "", fmt.Errorf("no message log in %s: %w", dir, err)
	}
	path, err = os.MkdirTemp(dir, snapshotPrefix)
	if err != nil {
		return "", fmt.Errorf("a look at the log needs room for links to its files beside them: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}()
	for range snapshotTries {
		before, err := manifestState(dir)
		if err != nil {
			return "", err
		}
		if err := copyLog(dir, path); err != nil {
			return "", err
		}
		after, err := manifestState(dir)
		if err != nil {
			return "", err
		}
		// A file goes only after the manifest says so: if that is what it was,
		// nothing is missing from the copy.
		if before == after {
			return path, nil
		}
		if err := clearDir(path); err != nil {
			return "", err
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return "", fmt.Errorf("the log in %s changes too fast to be looked at: try again", dir)
}

const snapshotTries = 50

// manifestState returns a string that changes whenever the database's list of files does.
func manifestState(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var s strings.Builder
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, "MANIFEST-") && !strings.HasPrefix(name, "marker.") {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return "", err
		}
		fmt.Fprintln(&s, name, info.Size())
	}
	return s.String(), nil
}

// copyLog links and copies the files of a database. A file that vanishes meanwhile
// is passed over: the manifest has changed then.
func copyLog(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || e.Name() == "LOCK" || e.Name() == ballastName ||
			strings.HasPrefix(e.Name(), damagedPrefix) {
			continue
		}
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if strings.HasSuffix(e.Name(), ".sst") {
			err = os.Link(src, dst)
		} else {
			err = copyFile(src, dst)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) (err error) {
	src, err := os.Open(from) //nolint:gosec // a file of the log
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // beside it
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// lockHolder returns the id of the process that has the log open, 0 for none.
func lockHolder(dir string) (pid int, err error) {
	f, err := os.Open(filepath.Join(dir, "LOCK")) //nolint:gosec // a file of the log
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	lock := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil {
		return 0, err
	}
	if lock.Type == unix.F_UNLCK {
		return 0, nil
	}
	return int(lock.Pid), nil
}
