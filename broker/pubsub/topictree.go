package pubsub

import "strings"

// topicTree holds a value for each of many topics and finds those that a filter matches
// (MQTT 5, 4.7). Its zero value is empty. It is not for use by several goroutines at once.
type topicTree[V any] struct {
	root topicNode[V]
	n    int
}

type topicNode[V any] struct {
	below map[string]*topicNode[V] // by the name of the next level
	topic string
	value V
	set   bool
}

// len returns how many topics there are.
func (t *topicTree[V]) len() int { return t.n }

func (t *topicTree[V]) get(topic string) (v V, ok bool) {
	n := &t.root
	for level := range strings.SplitSeq(topic, "/") {
		if n = n.below[level]; n == nil {
			return v, false
		}
	}
	return n.value, n.set
}

func (t *topicTree[V]) put(topic string, v V) {
	n := &t.root
	for level := range strings.SplitSeq(topic, "/") {
		next := n.below[level]
		if next == nil {
			if n.below == nil {
				n.below = map[string]*topicNode[V]{}
			}
			next = &topicNode[V]{}
			n.below[strings.Clone(level)] = next
		}
		n = next
	}
	if !n.set {
		t.n++
	}
	n.topic, n.value, n.set = topic, v, true
}

func (t *topicTree[V]) remove(topic string) {
	n := &t.root
	keep, edge := n, "" // the last node that stays, and what is cut off below it
	for level := range strings.SplitSeq(topic, "/") {
		if n.set || len(n.below) > 1 || n == &t.root {
			keep, edge = n, level
		}
		if n = n.below[level]; n == nil {
			return
		}
	}
	if !n.set {
		return
	}
	t.n--
	if len(n.below) > 0 {
		var none V
		n.topic, n.value, n.set = "", none, false
		return
	}
	if delete(keep.below, edge); len(keep.below) == 0 {
		keep.below = nil // a map keeps the room that it once needed
	}
}

// match calls fn for each topic that a filter matches, in no order.
func (t *topicTree[V]) match(filter string, fn func(topic string, v V)) {
	t.root.match(filter, false, fn)
}

// match is for what is below n. all is whether wildcards match levels that begin with $, as
// they do but for the first [MQTT-4.7.2-1].
func (n *topicNode[V]) match(filter string, all bool, fn func(topic string, v V)) {
	level, rest, more := strings.Cut(filter, "/")
	visit := func(next *topicNode[V]) {
		switch {
		case more:
			if rest == "#" {
				next.tell(fn) // the parent level (4.7.1.2)
			}
			next.match(rest, true, fn)
		case level == "#":
			next.tell(fn)
			next.match("#", true, fn)
		default:
			next.tell(fn)
		}
	}
	if level != "+" && level != "#" {
		if next := n.below[level]; next != nil {
			visit(next)
		}
		return
	}
	for name, next := range n.below {
		if all || !strings.HasPrefix(name, "$") {
			visit(next)
		}
	}
}

func (n *topicNode[V]) tell(fn func(topic string, v V)) {
	if n.set {
		fn(n.topic, n.value)
	}
}
