package pubsub

import (
	"slices"
	"testing"

	mqtt "github.com/mochi-mqtt/server/v2"

	"mynah/broker/session"
)

// topicsOf returns all topics of up to three levels from these.
func topicsOf(levels ...string) []string {
	all := slices.Clone(levels)
	for last := all; len(all) < len(levels)*(1+len(levels)+len(levels)*len(levels)); {
		var next []string
		for _, parent := range last {
			for _, level := range levels {
				next = append(next, parent+"/"+level)
			}
		}
		all, last = append(all, next...), next
	}
	return slices.DeleteFunc(all, func(topic string) bool { return topic == "" })
}

// Whoever has subscribed is found, whatever the filter, shared or not, and nobody else, and no
// subscription twice; also when others with filters much alike have gone. No node is kept for
// what is gone.
func TestFilterTree(t *testing.T) {
	t.Parallel()
	var tree filterTree
	topics := topicsOf("a", "b", "", "$x")
	filters := slices.DeleteFunc(topicsOf("a", "b", "", "$x", "+", "#"), func(f string) bool { return !ValidFilter(f) })
	for _, f := range slices.Clip(filters) {
		filters = append(filters, "$share/g/"+f, "$Share/h/"+f)
	}
	sessions := map[string]*session.Session{} // by filter
	other := &session.Session{}               // has all filters
	for _, f := range filters {
		sessions[f] = &session.Session{}
		for range 2 { // the second time it is replaced
			tree.put(sessions[f], session.Subscription{Filter: f})
			tree.put(other, session.Subscription{Filter: f})
		}
	}
	check := func() {
		if tree.root.count() != len(sessions)+len(filters) {
			t.Errorf("%d subscriptions, want %d", tree.root.count(), len(sessions)+len(filters))
		}
		for _, topic := range topics {
			found := map[string]int{} // by filter, how many sessions
			tree.match(topic, func(n *filterNode) {
				for _, f := range n.subs {
					found[f.Filter]++
				}
				for filter, members := range n.shares {
					found[filter] += len(members)
				}
			})
			for _, f := range filters {
				inner, want := f, 0
				if mqtt.IsSharedFilter(f) {
					_, inner = cutShared(f)
				}
				if matches(inner, topic) {
					if want++; sessions[f] != nil {
						want++
					}
				}
				if found[f] != want {
					t.Errorf("%q finds %d of %q, want %d", topic, found[f], f, want)
				}
			}
		}
	}
	check()
	for i, f := range filters {
		if i%3 == 0 {
			tree.remove(sessions[f], f)
			tree.remove(sessions[f], f) // harmless
			delete(sessions, f)
		}
	}
	check()
	for _, f := range filters {
		tree.remove(sessions[f], f)
		tree.remove(other, f)
	}
	if tree.root.count() != 0 || tree.root.below != nil {
		t.Errorf("%d subscriptions and %d nodes are left", tree.root.count(), len(tree.root.below))
	}
}

// count returns how many subscriptions there are below a node, and at it.
func (n *filterNode) count() int {
	all := len(n.subs)
	for _, members := range n.shares {
		all += len(members)
	}
	for _, next := range n.below {
		all += next.count()
	}
	return all
}
