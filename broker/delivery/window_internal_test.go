package delivery

import (
	"testing"

	"pgregory.net/rapid"
)

// The window against a naive map: ids are unique while in use, every entry is found by
// its id, acknowledgements in any order free it from the front.
func TestWindowAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var w window
		w.started, w.next = true, uint16(rapid.IntRange(1, maxWindow).Draw(t, "first id"))
		type open struct {
			id  uint16
			seq uint64
		}
		var model []open
		var seq uint64
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			if len(model) == 0 || rapid.Bool().Draw(t, "push") {
				seq++
				want := w.nextID()
				id := w.push(inflight{seq: seq, qos: 1})
				if id != want || id == 0 {
					t.Fatalf("push gave id %d, nextID said %d", id, want)
				}
				for _, o := range model {
					if o.id == id {
						t.Fatalf("id %d is given twice", id)
					}
				}
				model = append(model, open{id, seq})
			} else {
				i := rapid.IntRange(0, len(model)-1).Draw(t, "acknowledge")
				w.done(w.get(model[i].id))
				if w.get(model[i].id) != nil {
					t.Fatalf("id %d is still there", model[i].id)
				}
				model = append(model[:i:i], model[i+1:]...)
			}
			if rapid.IntRange(0, 9).Draw(t, "go offline") == 0 {
				if w.shrink(); len(w.ring) > max(8, 2*w.n) || w.n == 0 && w.ring != nil {
					t.Fatalf("a ring of %d for %d entries", len(w.ring), w.n)
				}
			}
			if w.open != len(model) {
				t.Fatalf("%d open, want %d", w.open, len(model))
			}
			var oldest uint64
			if len(model) > 0 {
				oldest = model[0].seq
			}
			if got := w.oldest(false); got != oldest {
				t.Fatalf("oldest is %d, want %d", got, oldest)
			}
			for _, o := range model {
				if e := w.get(o.id); e == nil || e.seq != o.seq {
					t.Fatalf("id %d gives %+v, want seq %d", o.id, e, o.seq)
				}
			}
		}
	})
}

// Packet ids count from 1 to 65535 and begin again.
func TestPacketIDsWrap(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		id   uint16
		n    int
		want uint16
	}{{1, 0, 1}, {65535, 0, 65535}, {65535, 1, 1}, {65534, 3, 2}, {5, 65535, 5}} {
		if got := stepID(tc.id, tc.n); got != tc.want {
			t.Errorf("stepID(%d, %d) is %d, want %d", tc.id, tc.n, got, tc.want)
		}
	}
}
