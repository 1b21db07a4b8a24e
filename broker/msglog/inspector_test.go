package msglog_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mynah/broker/msglog"
	"mynah/broker/msglog/msglogtest"
)

func mustInspect(tb testing.TB, dir string) *msglog.Inspector {
	tb.Helper()
	i, err := msglog.Inspect(context.Background(), dir)
	if err != nil {
		tb.Fatal(err)
	}
	return i
}

func mustVerify(tb testing.TB, i *msglog.Inspector) *msglog.Verification {
	tb.Helper()
	v, err := i.Verify(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// A log can be looked at beside the broker that has it open and goes on writing,
// and on a stopped one's folder. Nothing is left behind.
func TestInspect(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := mustOpen(t, dir, small)
	var acked []*msglog.Record
	for i := range 150 {
		recs := make([]*msglog.Record, i%70+1)
		for j := range recs {
			recs[j] = testRecord(i, j)
			if j%3 == 0 {
				recs[j].Mid = ""
				recs[j].To = fmt.Sprintf("user/u%d", j%4)
			}
		}
		mustAppend(t, l, recs...)
		acked = append(acked, recs...)
	}
	first := acked[1000].Seq + 1
	if err := l.Compact(context.Background(), first-1); err != nil {
		t.Fatal(err)
	}
	acked = acked[1001:]
	last := acked[len(acked)-1].Seq

	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 1000; i < 2000; i++ { // so that it is not faster than who looks
			select {
			case <-stop:
				return
			default:
			}
			p, err := l.Propose(msglogtest.Entry(testRecord(i, 1), testRecord(i, 2)))
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := p.Wait(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	check := func(atLeast uint64) {
		t.Helper()
		i := mustInspect(t, dir)
		defer func() {
			if err := i.Close(); err != nil {
				t.Error(err)
			}
		}()
		info := i.Info()
		if info.First != first || info.Last < atLeast || info.Durable > info.Last || info.Messages != info.Last-first+1 ||
			info.Format != msglog.FormatVersion || info.DiskBytes == 0 || info.DiskFree == 0 ||
			info.Oldest.UnixMilli() != acked[0].TS || info.Newest.Before(info.Oldest) {
			t.Fatalf("info: %+v; first is %d, last at least %d", info, first, atLeast)
		}
		v := mustVerify(t, i)
		if v.Found != 0 || v.Messages != info.Messages || v.Postings < v.Messages || v.Mids == 0 || v.Packets == 0 {
			t.Fatalf("verify: %+v", v)
		}
		topics, err := i.Topics(context.Background(), "user/", "", 3)
		if err != nil || len(topics) != 3 {
			t.Fatalf("topics: %v, %v", topics, err)
		}
		more, err := i.Topics(context.Background(), "user/", topics[2].Topic, 100)
		if err != nil || len(more) != 2 || topics[0].Topic != "user/alice" || more[1].Topic != "user/u3" {
			t.Fatalf("topics: %v, then %v, %v", topics, more, err)
		}
		for _, topic := range []string{"", "user/u3", "group/1"} {
			for _, n := range []int{0, 1, 7, 100} {
				recs, err := i.Tail(context.Background(), topic, n)
				if err != nil || len(recs) != n {
					t.Fatalf("tail %d of %q: %d records, %v", n, topic, len(recs), err)
				}
			}
		}
		recs, err := i.Tail(context.Background(), "user/u3", 1)
		if err != nil || recs[0].Seq != more[1].Seq {
			t.Fatalf("tail of user/u3: %v, %v, want %d", recs, err, more[1].Seq)
		}
		if recs, err := i.Tail(context.Background(), "user/u3", math.MaxInt); err != nil || recs[0].Seq < first {
			t.Fatalf("all of user/u3: %d records, %v", len(recs), err)
		}
	}
	for range 2 {
		check(last)
	}
	close(stop)
	wg.Wait()
	_, last = l.Bounds()
	mustClose(t, l)
	check(last)
	if left, err := filepath.Glob(filepath.Join(dir, "inspect-*")); err != nil || len(left) > 0 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "inspect-killed"), 0o750); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, dir, small)
	mustClose(t, l)
	if _, err := os.Stat(filepath.Join(dir, "inspect-killed")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("what a killed inspector left is still there: %v", err)
	}
	if _, err := msglog.Inspect(context.Background(), t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("inspect a folder without a log: %v", err)
	}
}

// Verify finds what is damaged and where.
func TestVerifyDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := mustOpen(t, dir, small)
	for i := range 60 {
		recs := make([]*msglog.Record, 100)
		for j := range recs {
			recs[j] = testRecord(i, j)
			recs[j].Tail = []byte(strings.Repeat("x", 100))
		}
		mustAppend(t, l, recs...)
	}
	mustClose(t, l)
	table := newest(t, dir, ".sst")
	whole := mustRead(t, table)
	mustWrite(t, table, flip(whole, len(whole)/2))
	i := mustInspect(t, dir)
	if v := mustVerify(t, i); v.Found == 0 || len(v.Problems) == 0 {
		t.Fatalf("verify: %+v", v)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, table, whole)

	// The end is missing: HEAD knows.
	wal := newest(t, dir, ".log")
	mustWrite(t, wal, nil)
	i = mustInspect(t, dir)
	v := mustVerify(t, i)
	if info := i.Info(); v.Found == 0 || info.Durable <= info.Last || !strings.Contains(v.Problems[0], fmt.Sprint(info.Durable)) {
		t.Fatalf("verify: %+v, info %+v", v, info)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
}

// enforce forgets what the retention does not want kept, but nothing after archived, and
// returns the first message that is kept.
func enforce(l msglog.Log, keep msglog.Retention, archived uint64) (first uint64, err error) {
	upto, err := l.Expired(context.Background(), keep)
	if err == nil {
		err = l.Compact(context.Background(), min(upto, archived))
	}
	first, _ = l.Bounds()
	return first, err
}

// Retention trims by age and by size, and never past the archive.
func TestRetention(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_800_000_000_000)
	opts := small
	opts.Now = func() time.Time { return now }
	dir := t.TempDir()
	l := mustOpen(t, dir, opts)
	// A message a minute for a day, then 10,000 at once.
	start := now
	byTime := map[time.Duration]uint64{}
	for m := range 24 * 60 {
		r := testRecord(m, 0)
		r.TS = start.Add(time.Duration(m) * time.Minute).UnixMilli()
		mustAppend(t, l, r)
		byTime[time.Duration(m)*time.Minute] = r.Seq
	}
	now = start.Add(24 * time.Hour)
	check := func(keep msglog.Retention, archived, want uint64) {
		t.Helper()
		first, err := enforce(l, keep, archived)
		if err != nil || first != want {
			t.Fatalf("retention %+v, archived up to %d: first is %d, want %d: %v", keep, archived, first, want, err)
		}
	}
	first, _ := l.Bounds()
	check(msglog.Retention{}, math.MaxUint64, first)
	check(msglog.Retention{MaxAge: time.Hour}, 0, first)
	check(msglog.Retention{MaxAge: time.Hour}, first+9, first+10)
	check(msglog.Retention{MaxAge: 10*time.Hour + 30*time.Second}, math.MaxUint64, byTime[14*time.Hour])
	// The newest of what is too old may be newer than the newest index entry.
	now = start.Add(25 * time.Hour)
	check(msglog.Retention{MaxAge: time.Hour + time.Second}, math.MaxUint64, byTime[24*time.Hour-time.Minute]+1)

	var all []*msglog.Record
	for i := range 100 {
		recs := largeBatch(5000 + i) // some 100 KiB each
		mustAppend(t, l, recs...)
		all = append(all, recs...)
	}
	mustClose(t, l)
	l = mustOpen(t, dir, opts)
	defer mustClose(t, l)
	got, err := enforce(l, msglog.Retention{MaxBytes: 4 << 20}, math.MaxUint64)
	if err != nil {
		t.Fatal(err)
	}
	kept := all[len(all)-1].Seq - got + 1
	if bytes := kept * (10 << 10); bytes < 3<<20 || bytes > 6<<20 {
		t.Fatalf("%d messages are kept, some %d bytes, want about 4 MiB", kept, bytes)
	}
	if d := cmp.Diff(int(kept), len(readAll(t, l))); d != "" {
		t.Fatal(d)
	}
	if n := l.Stats().Bytes; n < 3<<20 || n > 6<<20 {
		t.Fatalf("stats say %d bytes", n)
	}
}
