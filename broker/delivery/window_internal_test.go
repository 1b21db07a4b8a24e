package delivery

import (
	"testing"

	"pgregory.net/rapid"
)

// The window against a naive map: ids are unique while in use, every entry is found by
// its id and no other is, acknowledgements in any order make room, and the memory goes with
// what is unacknowledged.
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
		var over []uint16
		most := 0
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
				over = append(over, model[i].id)
				model = append(model[:i:i], model[i+1:]...)
			}
			if rapid.IntRange(0, 9).Draw(t, "go offline") == 0 {
				w.shrink()
				if most := 2 * len(model); len(w.ring) > max(smallRing, most) || most == 0 && len(w.ring) > 0 {
					t.Fatalf("a ring of %d for %d messages", len(w.ring), len(model))
				}
			}
			most = max(most, len(model))
			if len(w.ring) > max(smallRing, 4*most) {
				t.Fatalf("a ring of %d for at most %d messages", len(w.ring), most)
			}
			var first, ids int
			if len(model) > 0 {
				first = int(model[0].id)
				ids = (int(w.nextID())-first+maxWindow-1)%maxWindow + 1
			}
			if got := w.spare(); got != maxWindow/2-ids {
				t.Fatalf("%d ids to spare with %d taken from %d to %d", got, ids, first, w.nextID())
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
			for _, id := range append(over, w.nextID(), 0) {
				if e := w.get(id); e != nil {
					t.Fatalf("id %d, which is not under way, gives %+v", id, e)
				}
			}
		}
	})
}

// A client that keeps back one message and takes all after it makes the broker remember
// what it keeps back, not all after it: that was a MiB for each session. The ids of half
// the circle are given out until the one that is kept back stops it.
func TestWindowOfOneKeptBack(t *testing.T) {
	t.Parallel()
	const underWay = 1000
	var w window
	w.started, w.next = true, 60_000
	kept := w.push(inflight{seq: 1, qos: 1})
	given := 1
	for ids := []uint16{}; w.spare() > 0; given++ {
		ids = append(ids, w.push(inflight{seq: uint64(given) + 1, qos: 1})) //nolint:gosec // not negative
		if len(ids) == underWay {
			w.done(w.get(ids[0]))
			ids = ids[1:]
		}
		if len(w.ring) > 2048 {
			t.Fatalf("a ring of %d for %d messages", len(w.ring), len(ids)+1)
		}
	}
	if given != maxWindow/2 {
		t.Errorf("%d packet ids were given out, want %d", given, maxWindow/2)
	}
	w.done(w.get(kept))
	if n := w.spare(); n != maxWindow/2-underWay+1 {
		t.Errorf("%d are to spare when the oldest is acknowledged", n)
	}
}

// What was restored takes the memory of what it is, however far apart its packet ids are.
func TestRestoredIDsFarApart(t *testing.T) {
	t.Parallel()
	var w window
	w.restore([]exchange{{seq: 3, id: 30_000}, {seq: 1, id: 65_000}, {seq: 2, id: 10}})
	if len(w.ring) > smallRing {
		t.Errorf("a ring of %d for 3 messages", len(w.ring))
	}
	for seq, id := range map[uint64]uint16{1: 65_000, 2: 10, 3: 30_000} {
		if e := w.get(id); e == nil || e.seq != seq {
			t.Errorf("id %d gives %+v, want seq %d", id, e, seq)
		}
	}
	if w.nextID() != 30_001 || w.spare() != maxWindow/2-30_536 {
		t.Errorf("next is id %d, and %d are to spare", w.nextID(), w.spare())
	}
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
