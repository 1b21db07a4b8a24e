package broker

import (
	"testing"

	"pgregory.net/rapid"
)

// An idSet is what a map would be.
func TestIDSet(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var set, other idSet
		model := map[uint16]bool{}
		id := rapid.OneOf(rapid.Uint16(), rapid.Uint16Range(250, 260))
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			switch i := id.Draw(t, "id"); rapid.IntRange(0, 3).Draw(t, "what") {
			case 0, 1:
				set.add(i)
				model[i] = true
			case 2:
				set.remove(i)
				delete(model, i)
			case 3:
				other = idSet{}
				other.add(i)
				other.add(^i)
				set.addAll(&other)
				model[i], model[^i] = true, true
			}
			if set.len() != len(model) {
				t.Fatalf("%d ids, want %d", set.len(), len(model))
			}
			if i := id.Draw(t, "asked"); set.has(i) != model[i] {
				t.Fatalf("%d is in it: %t", i, set.has(i))
			}
		}
		for i := range model {
			set.remove(i)
		}
		if set.len() != 0 || set.blocks != nil {
			t.Fatalf("%d ids in %d blocks are left", set.len(), len(set.blocks))
		}
	})
}
