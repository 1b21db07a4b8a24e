package delivery

import (
	"sync"

	"mynah/broker/session"
)

// table holds all sessions, attached or not.
type table struct {
	mu        sync.RWMutex
	byKey     map[session.Key]*Session
	bySubject map[string]map[*Session]struct{}
}

func newTable() *table {
	return &table{byKey: map[session.Key]*Session{}, bySubject: map[string]map[*Session]struct{}{}}
}

// get returns the session of a key, nil if there is none.
func (t *table) get(k session.Key) *Session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byKey[k]
}

// getOrAdd returns the session of a key, which is the one that create returns if there was
// none.
func (t *table) getOrAdd(k session.Key, create func() *Session) (s *Session, existed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s = t.byKey[k]; s != nil {
		return s, true
	}
	s = create()
	t.byKey[k] = s
	if t.bySubject[k.Subject] == nil {
		t.bySubject[k.Subject] = map[*Session]struct{}{}
	}
	t.bySubject[k.Subject][s] = struct{}{}
	return s, false
}

func (t *table) remove(s *Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byKey, s.Key)
	delete(t.bySubject[s.Subject], s)
	if len(t.bySubject[s.Subject]) == 0 {
		delete(t.bySubject, s.Subject)
	}
}

func (t *table) count() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byKey)
}

// countOf returns how many sessions a subject has.
func (t *table) countOf(subject string) int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.bySubject[subject])
}

func (t *table) all() []*Session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make([]*Session, 0, len(t.byKey))
	for _, s := range t.byKey {
		all = append(all, s)
	}
	return all
}

// of returns the sessions of a subject.
func (t *table) of(subject string) []*Session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	of := make([]*Session, 0, len(t.bySubject[subject]))
	for s := range t.bySubject[subject] {
		of = append(of, s)
	}
	return of
}

func (t *table) subjects() []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	subjects := make([]string, 0, len(t.bySubject))
	for s := range t.bySubject {
		subjects = append(subjects, s)
	}
	return subjects
}
