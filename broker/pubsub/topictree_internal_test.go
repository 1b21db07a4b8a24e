package pubsub

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A topicTree holds what a map would, finds what matches says, and keeps no node for what is
// gone.
func TestTopicTree(t *testing.T) {
	t.Parallel()
	topics := topicsOf("a", "b", "", "$x")
	filters := slices.DeleteFunc(topicsOf("a", "b", "", "$x", "+", "#"), func(f string) bool { return !ValidFilter(f) })
	rapid.Check(t, func(t *rapid.T) {
		var tree topicTree[int]
		model := map[string]int{}
		check := func() {
			if tree.len() != len(model) {
				t.Fatalf("%d topics, want %d", tree.len(), len(model))
			}
			topic := rapid.SampledFrom(topics).Draw(t, "asked")
			want, known := model[topic]
			if v, ok := tree.get(topic); v != want || ok != known {
				t.Fatalf("%q: %d %t, want %d %t", topic, v, ok, want, known)
			}
			filter, found := rapid.SampledFrom(filters).Draw(t, "filter"), map[string]int{}
			tree.match(filter, func(topic string, v int) {
				if _, twice := found[topic]; twice {
					t.Fatalf("%q finds %q twice", filter, topic)
				}
				found[topic] = v
			})
			matching := maps.Clone(model)
			maps.DeleteFunc(matching, func(topic string, _ int) bool { return !matches(filter, topic) })
			if !maps.Equal(found, matching) {
				t.Fatalf("%q finds %v, want %v", filter, found, matching)
			}
		}
		for i := range rapid.IntRange(0, 60).Draw(t, "steps") {
			topic := rapid.SampledFrom(topics).Draw(t, "topic")
			if rapid.Bool().Draw(t, "put") {
				tree.put(topic, i)
				model[topic] = i
			} else {
				tree.remove(topic)
				delete(model, topic)
			}
			check()
		}
		for topic := range model {
			tree.remove(topic)
		}
		if tree.len() != 0 || tree.root.below != nil {
			t.Fatalf("%d topics and %d nodes are left", tree.len(), len(tree.root.below))
		}
	})
}
