package broker

import (
	"slices"
	"testing"

	mqtt "github.com/mochi-mqtt/server/v2"

	"mynah/broker/delivery"
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

// Whoever has subscribed is found by the tree, whatever the filter, and nobody else: also at
// the parent level of "+/#" and for topics with $, where Mochi's own search is wrong, and
// when others with filters much alike have gone.
func TestTreeAgainstMatches(t *testing.T) {
	t.Parallel()
	var subscriptions int64
	p := &plainTopics{tree: mqtt.NewTopicsIndex(), subscriptions: &subscriptions}
	topics := topicsOf("a", "b", "", "$x")
	filters := slices.DeleteFunc(topicsOf("a", "b", "", "$x", "+", "#"), func(f string) bool { return !validFilter(f) })
	for _, f := range slices.Clip(filters) {
		filters = append(filters, "$share/g/"+f, "$Share/h/"+f)
	}
	sessions := map[string]*delivery.Session{} // by filter
	for i, f := range filters {
		sessions[f] = &delivery.Session{Serial: uint64(i)} //nolint:gosec // not negative
		p.Subscribed(sessions[f], delivery.Subscription{Filter: f})
	}
	check := func() {
		for _, topic := range topics {
			ids, shared := p.matching(topic)
			for f, s := range sessions {
				inner, found := f, false
				if mqtt.IsSharedFilter(f) {
					_, inner = cutShared(f)
					found = slices.Contains(shared[f], treeID(s))
				} else {
					_, found = ids[treeID(s)]
				}
				if found != matches(inner, topic) {
					t.Errorf("%q finds %q: %t", topic, f, found)
				}
			}
			if known := len(ids) + len(shared); known > len(sessions) {
				t.Errorf("%q finds %d, of %d", topic, known, len(sessions))
			}
		}
	}
	check()
	for i, f := range filters {
		if i%3 == 0 {
			p.Unsubscribed(sessions[f], f)
			delete(sessions, f)
		}
	}
	check()
	for f, s := range sessions {
		p.Unsubscribed(s, f)
	}
	if left := len(p.tree.Subscribers("a/b").Subscriptions) + len(p.tree.Subscribers("a/b").Shared); left > 0 || subscriptions != 0 {
		t.Errorf("%d found and %d counted when all have gone", left, subscriptions)
	}
}

// A shared subscription to everything does not take in $SYS, which Mochi's tree forgets.
func TestSharedSubscriptionIsNotOfSystem(t *testing.T) {
	t.Parallel()
	var count int64
	p := &plainTopics{tree: mqtt.NewTopicsIndex(), subscriptions: &count}
	p.Subscribed(&delivery.Session{Serial: 1}, delivery.Subscription{Filter: "$share/g/#", QoS: 1})
	if p.fanOut(&delivery.PlainMessage{Topic: "$SYS/broker/time"}) {
		t.Error("it has a subscriber")
	}
}
