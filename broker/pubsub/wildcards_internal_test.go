package pubsub

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"mynah/broker/session"
)

// subscribe has a session subscribe as the broker does. It reports whether it may.
func (t *Topics) subscribe(s *session.Session, f session.Subscription) bool {
	if !t.Reserve(s.Subject, f.Filter) {
		return false
	}
	t.Subscribed(s, f)
	t.Release(s.Subject, []string{f.Filter})
	return true
}

func sessionOf(subject string, n int) *session.Session {
	return &session.Session{Key: session.Key{Subject: subject, ClientID: fmt.Sprint(n)}}
}

// nodes returns how many nodes a tree has below n, which is what a match may visit at most.
func (n *filterNode) nodes() (all int) {
	for _, next := range n.below {
		all += 1 + next.nodes()
	}
	return all
}

// A publish costs bounded work however one subject's sessions divide its filters among them:
// 130 sessions of 1,000 filters of 17 levels, each "a" or "+", made one of 40 bytes visit
// 262,142 nodes.
func TestManySessionsWithDifferentFilters(t *testing.T) {
	t.Parallel()
	const limit, sessions, each = 100, 16, 128
	p := &Topics{cfg: Config{MaxWildcards: limit}}
	granted := 0
	for i := range sessions {
		s := sessionOf("mallory", i)
		for j := range each {
			levels := make([]string, 11)
			for at := range levels {
				levels[at] = [2]string{"a", "+"}[(i*each+j)>>at&1]
			}
			if p.subscribe(s, session.Subscription{Filter: strings.Join(levels, "/")}) {
				granted++
			}
		}
	}
	if n := p.tree.root.nodes(); granted < limit/2 || granted > limit+1 || n > limit*levelsPerWildcard+11 {
		t.Errorf("%d filters of %d are granted, and %d nodes to visit, want at most %d", granted, sessions*each, n, limit*levelsPerWildcard+11)
	}

	// The same filters in all sessions: few nodes, and as many subscriptions to visit.
	p = &Topics{cfg: Config{MaxWildcards: 10}}
	for i := range 50 {
		s := sessionOf("mallory", i)
		for j := range 10 {
			p.subscribe(s, session.Subscription{Filter: strings.Repeat("a/", j) + "#"})
		}
	}
	if n := p.tree.root.count(); n != 10*subscriptionsPerWildcard {
		t.Errorf("%d subscriptions, want %d", n, 10*subscriptionsPerWildcard)
	}
}

// A subject's filters with wildcards are counted while any of its sessions has them, each
// once, and those of nobody else. What it has from before it keeps, and may have in other
// sessions too.
func TestWildcardsAreCounted(t *testing.T) {
	t.Parallel()
	p := &Topics{cfg: Config{MaxWildcards: 2}}
	phone, desk := sessionOf("alice", 1), sessionOf("alice", 2)
	may := func(s *session.Session, filter string, want bool) {
		t.Helper()
		if p.subscribe(s, session.Subscription{Filter: filter}) != want {
			t.Errorf("%s of %s: want %t", filter, s.ClientID, want)
		}
	}
	may(phone, "a/+", true)
	may(phone, "$share/g/a/+", true)
	may(phone, "b/+", false)
	for _, other := range []string{"a/b", "group/+", "user/+/signal"} {
		may(phone, other, true) // no wildcard, or not outside the chat
	}
	may(desk, "a/+", true) // alice has it
	may(desk, "b/+", false)
	may(sessionOf("bob", 1), "b/+", true)
	p.Subscribed(phone, session.Subscription{Filter: "a/+", QoS: 1}) // replaced
	p.unsubscribed(phone, []string{"a/+"})
	p.unsubscribed(phone, []string{"a/+"}) // it has it no longer
	may(desk, "b/+", false)
	p.unsubscribed(desk, []string{"a/+"})
	may(desk, "b/+", true)

	// As stored sessions are loaded.
	for _, f := range []string{"c/+", "d/+", "e/+"} {
		p.Subscribed(phone, session.Subscription{Filter: f})
	}
	may(desk, "f/+", false)
	may(desk, "e/+", true)
	for _, f := range []string{"c/+", "d/+", "e/+", "$share/g/a/+"} {
		p.unsubscribed(phone, []string{f})
	}
	may(desk, "f/+", false)
	p.unsubscribed(desk, []string{"e/+"})
	may(desk, strings.Repeat("f/", 2*levelsPerWildcard-2)+"#", false) // one level too many
	may(desk, strings.Repeat("f/", 2*levelsPerWildcard-3)+"#", true)
	for _, f := range []string{"b/+", strings.Repeat("f/", 2*levelsPerWildcard-3) + "#"} {
		p.unsubscribed(desk, []string{f})
	}
	p.unsubscribed(sessionOf("bob", 1), []string{"b/+"}) // another session than bob's
	if w := p.wildcards["alice"]; w != nil || len(p.wildcards) != 1 {
		t.Errorf("alice has none and is counted with %+v; %d subjects, want bob alone", w, len(p.wildcards))
	}
}

// Sessions that subscribe at the same time do not get more together: a filter counts from
// when it is allowed, not from when it is stored.
func TestWildcardsAreReserved(t *testing.T) {
	t.Parallel()
	p := &Topics{cfg: Config{MaxWildcards: 20}}
	var allowed atomic.Int32
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			for j := range 10 {
				if p.Reserve("alice", fmt.Sprintf("%d/%d/+", i, j)) {
					allowed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := allowed.Load(); n != 20 {
		t.Errorf("%d are allowed, want 20", n)
	}
}
