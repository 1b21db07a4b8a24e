package msglog_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"mynah/broker/msglog"
	"mynah/broker/msglog/msglogtest"
	"mynah/broker/state"
	"mynah/internal/waitfor"
)

// mountTmpfs mounts a file system of the given size that is gone with the test.
func mountTmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("this test fills a file system of its own and needs the right to mount one (run it as root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// A disk fills up: messages are refused, everything that was stored stays readable,
// trimming works, and when there is room again it goes on by itself. Guards
// against the database's own way with a full disk, which is to end the process.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]msglog.Options{
		// Free space is looked at in time.
		"watched": {MemTableBytes: 1 << 20, MinFree: 12 << 20, Ballast: 4 << 20, DiskPoll: 20 * time.Millisecond},
		// It is not, and the ballast must do.
		"by surprise": {MemTableBytes: 1 << 20, MinFree: 1, Ballast: 16 << 20, DiskPoll: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mount := mountTmpfs(t, "64m")
			dir := filepath.Join(mount, "log")
			var failed atomic.Bool
			opts.OnFailure = func(error) { failed.Store(true) }
			l := mustOpen(t, dir, opts)
			t.Cleanup(func() { _ = l.Close() }) // harmless to repeat

			// Something else takes most of the disk, and we the rest.
			other := filepath.Join(mount, "other")
			mustWrite(t, other, make([]byte, 24<<20))
			var acked int
			var err error
			for i := 0; err == nil; i++ {
				var p *msglog.Proposal
				if p, err = l.Propose(msglogtest.Entry(largeBatch(i)...)); err == nil {
					var c *msglog.Committed
					if c, err = p.Wait(); err != nil {
						t.Fatalf("batch %d was taken and then lost: %v", i, err)
					}
					acked += len(c.Outcomes)
				}
				if i > 1000 {
					t.Fatal("the disk does not fill up")
				}
			}
			if !errors.Is(err, msglog.ErrFull) {
				t.Fatalf("append to a full disk: %v", err)
			}
			// Reading goes on, and so does the store, which is what delivery needs.
			if got := len(readAll(t, l)); got != acked {
				t.Fatalf("%d messages of %d are there", got, acked)
			}
			if err := l.State().Apply([]state.Op{{Key: "k", Value: []byte("v")}}, true); err != nil {
				t.Fatalf("change the store: %v", err)
			}
			// Trimming works and what is read is right.
			first, _ := l.Bounds()
			if err := l.Compact(context.Background(), first+9); err != nil {
				t.Fatalf("trim: %v", err)
			}
			// Another process makes room. Nobody touches the log.
			if err := os.Remove(other); err != nil {
				t.Fatal(err)
			}
			if opts.DiskPoll == time.Hour {
				mustClose(t, l)
				l = mustOpen(t, dir, opts)
			}
			waitfor.MustHold(t, "messages are accepted again", func() bool {
				_, err := l.Propose(msglogtest.Entry(largeBatch(2000)...))
				return err == nil
			})
			if _, err := os.Stat(filepath.Join(dir, "BALLAST")); err != nil {
				t.Fatalf("the ballast is not there again: %v", err)
			}
			mustClose(t, l)
			if failed.Load() {
				t.Fatal("the log has failed")
			}
			l = mustOpen(t, dir, opts)
			if got := len(readAll(t, l)); got != acked-10+len(largeBatch(0)) {
				t.Fatalf("%d messages are there after reopening, want %d", got, acked-10+len(largeBatch(0)))
			}
			mustClose(t, l)
		})
	}
}

// largeBatch is some 100 KiB.
func largeBatch(i int) []*msglog.Record {
	recs := make([]*msglog.Record, 10)
	for j := range recs {
		recs[j] = testRecord(i, j)
		recs[j].Tail = []byte(strings.Repeat("x", 10<<10))
	}
	return recs
}

// A write or a sync of the write-ahead log fails. Nobody is told that anything is
// stored from then on, the process lives, what was durable stays readable, and
// the log opens again with everything that was acknowledged.
func TestFailedWrite(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]errorfs.OpKind{
		"write": errorfs.OpFileWrite,
		"sync":  errorfs.OpFileSyncData,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var broken atomic.Bool
			disk := vfs.NewCrashableMem()
			fs := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if broken.Load() && strings.HasSuffix(op.Path, ".log") && op.Kind == kind {
					return &os.PathError{Op: "write", Path: op.Path, Err: syscall.EIO}
				}
				return nil
			}))
			failures := make(chan error, 10)
			opts := msglog.Options{FS: fs, MemTableBytes: 1 << 20, OnFailure: func(err error) { failures <- err }}
			l := mustOpen(t, "log", opts)
			acked := map[uint64]string{}
			for i := range 20 {
				r := testRecord(i, 0)
				mustAppend(t, l, r)
				acked[r.Seq] = r.Mid
			}
			broken.Store(true)
			var pending []*msglog.Proposal
			for i := range 10 {
				p, err := l.Propose(msglogtest.Entry(testRecord(100+i, 0)))
				if err != nil {
					break
				}
				pending = append(pending, p)
			}
			for i, p := range pending {
				if _, err := p.Wait(); !errors.Is(err, msglog.ErrFailed) {
					t.Fatalf("batch %d: %v, want ErrFailed", i, err)
				}
			}
			if err := <-failures; !errors.Is(err, msglog.ErrFailed) || !errors.Is(err, syscall.EIO) {
				t.Fatalf("failure reported: %v", err)
			}
			broken.Store(false) // too late: what was written in between is not known
			if _, err := l.Propose(msglogtest.Entry(testRecord(200, 0))); !errors.Is(err, msglog.ErrFailed) {
				t.Fatalf("append to a failed log: %v", err)
			}
			if err := l.State().Apply([]state.Op{{Key: "k"}}, true); !errors.Is(err, msglog.ErrFailed) {
				t.Fatalf("change the store of a failed log: %v", err)
			}
			if err := l.Compact(context.Background(), 1<<60); !errors.Is(err, msglog.ErrFailed) {
				t.Fatalf("trim a failed log: %v", err)
			}
			if got := len(readAll(t, l)); got != len(acked) {
				t.Fatalf("%d messages can be read, want %d", got, len(acked))
			}
			if err := l.Close(); !errors.Is(err, msglog.ErrFailed) {
				t.Fatalf("close a failed log: %v", err)
			}
			if len(failures) != 0 {
				t.Fatalf("the failure was reported again: %v", <-failures)
			}
			// What another process finds.
			opts.FS = disk.CrashClone(vfs.CrashCloneCfg{})
			l = mustOpen(t, "log", opts)
			checkAcked(t, l, acked, 0)
			mustClose(t, l)
		})
	}
}
