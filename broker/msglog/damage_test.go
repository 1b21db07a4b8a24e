package msglog_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"mynah/broker/msglog"
	"mynah/broker/state"
)

var small = msglog.Options{MemTableBytes: 1 << 20, Ballast: -1, MinFree: 1}

// copyDir copies a log as a SIGKILL would leave it: the process has it open.
func copyDir(tb testing.TB, from string) string {
	tb.Helper()
	to := tb.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		tb.Fatal(err)
	}
	return to
}

// newest returns the newest file of the directory with the suffix.
func newest(tb testing.TB, dir, suffix string) string {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil || len(files) == 0 {
		tb.Fatalf("no %s in %s: %v", suffix, dir, err)
	}
	return slices.Max(files)
}

func mustRead(tb testing.TB, file string) []byte {
	tb.Helper()
	b, err := os.ReadFile(file) //nolint:gosec // a test's file
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func mustWrite(tb testing.TB, file string, b []byte) {
	tb.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// The end of the write-ahead log is cut off or a bit of it flips, where nothing
// was acknowledged and where it was. In the first case the log opens with all that
// was acknowledged; in the second it says so, changes nothing, and never opens
// with something missing. Guards against dropping acknowledged messages in
// silence, which is what the database does by itself.
func TestDamagedTail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := mustOpen(t, dir, small)
	acked := map[uint64]string{}
	for i := range 40 {
		recs := []*msglog.Record{testRecord(i, 0), testRecord(i, 1), testRecord(i, 2)}
		mustAppend(t, l, recs...)
		for _, r := range recs {
			acked[r.Seq] = r.Mid
		}
	}
	head := mustRead(t, filepath.Join(dir, "HEAD"))
	ackedSize := len(mustRead(t, newest(t, dir, ".log")))
	for i := 40; i < 60; i++ {
		mustAppend(t, l, testRecord(i, 0), testRecord(i, 1))
	}
	killed := copyDir(t, dir)
	mustClose(t, l)
	// As if the last twenty batches had not been acknowledged yet.
	mustWrite(t, filepath.Join(killed, "HEAD"), head)
	wal := newest(t, killed, ".log")
	whole := mustRead(t, wal)
	if len(whole) <= ackedSize {
		t.Fatalf("write-ahead log of %d bytes, %d of them acknowledged", len(whole), ackedSize)
	}
	// Tests that damage a log from outside ask where they may.
	if file, from, to, err := msglog.TornRange(killed); err != nil || file != wal || from != int64(ackedSize) || to != int64(len(whole)) {
		t.Fatalf("torn range of %s: %s from %d to %d, %v; want %d to %d", wal, file, from, to, err, ackedSize, len(whole))
	}
	wal = filepath.Base(wal)

	refused := 0
	try := func(t *testing.T, damaged []byte, mayRefuse bool) {
		t.Helper()
		d := copyDir(t, killed)
		mustWrite(t, filepath.Join(d, wal), damaged)
		l, err := msglog.Open(d, small)
		if err == nil {
			checkAcked(t, l, acked, 0)
			mustClose(t, l)
			return
		}
		if !mayRefuse || !errors.Is(err, msglog.ErrCorrupt) {
			t.Fatalf("open: %v", err)
		}
		if refused++; refused%4 == 1 {
			checkRepair(t, copyDir(t, d), acked)
		}
		// Nothing was changed: with the bytes as they were it opens.
		mustWrite(t, filepath.Join(d, wal), whole)
		l = mustOpen(t, d, small)
		checkAcked(t, l, acked, 0)
		mustClose(t, l)
	}
	for size := ackedSize; size <= len(whole); size += max(1, (len(whole)-ackedSize)/10) {
		try(t, whole[:size], false)
	}
	for at := ackedSize; at < len(whole); at += max(1, (len(whole)-ackedSize)/10) {
		try(t, flip(whole, at), false)
	}
	if refused != 0 {
		t.Fatal("damage where nothing was acknowledged was refused")
	}
	for size := 0; size < ackedSize; size += ackedSize / 6 {
		try(t, whole[:size], true)
	}
	for at := 7; at < ackedSize; at += ackedSize / 12 {
		try(t, flip(whole, at), true)
	}
	if refused < 12 {
		t.Fatalf("damage to what was acknowledged was refused %d times only", refused)
	}
}

// checkRepair repairs a log whose end is damaged: it opens with what is left,
// reports the gap, and gives no lost message's seq to another.
func checkRepair(t *testing.T, dir string, acked map[uint64]string) {
	t.Helper()
	r, err := msglog.Repair(t.Context(), dir, small)
	if err != nil {
		t.Fatal(err)
	}
	lastAcked := slices.Max(slices.Collect(maps.Keys(acked)))
	if r.LastLost != lastAcked || r.FirstLost > r.LastLost {
		t.Fatalf("repaired: %+v, the last acknowledged was %d", r, lastAcked)
	}
	for range 2 {
		l := mustOpen(t, dir, small)
		first, last := l.Bounds()
		seen := first - 1
		fn := func(r *msglog.Record) bool {
			if r.Seq != seen+1 || r.Seq <= lastAcked && acked[r.Seq] != r.Mid {
				t.Fatalf("message %d after %d", r.Seq, seen)
			}
			seen = r.Seq
			return true
		}
		if r.FirstLost > 1 { // else nothing was left, and the log is a new one
			err := l.Read(t.Context(), 0, 1<<60, fn)
			var corrupt *msglog.CorruptError
			if !errors.As(err, &corrupt) || corrupt.First != r.FirstLost || corrupt.Last < r.LastLost || seen != r.FirstLost-1 {
				t.Fatalf("read up to %d, then %v; repaired %+v", seen, err, r)
			}
			seen = corrupt.Last
		}
		if err := l.Read(t.Context(), seen, 1<<60, fn); err != nil || seen != last {
			t.Fatalf("read on up to %d of %d: %v", seen, last, err)
		}
		again := testRecord(1<<20, int(last&0xff))
		mustAppend(t, l, again)
		if again.Seq <= lastAcked || again.Seq != last+1 {
			t.Fatalf("seq %d after repair; the last acknowledged was %d", again.Seq, lastAcked)
		}
		mustClose(t, l)
		// There is nothing more to repair.
		if r, err := msglog.Repair(t.Context(), dir, small); err != nil || r.LastLost != 0 || len(r.Kept) != 0 {
			t.Fatalf("repaired again: %+v, %v", r, err)
		}
	}
}

func flip(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[at] ^= 0x10
	return b
}

// Changes to the store are acknowledged, too.
func TestDamagedTailOfStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := mustOpen(t, dir, small)
	mustAppend(t, l, testRecord(0, 0))
	for i := range 10 {
		if err := l.State().Apply([]state.Op{{Key: "k", Value: fmt.Append(nil, i)}}, true); err != nil {
			t.Fatal(err)
		}
	}
	killed := copyDir(t, dir)
	mustClose(t, l)
	wal := newest(t, killed, ".log")
	whole := mustRead(t, wal)
	mustWrite(t, wal, whole[:len(whole)-3])
	if _, err := msglog.Open(killed, small); !errors.Is(err, msglog.ErrCorrupt) {
		t.Fatalf("opened without an acknowledged change to the store: %v", err)
	}
}

// A bit flips in a file that was written long ago. Reading says which messages
// are concerned, and the rest is readable. Guards against a silent skip and
// against giving up the whole log for one bad sector.
func TestDamagedTable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := mustOpen(t, dir, small)
	var all []*msglog.Record
	for i := range 80 {
		recs := make([]*msglog.Record, 100)
		for j := range recs {
			recs[j] = testRecord(i, j)
			recs[j].Tail = []byte(strings.Repeat("x", 100))
		}
		mustAppend(t, l, recs...)
		all = append(all, recs...)
	}
	mustClose(t, l)
	// The largest table holds messages for the most part.
	files, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(files) == 0 {
		t.Fatalf("tables: %v, %v", files, err)
	}
	whole := func(f string) []byte { return mustRead(t, f) }
	largest := slices.MaxFunc(files, func(a, b string) int { return cmp.Compare(len(whole(a)), len(whole(b))) })
	mustWrite(t, largest, flip(whole(largest), len(whole(largest))/2))
	if !checkDamaged(t, dir, all) {
		t.Fatal("the damage concerned no message")
	}
}

// checkDamaged reads a log in which something is damaged and reports whether
// messages were concerned.
func checkDamaged(t *testing.T, dir string, all []*msglog.Record) bool {
	t.Helper()
	l := mustOpen(t, dir, small)
	defer mustClose(t, l)
	lost := 0
	for _, topic := range []string{"", "group/1", "group/3"} {
		var want []*msglog.Record
		for _, r := range all {
			if topic == "" || r.To == topic {
				want = append(want, r)
			}
		}
		next, after, errs := 0, uint64(0), 0
		for {
			fn := func(r *msglog.Record) bool {
				if r.Seq != want[next].Seq || r.Mid != want[next].Mid {
					t.Fatalf("%q: message %d, want %d: a silent skip", topic, r.Seq, want[next].Seq)
				}
				next++
				return true
			}
			var err error
			if topic == "" {
				err = l.Read(context.Background(), after, 1<<60, fn)
			} else {
				err = l.ReadTopic(context.Background(), topic, after, 1<<60, fn)
			}
			if err == nil {
				break
			}
			var corrupt *msglog.CorruptError
			if !errors.As(err, &corrupt) || !errors.Is(err, msglog.ErrCorrupt) {
				t.Fatalf("%q: %v", topic, err)
			}
			if corrupt.Last < corrupt.First || corrupt.First <= after || errs > 1000 {
				t.Fatalf("%q: after %d: %v", topic, after, err)
			}
			errs++
			for next < len(want) && want[next].Seq <= corrupt.Last {
				next++
				lost++
			}
			after = corrupt.Last
		}
		if next != len(want) {
			t.Fatalf("%q: %d messages of %d read or reported", topic, next, len(want))
		}
	}
	if lost > 3000 {
		t.Fatalf("%d messages are unreadable because of one bit", lost)
	}
	// What cannot be read can be trimmed, and the log goes on.
	if err := l.Compact(t.Context(), 1<<60); err != nil {
		t.Fatalf("trim what is damaged: %v", err)
	}
	if again := testRecord(1<<20, 0); len(all) > 0 {
		mustAppend(t, l, again)
		if again.Seq != all[len(all)-1].Seq+1 || len(readAll(t, l)) != 1 {
			t.Fatalf("message %d after trimming all", again.Seq)
		}
	}
	return lost > 0
}
