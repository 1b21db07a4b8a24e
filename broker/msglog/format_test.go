package msglog_test

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"mynah/broker/msglog"
)

// format1 is a log that mynah has written before there were entries, with what it left
// beside it when it was killed: three messages, a session, a retained message.
const format1 = "testdata/format1.tar.gz"

// unpack puts the files of an archive into a directory of a file system.
func unpack(tb testing.TB, fs vfs.FS, dir, archive string) {
	tb.Helper()
	f, err := os.Open(archive)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	if err := fs.MkdirAll(dir, 0o750); err != nil {
		tb.Fatal(err)
	}
	for files := tar.NewReader(z); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			tb.Fatal(err)
		}
		out, err := fs.Create(fs.PathJoin(dir, h.Name), vfs.WriteCategoryUnspecified)
		if err != nil {
			tb.Fatal(err)
		}
		_, err = io.Copy(out, files) //nolint:gosec // our own file
		if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
			tb.Fatal(err)
		}
	}
	for _, name := range []string{dir, fs.PathDir(dir)} {
		d, err := fs.OpenDir(name)
		if err == nil {
			err = errors.Join(d.Sync(), d.Close())
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// checkFormat1 checks that all of it is there, and that it goes on.
func checkFormat1(t *testing.T, l *msglog.Pebble) {
	t.Helper()
	first, last := l.Bounds()
	recs := readAll(t, l)
	if last-first != 2 || recs[first].Mid != "m1" || recs[first+1].To != "group/g" || recs[last].Prev != first {
		t.Fatalf("%d to %d: %+v", first, last, recs)
	}
	keys := map[string]bool{}
	if err := l.State().Scan("", func(key string, _ []byte) bool { keys[key] = true; return true }); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"subs/bob\x00phone", "cursor/bob\x00phone", "retained/plant/x"} {
		if !keys[key] {
			t.Fatalf("the store lacks %q: %v", key, keys)
		}
	}
	again, next := *recs[first], *recs[last]
	next.PacketID++
	next.TS = recs[last].TS - 10_000 // a clock that has gone back
	e := &msglog.Entry{Time: next.TS, Records: []*msglog.Record{&again, &next}}
	p, err := l.Propose(e)
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Wait()
	if err != nil || c.Outcomes[0] != msglog.Duplicate || c.Outcomes[1] != msglog.Stored {
		t.Fatalf("outcomes %+v, %v", c, err)
	}
	if again.Seq != first || next.Seq != last+1 || next.Prev != last || next.TS != recs[last].TS {
		t.Fatalf("seqs %d, %d, prev %d, ts %d after %d", again.Seq, next.Seq, next.Prev, next.TS, recs[last].TS)
	}
}

// A log of version 1 is opened with all that it has. If the power goes while it is brought
// to this version, at any point, it is opened all the same the next time.
func TestMigrationInterrupted(t *testing.T) {
	t.Parallel()
	interrupted := 0
	for after := int64(0); ; after++ {
		disk := vfs.NewCrashableMem()
		unpack(t, disk, "log", format1)
		var ops atomic.Int64
		var left atomic.Pointer[vfs.MemFS] // the disk when the power went
		fs := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && ops.Add(1) == after {
				left.Store(disk.CrashClone(vfs.CrashCloneCfg{}))
			}
			return nil
		}))
		l, err := msglog.Open("log", msglog.Options{FS: fs, MemTableBytes: 1 << 20, Ballast: -1, MinFree: 1})
		if err != nil {
			t.Fatal(err)
		}
		done := ops.Load()
		if after == 0 {
			checkFormat1(t, l)
		}
		mustClose(t, l)
		if after > done {
			break
		}
		if disk := left.Load(); disk != nil {
			interrupted++
			l := mustOpen(t, "log", msglog.Options{FS: disk, MemTableBytes: 1 << 20, Ballast: -1, MinFree: 1})
			checkFormat1(t, l)
			mustClose(t, l)
		}
	}
	if interrupted < 10 {
		t.Fatalf("interrupted %d times only", interrupted)
	}
}
