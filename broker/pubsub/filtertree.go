package pubsub

import (
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"

	"mynah/broker/session"
)

// filterTree holds subscriptions outside the chat and finds those whose filters match a
// topic (MQTT 5, 4.7), in time that depends on the topic's levels and on what is found. Its
// zero value is empty. It is not for use by several goroutines at once.
//
// Mochi's tree takes time by the square of the levels with everybody waiting, does not see
// that "+/#" matches its parent level, has shared subscriptions match topics with $, and does
// not say which of a session's filters it has found.
type filterTree struct {
	root filterNode
}

type filterNode struct {
	below  map[string]*filterNode // by the name of the next level
	subs   subscribers
	shares map[string]subscribers // members of shared subscriptions, by the whole filter
}

// subscribers are sessions with what they asked for.
type subscribers map[*session.Session]session.Subscription

// pathOf returns the levels of a filter: of a shared one, what comes after its name.
func pathOf(filter string) (path string, shared bool) {
	if mqtt.IsSharedFilter(filter) {
		_, inner := cutShared(filter)
		return inner, true
	}
	return filter, false
}

// put adds a subscription, or replaces the session's with the same filter. It reports whether
// it is new.
func (t *filterTree) put(s *session.Session, f session.Subscription) bool {
	path, shared := pathOf(f.Filter)
	n := &t.root
	for level := range strings.SplitSeq(path, "/") {
		next := n.below[level]
		if next == nil {
			if n.below == nil {
				n.below = map[string]*filterNode{}
			}
			next = &filterNode{}
			n.below[level] = next
		}
		n = next
	}
	to := n.subs
	if shared {
		to = n.shares[f.Filter]
	}
	if to == nil {
		to = subscribers{}
		if shared {
			if n.shares == nil {
				n.shares = map[string]subscribers{}
			}
			n.shares[f.Filter] = to
		} else {
			n.subs = to
		}
	}
	_, had := to[s]
	to[s] = f
	return !had
}

// remove takes out a session's subscription. It reports whether it had it.
func (t *filterTree) remove(s *session.Session, filter string) (had bool) {
	path, shared := pathOf(filter)
	t.root.remove(path, func(n *filterNode) {
		from := n.subs
		if shared {
			from = n.shares[filter]
		}
		if _, had = from[s]; !had {
			return
		}
		delete(from, s)
		switch {
		case len(from) > 0:
		case shared:
			if delete(n.shares, filter); len(n.shares) == 0 {
				n.shares = nil
			}
		default:
			n.subs = nil // a map keeps the room that it once needed
		}
	})
	return had
}

// remove calls fn for the node at the end of a path below n, and cuts off what is empty then.
func (n *filterNode) remove(path string, fn func(*filterNode)) {
	level, rest, more := strings.Cut(path, "/")
	next := n.below[level]
	if next == nil {
		return
	}
	if more {
		next.remove(rest, fn)
	} else {
		fn(next)
	}
	if len(next.below)+len(next.subs)+len(next.shares) > 0 {
		return
	}
	if delete(n.below, level); len(n.below) == 0 {
		n.below = nil
	}
}

// match calls fn for each node whose filter matches a topic.
func (t *filterTree) match(topic string, fn func(*filterNode)) {
	t.root.match(topic, !hidden(topic), fn)
}

// match is for what is below n. wild is whether wildcards match the next level, as they do
// but for the first one of a topic that is hidden.
func (n *filterNode) match(topic string, wild bool, fn func(*filterNode)) {
	level, rest, more := strings.Cut(topic, "/")
	visit := func(next *filterNode) {
		switch {
		case next == nil:
		case more:
			next.match(rest, true, fn)
		default:
			fn(next)
			if all := next.below["#"]; all != nil {
				fn(all) // the parent level (4.7.1.2)
			}
		}
	}
	visit(n.below[level])
	if !wild {
		return
	}
	visit(n.below["+"])
	if all := n.below["#"]; all != nil {
		fn(all)
	}
}
