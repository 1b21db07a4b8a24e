//nolint:thelper // these are the tests, not helpers: their own lines are to be reported
package msglogtest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mynah/broker/msglog"
	"mynah/broker/state"
)

// patience is how long a test waits for an entry that is to come.
const patience = time.Minute

func mustFollow(tb testing.TB, l msglog.Log, after uint64) *msglog.Feed {
	tb.Helper()
	f, err := l.Follow(after)
	if err != nil {
		tb.Fatalf("follow: %v", err)
	}
	return f
}

// next returns the next entry of a feed.
func next(tb testing.TB, f *msglog.Feed) *msglog.Committed {
	tb.Helper()
	select {
	case c, ok := <-f.C:
		if !ok {
			tb.Fatalf("the feed has ended: %v", f.Err())
		}
		return c
	case <-time.After(patience):
		tb.Fatal("no entry comes")
	}
	return nil
}

// nextMessages returns as many messages of a feed as are wanted, and fails if there are more
// in the last entry.
func nextMessages(tb testing.TB, f *msglog.Feed, n int) []*msglog.Record {
	tb.Helper()
	var recs []*msglog.Record
	for len(recs) < n {
		recs = next(tb, f).Stored(recs)
	}
	if len(recs) > n {
		tb.Fatalf("%d messages followed, want %d", len(recs), n)
	}
	return recs
}

func mustPropose(tb testing.TB, l msglog.Log, e *msglog.Entry) *msglog.Proposal {
	tb.Helper()
	p, err := l.Propose(e)
	if err != nil {
		tb.Fatalf("propose: %v", err)
	}
	return p
}

func mustCommit(tb testing.TB, l msglog.Log, e *msglog.Entry) *msglog.Committed {
	tb.Helper()
	c, err := mustPropose(tb, l, e).Wait()
	if err != nil {
		tb.Fatalf("wait: %v", err)
	}
	return c
}

// What is proposed comes to whoever follows: as the entry that was proposed, once, in the
// order of proposing, with what was decided, and not before it can be read.
func testFollow(t *testing.T, open Open) {
	l := openTemp(t, open)
	feed := mustFollow(t, l, math.MaxUint64)
	defer feed.Close()
	var entries []*msglog.Entry
	go func() {
		for _, e := range entriesOf(40) {
			if _, err := l.Propose(e); err != nil {
				t.Error(err)
			}
		}
	}()
	var position, chain uint64
	for i := range 40 {
		c := next(t, feed)
		if !c.Mine || c.Err != nil || len(c.Outcomes) != len(c.Entry.Records) {
			t.Fatalf("entry %d: mine %v, %d outcomes of %d, %v", i, c.Mine, len(c.Outcomes), len(c.Entry.Records), c.Err)
		}
		if mid := c.Entry.Records[0].Mid; mid != fmt.Sprint(i) {
			t.Fatalf("entry %s came as the %dth", mid, i)
		}
		if c.Position <= position || c.Chain == chain {
			t.Fatalf("entry %d has position %d after %d, chain %x after %x", i, c.Position, position, c.Chain, chain)
		}
		position, chain = c.Position, c.Chain
		want := []msglog.Outcome{msglog.Stored, msglog.Stored, msglog.Duplicate}
		if i == 0 {
			want[2] = msglog.Stored
		}
		wantOutcomes(t, c.Outcomes, want...)
		stored := c.Stored(nil)
		if _, last := l.Bounds(); last < stored[len(stored)-1].Seq {
			t.Fatalf("entry %d came before it could be read", i)
		}
		entries = append(entries, c.Entry)
	}
	var want []*msglog.Record
	for i, e := range entries {
		want = append(want, e.Records[:2]...)
		if i == 0 {
			want = append(want, e.Records[2])
		}
	}
	wantRecords(t, readAll(t, l, 0, 1<<60), want)
}

// entriesOf returns entries of three records, of which the third is always the same.
func entriesOf(n int) []*msglog.Entry {
	entries := make([]*msglog.Entry, n)
	for i := range entries {
		entries[i] = Entry(
			withMid(msg("alice", "user/bob", fmt.Sprint(i)), fmt.Sprint(i)),
			msg("alice", "group/g", fmt.Sprint(i)),
			withMid(msg("alice", "group/g", "again"), "again"))
	}
	return entries
}

// Whoever follows from further back gets what is there, and then what comes, nothing twice
// and nothing left out; also while others propose, and across what is forgotten.
func testFollowFrom(t *testing.T, open Open) {
	l := openTemp(t, open)
	all := fill(t, l, 1500, 37)
	done := make(chan struct{})
	var more []*msglog.Record
	go func() {
		defer close(done)
		for i := range 60 {
			r := msg("alice", "user/bob", fmt.Sprint("more", i))
			if c, err := Propose(l, r); err != nil || c.Outcomes[0] != msglog.Stored {
				t.Errorf("%v, %v", c, err)
				return
			}
			more = append(more, r)
		}
	}()
	type result struct {
		after int
		recs  []*msglog.Record
	}
	results := make(chan result, 5)
	afters := []int{0, 1, 700, 1100, 1499}
	for _, after := range afters {
		feed := mustFollow(t, l, all[after].Seq)
		go func() { // at the same time, since the log waits for them
			defer feed.Close()
			r := result{after: after}
			for len(r.recs) < len(all)-after-1+60 {
				c, ok := <-feed.C
				if !ok {
					t.Errorf("the feed has ended: %v", feed.Err())
					break
				}
				r.recs = c.Stored(r.recs)
			}
			results <- r
		}()
	}
	<-done
	for range afters {
		select {
		case r := <-results:
			wantRecords(t, r.recs, append(all[r.after+1:len(all):len(all)], more...))
		case <-time.After(patience):
			t.Fatal("not all that was committed comes")
		}
	}
	mustTrim(t, l, all[1200].Seq)
	feed := mustFollow(t, l, 0)
	defer feed.Close()
	wantRecords(t, nextMessages(t, feed, 1500-1201+60), append(all[1201:len(all):len(all)], more...))
}

// Feeds end with the log.
func testFollowEnds(t *testing.T, open Open) {
	l := open(t, t.TempDir())
	store(t, l, msg("alice", "user/bob", "hello"))
	live, back := mustFollow(t, l, math.MaxUint64), mustFollow(t, l, 0)
	if recs := nextMessages(t, back, 1); recs[0].From != "alice" {
		t.Fatal(recs[0])
	}
	mustClose(t, l)
	for _, f := range []*msglog.Feed{live, back} {
		select {
		case c, ok := <-f.C:
			if ok {
				t.Fatalf("an entry after the end: %+v", c)
			}
		case <-time.After(patience):
			t.Fatal("the feed does not end")
		}
		if !errors.Is(f.Err(), msglog.ErrClosed) {
			t.Errorf("the feed has ended with %v", f.Err())
		}
		f.Close()
		f.Close()
	}
}

// An entry's changes to the state store are made with it: they are there when it is
// committed, and after a restart.
func testStateInEntry(t *testing.T, open Open) {
	dir := t.TempDir()
	l := open(t, dir)
	set := func(key, value string) state.Op { return state.Op{Key: key, Value: []byte(value)} }
	mustCommit(t, l, &msglog.Entry{State: []state.Op{set("a/1", "x"), set("a/2", "y"), set("b", "z")}})
	rec := msg("alice", "user/bob", "hello")
	e := Entry(rec)
	e.State = []state.Op{{Key: "a/", Delete: true, Prefix: true}, set("a/3", "w"), {Key: "b", Delete: true}, set("c", "")}
	c := mustCommit(t, l, e)
	wantOutcomes(t, c.Outcomes, msglog.Stored)
	want := map[string]string{"a/3": "w", "c": ""}
	for range 2 {
		if d := cmp.Diff(want, scan(t, l.State, "")); d != "" {
			t.Fatalf("store (-want +got):\n%s", d)
		}
		wantRecords(t, readAll(t, l, 0, 1<<60), []*msglog.Record{rec})
		mustClose(t, l)
		l = open(t, dir)
	}
	mustClose(t, l)
}

// A message's time is that of its entry, or that of the message before if that is greater;
// also after a restart, and when the message before is forgotten.
func testTime(t *testing.T, open Open) {
	dir := t.TempDir()
	l := open(t, dir)
	at := func(time, want int64) {
		t.Helper()
		r := msg("alice", "user/bob", "hello")
		r.TS = 7 // it is the log that decides
		mustCommit(t, l, &msglog.Entry{Time: time, Records: []*msglog.Record{r}})
		if r.TS != want {
			t.Fatalf("an entry of %d has the time %d, want %d", time, r.TS, want)
		}
	}
	at(1000, 1000)
	at(500, 1000)
	at(1001, 1001)
	mustCommit(t, l, &msglog.Entry{Time: 5000}) // has no message
	at(2000, 2000)
	mustTrim(t, l, 1<<60)
	mustClose(t, l)
	l = open(t, dir)
	defer mustClose(t, l)
	at(1500, 2000)
	at(3000, 3000)
}

// An entry of an origin whose disk was full stores nothing, wherever it is applied, and
// tells what was there before.
func testFull(t *testing.T, open Open) {
	l := openTemp(t, open)
	before := withMid(msg("alice", "user/bob", "before"), "before")
	store(t, l, before)
	e := Entry(withMid(msg("alice", "user/bob", "before"), "before"), withMid(msg("alice", "user/bob", "new"), "new"))
	e.Full = true
	wantOutcomes(t, mustCommit(t, l, e).Outcomes, msglog.Duplicate, msglog.NoRoom)
	wantRecords(t, readAll(t, l, 0, 1<<60), []*msglog.Record{before})
}

// What is forgotten by an entry is forgotten behind that entry, neither before nor after:
// a mid of such a message is new, whether the message is still on the disk or not.
func testForgetInOrder(t *testing.T, open Open) {
	dir := t.TempDir()
	l := open(t, dir)
	defer func() { mustClose(t, l) }()
	const n = 400
	batch := func(k int) []*msglog.Record {
		recs := make([]*msglog.Record, n)
		for i := range recs {
			recs[i] = withMid(msg("alice", "group/g", fmt.Sprint(i)), fmt.Sprint("m", i))
			recs[i].PacketID = uint16(k*n + i + 1) //nolint:gosec // small
		}
		return recs
	}
	old := batch(0)
	store(t, l, old...)
	for k := range 4 {
		if k == 2 {
			mustClose(t, l)
			l = open(t, dir)
		}
		last := old[n-1].Seq
		// Without waiting in between: the second is applied before anything is removed.
		first := mustPropose(t, l, &msglog.Entry{Trim: old[n/2-1].Seq})
		again := batch(k + 1)
		c := mustCommit(t, l, Entry(again...))
		for i, o := range c.Outcomes {
			want := msglog.Stored
			if i >= n/2 {
				want = msglog.Duplicate
			}
			if o != want {
				t.Fatalf("round %d: message %d came again and was %v, want %v", k, i, o, want)
			}
		}
		if _, err := first.Wait(); err != nil {
			t.Fatal(err)
		}
		mustTrim(t, l, last)
		third := batch(k + 1)
		c = mustCommit(t, l, Entry(third...))
		for i, o := range c.Outcomes {
			want := msglog.Duplicate
			if i >= n/2 {
				want = msglog.Stored
			}
			if o != want {
				t.Fatalf("round %d: after the other half, message %d came again and was %v, want %v", k, i, o, want)
			}
		}
		// All of them once, in the order in which they are kept now.
		old = append(again[:n/2:n/2], third[n/2:]...)
		wantRecords(t, readAll(t, l, 0, 1<<60), old)
		if err := l.Compact(context.Background(), 0); err != nil { // waits until all is removed
			t.Fatal(err)
		}
	}
}
