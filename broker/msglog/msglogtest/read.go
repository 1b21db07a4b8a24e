//nolint:thelper // these are the tests, not helpers: their own lines are to be reported
package msglogtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"mynah/broker/msglog"
	"mynah/broker/state"
)

func testReopen(t *testing.T, open Open) {
	dir := t.TempDir()
	var want []*msglog.Record
	for i := range 4 {
		l := open(t, dir)
		wantRecords(t, readAll(t, l, 0, 1<<60), want)
		batch := make([]*msglog.Record, 100)
		for j := range batch {
			batch[j] = msg("alice", "user/bob", fmt.Sprint(i, j))
		}
		store(t, l, batch...)
		if len(want) > 0 && batch[0].Seq != want[len(want)-1].Seq+1 {
			t.Fatalf("seq %d after reopening, want %d", batch[0].Seq, want[len(want)-1].Seq+1)
		}
		want = append(want, batch...)
		mustClose(t, l)
	}
}

// Readers see only what is durable: never more than Bounds says.
func testBounds(t *testing.T, open Open) {
	l := openTemp(t, open)
	first, _ := l.Bounds()
	for i := range 50 {
		p, err := l.Propose(Entry(msg("alice", "user/bob", fmt.Sprint(i))))
		if err != nil {
			t.Fatal(err)
		}
		got := readAll(t, l, 0, 1<<60)
		_, last := l.Bounds()
		if len(got) > 0 && got[len(got)-1].Seq > last {
			t.Fatalf("read up to %d, durable up to %d", got[len(got)-1].Seq, last)
		}
		if _, err := p.Wait(); err != nil {
			t.Fatal(err)
		}
		if f, last := l.Bounds(); f != first || last != first+uint64(i) {
			t.Fatalf("bounds %d, %d, want %d, %d", f, last, first, first+uint64(i))
		}
	}
}

func testReadTopic(t *testing.T, open Open) {
	l := openTemp(t, open)
	topics := []string{"user/alice", "user/bob", "group/1", "group/10", "group/2", "user/nobody"}
	var all []*msglog.Record
	for i := range 30 {
		var batch []*msglog.Record
		for j := range i * 5 % 70 {
			batch = append(batch, msg([]string{"alice", "bob"}[(i+j)%2], topics[(i*j)%5], fmt.Sprint(i, j)))
		}
		store(t, l, batch...)
		all = append(all, batch...)
	}
	first, last := l.Bounds()
	for _, topic := range topics {
		want := onTopic(all, topic)
		for after := first - 2; after <= last+1; after += 41 {
			for _, upto := range []uint64{0, after, after + 1, after + 7, after + 200, last, 1 << 60} {
				wantRecords(t, readTopic(t, l, topic, after, upto), between(want, after, upto))
			}
		}
	}
	for after := first - 2; after <= last+1; after += 53 {
		for _, upto := range []uint64{0, after, after + 1, after + 100, 1 << 60} {
			wantRecords(t, readAll(t, l, after, upto), between(all, after, upto))
		}
	}
}

func between(recs []*msglog.Record, after, upto uint64) []*msglog.Record {
	var out []*msglog.Record
	for _, r := range recs {
		if r.Seq > after && r.Seq <= upto {
			out = append(out, r)
		}
	}
	return out
}

func testReadStops(t *testing.T, open Open) {
	l := openTemp(t, open)
	batch := make([]*msglog.Record, 200)
	for i := range batch {
		batch[i] = msg("alice", "group/g", fmt.Sprint(i))
	}
	store(t, l, batch...)
	for _, n := range []int{1, 63, 64, 65, 199} {
		for name, read := range map[string]func(fn func(*msglog.Record) bool) error{
			"Read": func(fn func(*msglog.Record) bool) error { return l.Read(context.Background(), 0, 1<<60, fn) },
			"ReadTopic": func(fn func(*msglog.Record) bool) error {
				return l.ReadTopic(context.Background(), "group/g", 0, 1<<60, fn)
			},
		} {
			var got []*msglog.Record
			if err := read(func(r *msglog.Record) bool { got = append(got, r); return len(got) < n }); err != nil {
				t.Fatal(err)
			}
			if len(got) != n {
				t.Fatalf("%s: fn returned false at the %dth of %d records", name, n, len(got))
			}
			wantRecords(t, got, batch[:n])
		}
	}
}

func testReadCancelled(t *testing.T, open Open) {
	l := openTemp(t, open)
	batch := make([]*msglog.Record, 1000)
	for i := range batch {
		batch[i] = msg("alice", "group/g", fmt.Sprint(i))
	}
	store(t, l, batch...)
	for _, read := range []func(context.Context, func(*msglog.Record) bool) error{
		func(ctx context.Context, fn func(*msglog.Record) bool) error { return l.Read(ctx, 0, 1<<60, fn) },
		func(ctx context.Context, fn func(*msglog.Record) bool) error {
			return l.ReadTopic(ctx, "group/g", 0, 1<<60, fn)
		},
	} {
		ctx, cancel := context.WithCancel(context.Background())
		n := 0
		err := read(ctx, func(*msglog.Record) bool { n++; cancel(); return true })
		if !errors.Is(err, context.Canceled) || n == len(batch) {
			t.Fatalf("a cancelled read returned %v after %d records", err, n)
		}
	}
}

// fn may keep the records.
func testKept(t *testing.T, open Open) {
	l := openTemp(t, open)
	batch := make([]*msglog.Record, 300)
	for i := range batch {
		batch[i] = withMid(msg("alice", "group/g", fmt.Sprint(i)), fmt.Sprint(i))
	}
	store(t, l, batch...)
	got, onTopic := readAll(t, l, 0, 1<<60), readTopic(t, l, "group/g", 0, 1<<60)
	for _, r := range readAll(t, l, 0, 1<<60) {
		clear(r.Tail) // theirs to do with as they like
	}
	for range 50 {
		store(t, l, msg("alice", "group/g", "more"))
	}
	wantRecords(t, got, batch)
	wantRecords(t, onTopic, batch)
}

func testStore(t *testing.T, open Open) {
	dir := t.TempDir()
	l := open(t, dir)
	s := l.State
	want := map[string]string{}
	apply := func(sync bool, ops ...state.Op) {
		t.Helper()
		if err := s.Apply(ops, sync); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		if d := cmp.Diff(want, scan(t, s, "")); d != "" {
			t.Fatalf("store (-want +got):\n%s", d)
		}
	}
	check()
	for i := range 20 {
		key, value := fmt.Sprintf("u/%c\x00%d", 'a'+i%3, i), fmt.Sprint(i)
		want[key] = value
		apply(i%2 == 0, state.Op{Key: key, Value: []byte(value)})
	}
	want["\xff\xff"], want["empty"], want[""] = "x", "", "no key"
	apply(false, state.Op{Key: "\xff\xff", Value: []byte("x")}, state.Op{Key: "empty"}, state.Op{Value: []byte("no key")})
	check()
	if d := cmp.Diff(map[string]string{"\xff\xff": "x"}, scan(t, s, "\xff")); d != "" {
		t.Fatalf("scan of a prefix (-want +got):\n%s", d)
	}
	// A prefix goes as a whole, and what the same call sets afterwards stays.
	maps.DeleteFunc(want, func(k, _ string) bool { return len(k) > 2 && k[:3] == "u/b" })
	delete(want, "empty")
	want["u/b!"] = "new"
	apply(true,
		state.Op{Key: "u/b", Delete: true, Prefix: true},
		state.Op{Key: "u/b!", Value: []byte("new")},
		state.Op{Key: "empty", Delete: true},
		state.Op{Key: "was never there", Delete: true})
	check()
	n := 0
	if err := s.Scan("u/", func(string, []byte) bool { n++; return n < 3 }); err != nil || n != 3 {
		t.Fatalf("scan that was told to stop: %d keys, %v", n, err)
	}
	// The log and its store do not meet.
	store(t, l, msg("alice", "user/bob", "hello"))
	check()
	mustTrim(t, l, 1<<60)
	check()
	// A value may be empty, and Close makes all durable.
	mustClose(t, l)
	l = open(t, dir)
	defer mustClose(t, l)
	s = l.State
	check()
}

func testClosed(t *testing.T, open Open) {
	l := open(t, t.TempDir())
	store(t, l, msg("alice", "user/bob", "hello"))
	s := l.State
	mustClose(t, l)
	mustClose(t, l)
	ctx := context.Background()
	nothing := func(*msglog.Record) bool { return true }
	_, proposeErr := l.Propose(Entry(msg("alice", "user/bob", "hello")))
	_, followErr := l.Follow(0)
	_, tailErr := l.Tail("user/bob")
	for name, err := range map[string]error{
		"Propose":   proposeErr,
		"Follow":    followErr,
		"Tail":      tailErr,
		"Read":      l.Read(ctx, 0, 1<<60, nothing),
		"ReadTopic": l.ReadTopic(ctx, "user/bob", 0, 1<<60, nothing),
		"Compact":   l.Compact(ctx, 1<<60),
		"Apply":     s.Apply([]state.Op{{Key: "k"}}, true),
		"Scan":      s.Scan("", func(string, []byte) bool { return true }),
	} {
		if !errors.Is(err, msglog.ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", name, err)
		}
	}
}

// Readers and one appender at the same time: everyone sees an unbroken prefix of
// the same log.
func testReadersWhileAppend(t *testing.T, open Open) {
	l := openTemp(t, open)
	first, _ := l.Bounds()
	const batches, size = 60, 40
	var g errgroup.Group
	done := make(chan struct{})
	for i := range 4 {
		g.Go(func() error {
			topic := fmt.Sprintf("group/%d", i)
			var after, prev, afterAll uint64
			afterAll = first - 1
			for {
				finished := false
				select {
				case <-done:
					finished = true
				default:
				}
				_, last := l.Bounds()
				var bad error
				err := l.ReadTopic(context.Background(), topic, after, last, func(r *msglog.Record) bool {
					if r.Prev != prev || r.Seq > last {
						bad = fmt.Errorf("%s: seq %d has prev %d, want %d; durable up to %d", topic, r.Seq, r.Prev, prev, last)
						return false
					}
					after, prev = r.Seq, r.Seq
					return true
				})
				if err = errors.Join(err, bad); err != nil {
					return err
				}
				err = l.Read(context.Background(), afterAll, last, func(r *msglog.Record) bool {
					if r.Seq != afterAll+1 {
						bad = fmt.Errorf("seq %d after %d", r.Seq, afterAll)
						return false
					}
					afterAll = r.Seq
					return true
				})
				if err = errors.Join(err, bad); err != nil {
					return err
				}
				if afterAll != last {
					return fmt.Errorf("read up to %d of %d", afterAll, last)
				}
				if tail, err := l.Tail(topic); err != nil || tail < after {
					return fmt.Errorf("tail %d, %w, but %d was read", tail, err, after)
				}
				if finished {
					return nil
				}
			}
		})
	}
	var wg sync.WaitGroup
	for b := range batches {
		recs := make([]*msglog.Record, size)
		for i := range recs {
			recs[i] = msg("alice", fmt.Sprintf("group/%d", i%4), fmt.Sprint(b, i))
		}
		p, err := l.Propose(Entry(recs...))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if _, err := p.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(done)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, last := l.Bounds(); last != first+batches*size-1 {
		t.Fatalf("durable up to %d, want %d", last, first+batches*size-1)
	}
}
