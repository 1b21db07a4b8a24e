//nolint:thelper // these are the tests, not helpers: their own lines are to be reported
package msglogtest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"

	"mynah/broker/msglog"
)

// fill appends n messages in batches of size and returns them.
func fill(tb testing.TB, l msglog.Log, n, size int) []*msglog.Record {
	tb.Helper()
	var all []*msglog.Record
	for len(all) < n {
		batch := make([]*msglog.Record, min(size, n-len(all)))
		for i := range batch {
			k := len(all) + i
			r := msg([]string{"alice", "bob", "carol"}[k%3], []string{"user/dave", "group/g", "user/alice"}[k%3], fmt.Sprint(k))
			if k%2 == 0 {
				r.Mid = fmt.Sprint("mid", k)
			} else {
				r.PacketID = uint16(k%65535 + 1) //nolint:gosec // in range
			}
			batch[i] = r
		}
		store(tb, l, batch...)
		all = append(all, batch...)
	}
	return all
}

// again returns the record as a client sends it again.
func resent(r *msglog.Record) *msglog.Record {
	c := *r
	c.Seq, c.Prev, c.PrevSender, c.Dup = 0, 0, 0, true
	return &c
}

func testTrim(t *testing.T, open Open) {
	dir := t.TempDir()
	l := open(t, dir)
	all := fill(t, l, 1000, 130)
	first, last := l.Bounds()
	for _, upto := range []uint64{0, first - 1, first + 99, first + 100, first + 500, first + 20} {
		mustTrim(t, l, upto)
		want := max(first, upto+1)
		first, _ = l.Bounds()
		if first != want {
			t.Fatalf("trimmed up to %d: first is %d, want %d", upto, first, want)
		}
		kept := between(all, first-1, last)
		wantRecords(t, readAll(t, l, 0, 1<<60), kept)
		for _, topic := range []string{"user/alice", "user/bob", "user/carol", "user/dave", "group/g"} {
			wantRecords(t, readTopic(t, l, topic, 0, 1<<60), onTopic(kept, topic))
		}
	}
	mustClose(t, l)
	l = open(t, dir)
	defer mustClose(t, l)
	if f, la := l.Bounds(); f != first || la != last {
		t.Fatalf("bounds after reopening %d, %d, want %d, %d", f, la, first, last)
	}
	wantRecords(t, readAll(t, l, 0, 1<<60), between(all, first-1, last))
}

// A log that was trimmed to nothing goes on where it was: seqs never repeat.
func testTrimAll(t *testing.T, open Open) {
	dir := t.TempDir()
	l := open(t, dir)
	all := fill(t, l, 300, 64)
	last := all[len(all)-1].Seq
	mustTrim(t, l, 1<<60)
	for range 2 {
		if f, la := l.Bounds(); f != last+1 || la != last {
			t.Fatalf("bounds of a trimmed log: %d, %d, want %d, %d", f, la, last+1, last)
		}
		if got := readAll(t, l, 0, 1<<60); len(got) != 0 {
			t.Fatalf("a trimmed log has %v", seqs(got))
		}
		mustClose(t, l)
		l = open(t, dir)
	}
	defer mustClose(t, l)
	r := msg("alice", "user/bob", "after")
	store(t, l, r)
	if r.Seq != last+1 {
		t.Fatalf("seq %d after trimming everything, want %d", r.Seq, last+1)
	}
	wantRecords(t, readAll(t, l, 0, 1<<60), []*msglog.Record{r})
}

// What is kept is still recognised when it comes again; what was trimmed is new.
func testTrimKeepsMids(t *testing.T, open Open) {
	l := openTemp(t, open)
	all := fill(t, l, 600, 100)
	cut := 250
	mustTrim(t, l, all[cut-1].Seq)
	for i, r := range all {
		want := msglog.Duplicate
		if i < cut {
			want = msglog.Stored
		}
		c := resent(r)
		wantOutcomes(t, appendAll(t, l, c), want)
		if want == msglog.Duplicate && c.Seq != r.Seq {
			t.Fatalf("message %d: duplicate of %d, want %d", i, c.Seq, r.Seq)
		}
	}
	// Those that were stored anew outlive the trimming of the rest.
	mustTrim(t, l, all[len(all)-1].Seq)
	for i, r := range all[:cut] {
		if o := appendAll(t, l, resent(r)); o[0] != msglog.Duplicate {
			t.Fatalf("message %d, stored anew after trimming: outcome %v", i, o[0])
		}
	}
}

// prev is unbroken over a trim: a client that has the trimmed message has no gap.
func testTrimKeepsTails(t *testing.T, open Open) {
	dir := t.TempDir()
	l := open(t, dir)
	a, b := msg("alice", "user/bob", "1"), msg("alice", "group/g", "2")
	store(t, l, a, b)
	mustTrim(t, l, b.Seq)
	if got := mustTail(t, l, "user/bob"); got != a.Seq {
		t.Fatalf("tail after trimming is %d, want %d", got, a.Seq)
	}
	mustClose(t, l)
	l = open(t, dir)
	defer mustClose(t, l)
	c, d := msg("bob", "user/alice", "3"), msg("bob", "group/g", "4")
	store(t, l, c, d)
	if c.Prev != a.Seq || c.PrevSender != a.Seq || d.Prev != b.Seq {
		t.Fatalf("prev after trimming and reopening: %d, %d, %d; want %d, %d, %d", c.Prev, c.PrevSender, d.Prev, a.Seq, a.Seq, b.Seq)
	}
	mustTrim(t, l, c.Seq)
	if got := mustTail(t, l, "user/bob"); got != c.Seq {
		t.Fatalf("tail is %d, want %d", got, c.Seq)
	}
}

// Trimming one by one through a batch. A mid that was trimmed and used again must
// not be forgotten by the next trim.
func testTrimWithinBlock(t *testing.T, open Open) {
	l := openTemp(t, open)
	all := fill(t, l, 100, 100)
	for i := 0; i < len(all); i += 7 {
		mustTrim(t, l, all[i].Seq)
		wantRecords(t, between(readAll(t, l, 0, 1<<60), 0, all[99].Seq), all[i+1:])
		c := resent(all[i])
		wantOutcomes(t, appendAll(t, l, c), msglog.Stored)
		mustTrim(t, l, all[i].Seq+1)
		wantOutcomes(t, appendAll(t, l, resent(all[i])), msglog.Duplicate)
	}
}

// Trimming while messages with the same mids keep coming: what was stored after
// the trim stays known.
func testTrimWhileAppend(t *testing.T, open Open) {
	l := openTemp(t, open)
	var g errgroup.Group
	done := make(chan struct{})
	g.Go(func() error {
		for {
			select {
			case <-done:
				return nil
			default:
			}
			_, last := l.Bounds()
			if err := l.Compact(context.Background(), last-min(last, 50)); err != nil {
				return err
			}
			err := l.Read(context.Background(), 0, 1<<60, func(*msglog.Record) bool { return true })
			err = errors.Join(err, l.ReadTopic(context.Background(), "group/g", 0, 1<<60, func(*msglog.Record) bool { return true }))
			if err != nil {
				return err
			}
		}
	})
	stored := map[string]uint64{}
	for i := range 400 {
		batch := make([]*msglog.Record, 20)
		for j := range batch {
			mid := fmt.Sprint((i*7 + j) % 60)
			batch[j] = withMid(msg("alice", "group/g", mid), mid)
		}
		before, _ := l.Bounds()
		out := appendAll(t, l, batch...)
		for j, r := range batch {
			switch prev, ok := stored[r.Mid]; {
			case out[j] == msglog.Conflict:
				t.Fatalf("conflict of equal messages")
			case out[j] == msglog.Stored && ok && prev > before+1000:
				t.Fatalf("mid %s was stored as %d and again as %d", r.Mid, prev, r.Seq)
			case out[j] == msglog.Duplicate && r.Seq != prev:
				t.Fatalf("mid %s: duplicate of %d, want %d", r.Mid, r.Seq, prev)
			}
			stored[r.Mid] = r.Seq
		}
	}
	close(done)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	// Now nothing trims: all that is kept is known.
	for _, r := range readAll(t, l, 0, 1<<60) {
		c := resent(r)
		if o := appendAll(t, l, c); o[0] != msglog.Duplicate {
			t.Fatalf("mid %s of message %d is not known any more", r.Mid, r.Seq)
		}
	}
}
