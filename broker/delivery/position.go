package delivery

import (
	"fmt"
	"maps"
	"slices"

	"mynah/broker/session"
	"mynah/broker/state"
)

// load makes the sessions that the store has.
func (e *Engine) load() error {
	var sessions []*Session
	err := e.store.Load(func(l session.Loaded) {
		if l.Expiry == 0 {
			return
		}
		s := newSession(e, l.Key, l.Cursor)
		s.Stored, s.Archiver, s.AnyTopic, s.Filters, s.Groups = true, l.Archiver, l.AnyTopic, l.Filters, l.Groups
		s.Expiry, s.ExpiresAt = l.Expiry, l.ExpiresAt
		s.topics = map[string]*topicSub{}
		for topic, t := range s.Topics() {
			s.topics[topic] = &topicSub{
				feed: &s.feed, topic: topic, signal: t.Signal, since: l.Since[topic], qos: t.QoS, noLocal: t.NoLocal, ids: t.IDs,
			}
		}
		s.plan = newPlan(s.topics)
		sessions = append(sessions, s)
	})
	if err != nil {
		return fmt.Errorf("load sessions: %w", err)
	}
	for _, s := range sessions {
		xs, err := e.store.Exchanges(s.Key)
		if err != nil {
			return fmt.Errorf("load exchanges of sessions: %w", err)
		}
		s.restoreLocked(xs)
		e.sessions.getOrAdd(s.Key, func() *Session { return s })
		s.notifySubscribed(slices.Collect(maps.Values(s.Filters))...)
	}
	return nil
}

// appendPosition appends what brings the stored position of a session up to date. Changes is
// held.
func (e *Engine) appendPosition(ops []state.Op, s *feed) []state.Op {
	delivered := e.delivered.Load()
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return session.AppendPosition(ops, s.Key, s.positionLocked(delivered))
}

// savePosition stores the position of a session.
func (e *Engine) savePosition(s *feed, sync bool) {
	e.store.SavePositions(e.appendPosition(nil, s), sync)
}

// saveBatch is how many positions are stored at a time.
const saveBatch = 256

// savePositions stores the positions of sessions.
func (e *Engine) savePositions(sessions []*feed) {
	for some := range slices.Chunk(sessions, saveBatch) {
		var ops []state.Op
		for _, s := range some {
			ops = append(ops, e.dirtyPosition(s)...)
		}
		e.store.SavePositions(ops, false)
	}
}

// dirtyPosition returns what brings the stored position of a session up to date, nothing if
// the session has ended meanwhile: its key may be another one's by now.
func (e *Engine) dirtyPosition(s *feed) []state.Op {
	defer s.Survive()
	s.Changes.Lock()
	defer s.Changes.Unlock()
	if s.Ended || !s.Stored {
		return nil
	}
	return e.appendPosition(nil, s)
}
