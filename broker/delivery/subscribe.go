package delivery

import (
	"maps"
	"slices"

	"mynah/broker/session"
)

// Subscribe adds or replaces subscriptions. When it returns without an error, a
// session that outlives its connection has them on disk.
func (s *Session) Subscribe(subs []session.Subscription, groups []string) error {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	if s.ended {
		return nil
	}
	before := maps.Clone(s.filters)
	for _, sub := range subs {
		s.filters[sub.Filter] = sub
	}
	s.groups = setOf(groups)
	if err := s.subscribeLocked(!maps.Equal(before, s.filters)); err != nil {
		s.filters = before
		_ = s.bringInLine()
		return err
	}
	s.tellPlain(subs...)
	return nil
}

// Unsubscribe removes subscriptions.
func (s *Session) Unsubscribe(filters []string) error {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	if s.ended {
		return nil
	}
	var had []string
	for _, f := range filters {
		if _, ok := s.filters[f]; ok {
			delete(s.filters, f)
			had = append(had, f)
		}
	}
	if len(had) == 0 {
		return nil
	}
	s.untellPlain(had...)
	s.ForgetRetained(had...)
	return s.subscribeLocked(true)
}

// SetGroups tells a session which groups its subject is in now.
func (s *Session) SetGroups(groups []string) error {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	next := setOf(groups)
	if maps.Equal(next, s.groups) {
		return nil
	}
	s.groups = next
	return s.subscribeLocked(false)
}

// ChangeGroup tells a session that its subject joined or left a group.
func (s *Session) ChangeGroup(group string, member bool) error {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	if _, was := s.groups[group]; was == member {
		return nil
	}
	s.groups = maps.Clone(s.groups)
	if s.groups == nil {
		s.groups = map[string]struct{}{}
	}
	if member {
		s.groups[group] = struct{}{}
	} else {
		delete(s.groups, group)
	}
	return s.subscribeLocked(false)
}

// Groups returns the groups that the session knows its subject to be in.
func (s *Session) Groups() []string {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	return slices.Collect(maps.Keys(s.groups))
}

// Filters returns the session's subscriptions.
func (s *Session) Filters() []session.Subscription {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	return slices.Collect(maps.Values(s.filters))
}

// subscribeLocked brings the topics in line with filters and groups and stores them,
// durably if topics have changed or the caller says that something has. subsMu is held.
func (s *Session) subscribeLocked(changed bool) error {
	if s.ended {
		return nil
	}
	changed = s.bringInLine() || changed
	return s.engine.store.saveSubscriptions(s, changed)
}

// bringInLine brings the topics in line with filters and groups and reports whether
// there are others now. subsMu is held.
func (s *Session) bringInLine() (changed bool) {
	want := expand(s.filters, s.Subject, s.groups, s.anyTopic)
	s.mu.Lock()
	have := s.topics
	attached := s.conn != nil
	s.mu.Unlock()

	next := make(map[string]*topicSub, len(want))
	var added, removed []*topicSub
	for topic, w := range want {
		t := have[topic]
		if t == nil {
			t = &topicSub{session: s, topic: topic, signal: w.signal, since: ^uint64(0)}
			added = append(added, t)
		}
		next[topic] = t
	}
	for topic, t := range have {
		if want[topic] == nil {
			removed = append(removed, t)
		}
	}
	if attached {
		// Into the registry first and then since: a message committed in between
		// is either from before the subscription or finds it there.
		for _, t := range next {
			if t.entry.Load() == nil {
				s.engine.register(t)
			}
		}
	}
	for _, t := range removed {
		s.engine.unregister(t)
	}
	s.useTopics(want, next, added)
	return len(added)+len(removed) > 0
}

// useTopics has the session go by its next topics, with the options that are wanted for
// them. subsMu is held.
func (s *Session) useTopics(want, next map[string]*topicSub, added []*topicSub) {
	first, last := s.engine.log.Bounds()
	s.mu.Lock()
	defer s.mu.Unlock()
	for topic, w := range want {
		t := next[topic]
		t.qos, t.noLocal, t.ids = w.qos, w.noLocal, w.ids
	}
	for _, t := range added {
		t.since = last
		if s.archiver {
			t.since = first - 1
		}
	}
	s.topics = next
	s.plan = newPlan(next)
	if s.archiver && len(added) > 0 {
		s.rewindLocked(first - 1)
	}
}

func setOf(ids []string) map[string]struct{} {
	m := make(map[string]struct{}, len(ids))
	for _, id := range ids {
		m[id] = struct{}{}
	}
	return m
}
