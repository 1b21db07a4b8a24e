package session

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
		var w Window
		w.started, w.next = true, uint16(rapid.IntRange(1, MaxPacketIDs).Draw(t, "first id"))
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
				want := w.NextID()
				id := w.Push(Inflight{Seq: seq, QoS: 1})
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
				w.Done(w.Get(model[i].id))
				over = append(over, model[i].id)
				model = append(model[:i:i], model[i+1:]...)
			}
			if rapid.IntRange(0, 9).Draw(t, "go offline") == 0 {
				w.Shrink()
				if most := 2 * len(model); len(w.ring) > max(SmallRing, most) || most == 0 && len(w.ring) > 0 {
					t.Fatalf("a ring of %d for %d messages", len(w.ring), len(model))
				}
			}
			most = max(most, len(model))
			if len(w.ring) > max(SmallRing, 4*most) {
				t.Fatalf("a ring of %d for at most %d messages", len(w.ring), most)
			}
			var first, ids int
			if len(model) > 0 {
				first = int(model[0].id)
				ids = (int(w.NextID())-first+MaxPacketIDs-1)%MaxPacketIDs + 1
			}
			if got := w.FreeIDs(); got != MaxPacketIDs/2-ids {
				t.Fatalf("%d ids to spare with %d taken from %d to %d", got, ids, first, w.NextID())
			}
			if w.open != len(model) {
				t.Fatalf("%d open, want %d", w.open, len(model))
			}
			var oldest uint64
			if len(model) > 0 {
				oldest = model[0].seq
			}
			if got := w.Oldest(false); got != oldest {
				t.Fatalf("oldest is %d, want %d", got, oldest)
			}
			for _, o := range model {
				if e := w.Get(o.id); e == nil || e.Seq != o.seq {
					t.Fatalf("id %d gives %+v, want seq %d", o.id, e, o.seq)
				}
			}
			for _, id := range append(over, w.NextID(), 0) {
				if e := w.Get(id); e != nil {
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
	var w Window
	w.started, w.next = true, 60_000
	kept := w.Push(Inflight{Seq: 1, QoS: 1})
	given := 1
	for ids := []uint16{}; w.FreeIDs() > 0; given++ {
		ids = append(ids, w.Push(Inflight{Seq: uint64(given) + 1, QoS: 1})) //nolint:gosec // not negative
		if len(ids) == underWay {
			w.Done(w.Get(ids[0]))
			ids = ids[1:]
		}
		if len(w.ring) > 2048 {
			t.Fatalf("a ring of %d for %d messages", len(w.ring), len(ids)+1)
		}
	}
	if given != MaxPacketIDs/2 {
		t.Errorf("%d packet ids were given out, want %d", given, MaxPacketIDs/2)
	}
	w.Done(w.Get(kept))
	if n := w.FreeIDs(); n != MaxPacketIDs/2-underWay+1 {
		t.Errorf("%d are to spare when the oldest is acknowledged", n)
	}
}

// What was restored takes the memory of what it is, however far apart its packet ids are.
func TestRestoredIDsFarApart(t *testing.T) {
	t.Parallel()
	var w Window
	w.Restore([]Exchange{{Seq: 3, ID: 30_000}, {Seq: 1, ID: 65_000}, {Seq: 2, ID: 10}})
	if len(w.ring) > SmallRing {
		t.Errorf("a ring of %d for 3 messages", len(w.ring))
	}
	for seq, id := range map[uint64]uint16{1: 65_000, 2: 10, 3: 30_000} {
		if e := w.Get(id); e == nil || e.Seq != seq {
			t.Errorf("id %d gives %+v, want seq %d", id, e, seq)
		}
	}
	if w.NextID() != 30_001 || w.FreeIDs() != MaxPacketIDs/2-30_536 {
		t.Errorf("next is id %d, and %d are to spare", w.NextID(), w.FreeIDs())
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
		if got := StepID(tc.id, tc.n); got != tc.want {
			t.Errorf("StepID(%d, %d) is %d, want %d", tc.id, tc.n, got, tc.want)
		}
	}
}

// A session that always has something under way keeps the memory for that: it would be
// given back and asked for again all the time.
func TestMemoryInUseIsKept(t *testing.T) {
	t.Parallel()
	var w Window
	ids := make([]uint16, 0, 100)
	for range 10 {
		for len(ids) < cap(ids) {
			ids = append(ids, w.Push(Inflight{Seq: 1, QoS: 1}))
		}
		for _, id := range ids {
			w.Done(w.Get(id))
		}
		ids = ids[:0]
		if w.Fit(); len(w.ring) != 128 {
			t.Fatalf("a ring of %d for at most 100 entries", len(w.ring))
		}
	}
	if w.Fit(); len(w.ring) != 0 {
		t.Errorf("a ring of %d for nothing", len(w.ring))
	}
}

// BenchmarkWindow is a message's way through the window, with 512 before it.
func BenchmarkWindow(b *testing.B) {
	var w Window
	for i := range 512 {
		w.Push(Inflight{Seq: uint64(i) + 1, Topic: "group/room", QoS: 1})
	}
	b.ReportAllocs()
	seq := uint64(513)
	for b.Loop() {
		w.Push(Inflight{Seq: seq, Topic: "group/room", QoS: 1})
		w.Done(w.Get(w.At(0).ID))
		seq++
	}
}
