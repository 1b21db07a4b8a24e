package msglog

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"mynah/chat"
)

func midRecord(i int) *Record {
	return &Record{Message: chat.Message{From: "alice", To: "group/g", Type: "text", Mid: fmt.Sprint("mid", i)}, Digest: uint64(i)} //nolint:gosec // small
}

func appendMids(t *testing.T, l *Pebble, from, to int) []Outcome {
	t.Helper()
	recs := make([]*Record, 0, to-from)
	for i := from; i < to; i++ {
		recs = append(recs, midRecord(i))
	}
	return proposeTest(t, l, &Entry{Records: recs}).Outcomes
}

// The filter never takes a known mid for new: not while it is built after opening,
// not over generations, not when it has been given up. Guards against storing a
// message twice. And it does take new ones for new.
func TestMidFilter(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]int{"room": 0, "too many": 30 << 10} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			opts := testOptions()
			opts.FS, opts.MidFilterBytes, opts.MemTableBytes = vfs.NewMem(), limit, 8<<20
			n := 0
			for round := range 3 {
				l, err := Open(dir, opts)
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; i < n; i += 2000 { // some of them before it is built
					for k, o := range appendMids(t, l, i, i+100) {
						if o != Duplicate {
							t.Fatalf("round %d: mid %d came again and was %v", round, i+k, o)
						}
					}
				}
				for range 4 {
					for k, o := range appendMids(t, l, n, n+3000) {
						if o != Stored {
							t.Fatalf("round %d: mid %d is new and was %v", round, n+k, o)
						}
					}
					n += 3000
				}
				f := &l.applier.filter
				for !f.complete && !f.disabled { // building ends by itself
					f.isNew(0)
					runtime.Gosched()
				}
				switch {
				case limit != 0 && round == 2:
					if !f.disabled {
						t.Fatalf("%d bytes of filter", f.bytes)
					}
				case limit == 0:
					if wrong := falseNew(f, n); wrong > 0 {
						t.Fatalf("round %d: %d known mids seem new", round, wrong)
					}
					known := 0
					for i := range 10_000 {
						if !f.isNew(midHash("alice", fmt.Sprint("other", i))) {
							known++
						}
					}
					if known > 400 {
						t.Fatalf("round %d: %d of 10,000 new mids seem known", round, known)
					}
				}
				closeTest(t, l)
			}
			// What was trimmed is new again, and its generations go.
			l, err := Open(dir, opts)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Compact(t.Context(), 1<<60); err != nil {
				t.Fatal(err)
			}
			for i, o := range appendMids(t, l, 0, 1000) {
				if o != Stored {
					t.Fatalf("mid %d was trimmed and is now %v", i, o)
				}
			}
			closeTest(t, l)
		})
	}
}

func falseNew(f *midFilter, n int) (wrong int) {
	for i := range n {
		if f.isNew(midHash("alice", fmt.Sprint("mid", i))) {
			wrong++
		}
	}
	return wrong
}
