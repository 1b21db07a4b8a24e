package delivery

import (
	"maps"
	"slices"

	"mynah/broker/session"
)

// Subscribe adds or replaces subscriptions. When it returns without an error, a
// session that outlives its connection has them on disk.
func (s *Session) Subscribe(subs []session.Subscription, groups []string) error {
	s.Changes.Lock()
	defer s.Changes.Unlock()
	if s.Ended {
		return nil
	}
	before := maps.Clone(s.Filters)
	for _, sub := range subs {
		s.Filters[sub.Filter] = sub
	}
	s.Groups = session.SetOf(groups)
	if err := s.subscribeLocked(!maps.Equal(before, s.Filters)); err != nil {
		s.Filters = before
		_ = s.resyncTopics()
		return err
	}
	s.notifySubscribed(subs...)
	return nil
}

// Unsubscribe removes subscriptions.
func (s *Session) Unsubscribe(filters []string) error {
	s.Changes.Lock()
	defer s.Changes.Unlock()
	if s.Ended {
		return nil
	}
	var had []string
	for _, f := range filters {
		if _, ok := s.Filters[f]; ok {
			delete(s.Filters, f)
			had = append(had, f)
		}
	}
	if len(had) == 0 {
		return nil
	}
	s.notifyUnsubscribed(had...)
	return s.subscribeLocked(true)
}

// SetGroups tells a session which groups its subject is in now.
func (s *Session) SetGroups(groups []string) error {
	s.Changes.Lock()
	defer s.Changes.Unlock()
	next := session.SetOf(groups)
	if maps.Equal(next, s.Groups) {
		return nil
	}
	s.Groups = next
	return s.subscribeLocked(false)
}

// ChangeGroup tells a session that its subject joined or left a group.
func (s *Session) ChangeGroup(group string, member bool) error {
	s.Changes.Lock()
	defer s.Changes.Unlock()
	if _, was := s.Groups[group]; was == member {
		return nil
	}
	s.Groups = maps.Clone(s.Groups)
	if s.Groups == nil {
		s.Groups = map[string]struct{}{}
	}
	if member {
		s.Groups[group] = struct{}{}
	} else {
		delete(s.Groups, group)
	}
	return s.subscribeLocked(false)
}

// subscribeLocked brings the topics in line with filters and groups and stores them,
// durably if topics have changed or the caller says that something has. Changes is held.
func (s *Session) subscribeLocked(changed bool) error {
	if s.Ended {
		return nil
	}
	changed = s.resyncTopics() || changed
	return s.save(changed)
}

// resyncTopics brings the topics in line with filters and groups and reports whether
// there are others now. Changes is held.
func (s *Session) resyncTopics() (changed bool) {
	want := s.Topics()
	s.Mu.Lock()
	have := s.topics
	attached := s.Conn != nil
	s.Mu.Unlock()

	next := make(map[string]*topicSub, len(want))
	var added, removed []*topicSub
	for topic, w := range want {
		t := have[topic]
		if t == nil {
			t = &topicSub{feed: &s.feed, topic: topic, signal: w.Signal, since: ^uint64(0)}
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
				s.engine.topics.add(t)
			}
		}
	}
	for _, t := range removed {
		s.engine.topics.remove(t)
	}
	s.useTopics(want, next, added)
	return len(added)+len(removed) > 0
}

// useTopics has the session go by its next topics, with the options that are wanted for
// them. Changes is held.
func (s *Session) useTopics(want map[string]*session.Topic, next map[string]*topicSub, added []*topicSub) {
	first, last := s.engine.log.Bounds()
	s.Mu.Lock()
	defer s.Mu.Unlock()
	for topic, w := range want {
		t := next[topic]
		t.qos, t.noLocal, t.ids = w.QoS, w.NoLocal, w.IDs
	}
	for _, t := range added {
		t.since = last
		if s.Archiver {
			t.since = first - 1
		}
	}
	s.topics = next
	s.plan = newPlan(next)
	if s.Archiver && len(added) > 0 {
		s.rewindLocked(first - 1)
	}
}

// save stores the subscriptions, durably if they have changed, and the position. Changes is
// held.
func (s *Session) save(changed bool) error {
	st, delivered := s.engine.store, s.engine.delivered.Load()
	s.Mu.Lock()
	persistent := s.Expiry > 0
	since := make(map[string]uint64, len(s.topics))
	for topic, t := range s.topics {
		if !t.signal {
			since[topic] = t.since
		}
	}
	var p session.Position
	if persistent {
		p = s.positionLocked(delivered)
	}
	s.Mu.Unlock()
	switch {
	case persistent:
		// A client that is told of a session counts on it, so a new one is synced too.
		return st.Save(&s.Session, since, p, changed || !s.Stored)
	case s.Stored:
		st.Forget(&s.Session)
	}
	return nil
}

// notifySubscribed tells of the session's subscriptions outside the chat. Changes is held.
func (s *Session) notifySubscribed(subs ...session.Subscription) {
	if s.engine.cfg.Observer == nil {
		return
	}
	for _, sub := range subs {
		if !session.IsChatFilter(sub.Filter) {
			s.engine.cfg.Observer.Subscribed(&s.Session, sub)
		}
	}
}

// notifyUnsubscribed tells that the session no longer has these. Changes is held.
func (s *Session) notifyUnsubscribed(filters ...string) {
	if s.engine.cfg.Observer == nil {
		return
	}
	filters = slices.DeleteFunc(filters, session.IsChatFilter)
	if len(filters) > 0 {
		s.engine.cfg.Observer.Unsubscribed(&s.Session, filters...)
	}
}
