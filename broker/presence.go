package broker

import (
	"encoding/json"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/state"
	"mynah/chat"
)

// presencePrefix begins the keys under which it is stored when a subject was last seen:
// milliseconds since 1970, 0 while it is online.
const presencePrefix = "presence/"

// maxAway is of how many subjects that are away it is kept in memory when they were seen.
const maxAway = 1 << 17

// presence tells on presence/<id> whether a subject is online, which it is while it has
// a connection. One that comes back within the settling time was never away. In memory are
// those who are online and some of the others; all are on disk.
type presence struct {
	settle time.Duration
	store  state.Store
	plain  *plainTopics
	logger *slog.Logger
	now    func() time.Time

	mu       sync.Mutex
	subjects map[string]*seen
	away     map[string]int64 // when some of the others were last seen, in milliseconds since 1970
	stopped  bool
	waiting  []change         // to be stored and told, oldest first
	unsaved  map[string]int64 // the last change of each subject in waiting
	telling  bool             // a goroutine does that
	tellers  sync.WaitGroup
}

// change is that a subject has come or gone.
type change struct {
	subject string
	last    int64 // when it was last seen, in milliseconds since 1970; 0 if it has come
}

// seen is a subject that is online, or was a moment ago.
type seen struct {
	connections int
	since       time.Time   // when the first connection came
	leaving     *time.Timer // runs while there are none
	last        time.Time   // when the last connection ended
}

// presenceState is the payload of presence/<id>.
type presenceState struct {
	User     string `json:"user"`
	Online   bool   `json:"online"`
	LastSeen int64  `json:"last_seen"` // milliseconds since 1970
}

// restore has everybody offline: whoever was online when the broker stopped was seen until
// then.
func (p *presence) restore() error {
	last := strconv.AppendInt(nil, p.now().UnixMilli(), 10)
	var ops []state.Op
	if err := p.store.Scan(presencePrefix, func(key string, value []byte) bool {
		if string(value) == "0" {
			ops = append(ops, state.Op{Key: key, Value: last})
		}
		return true
	}); err != nil {
		return err
	}
	return p.store.Apply(ops, false)
}

// came says that a subject has one connection more.
func (p *presence) came(subject string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.subjects[subject]
	if s == nil {
		s = &seen{since: p.now()}
		p.subjects[subject] = s
		delete(p.away, subject)
		p.announce(subject, 0)
	}
	s.connections++
	if s.leaving != nil {
		s.leaving.Stop()
		s.leaving = nil
	}
}

// gone says that a subject has one connection less.
func (p *presence) gone(subject string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.subjects[subject]
	if s == nil {
		return
	}
	if s.connections--; s.connections > 0 {
		return
	}
	s.last = p.now()
	if p.stopped {
		p.leave(subject, s)
		return
	}
	s.leaving = time.AfterFunc(p.settle, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.subjects[subject] == s && s.connections == 0 && !p.stopped {
			p.leave(subject, s)
		}
	})
}

// leave makes a subject offline. p.mu is held.
func (p *presence) leave(subject string, s *seen) {
	delete(p.subjects, subject)
	p.rememberLocked(subject, s.last.UnixMilli())
	p.announce(subject, s.last.UnixMilli())
}

// stop makes those who are about to leave offline at once.
func (p *presence) stop() {
	defer p.tellers.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	for subject, s := range p.subjects {
		if s.leaving != nil {
			s.leaving.Stop()
			p.leave(subject, s)
		}
	}
}

// online returns how many subjects have a connection.
func (p *presence) online() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.subjects)
}

func (p *presence) note(subject string, last int64) {
	op := state.Op{Key: presencePrefix + subject, Value: strconv.AppendInt(nil, last, 10)}
	if err := p.store.Apply([]state.Op{op}, false); err != nil {
		p.logger.Warn("cannot store when somebody was last seen", "subject", subject, "error", err)
	}
}

// announce has it stored and told that a subject has come or gone, in order and soon: not
// here, since that is to wait for the disk, and whoever watches a subject may have to be
// looked up in the directory first; a connection is not to wait for that, nor whoever asks
// for a state. p.mu is held.
func (p *presence) announce(subject string, last int64) {
	p.waiting = append(p.waiting, change{subject, last})
	if p.unsaved == nil {
		p.unsaved = map[string]int64{}
	}
	p.unsaved[subject] = last
	if !p.telling {
		p.telling = true
		p.tellers.Go(p.tellWaiting)
	}
}

// presenceQoS is at which QoS presence is published.
const presenceQoS = 1

func (p *presence) tellWaiting() {
	for {
		p.mu.Lock()
		changes := p.waiting
		p.waiting = nil
		p.telling = len(changes) > 0
		p.mu.Unlock()
		if len(changes) == 0 {
			return
		}
		for _, c := range changes {
			p.note(c.subject, c.last)
			p.mu.Lock()
			if last := p.unsaved[c.subject]; last == c.last {
				delete(p.unsaved, c.subject)
			}
			p.mu.Unlock()
			// Who is to be told asks for the state when its turn comes.
			p.plain.fanOut(&delivery.PlainMessage{
				Topic: chat.PresenceTopic(c.subject), QoS: presenceQoS, Retain: true, Latest: true,
			})
		}
	}
}

// presenceMessage returns what is told of a subject, nil if it has never been seen.
func presenceMessage(subject string, state presenceState, seen bool) *delivery.PlainMessage {
	if !seen {
		return nil
	}
	payload, err := json.Marshal(state)
	if err != nil {
		return nil // it has nothing that JSON does not
	}
	return &delivery.PlainMessage{Topic: chat.PresenceTopic(subject), Payload: payload, QoS: presenceQoS, Retain: true}
}

// remembered returns what is told of a subject now, if that is in memory.
func (p *presence) remembered(subject string) (state presenceState, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.subjects[subject]; s != nil {
		return presenceState{User: subject, Online: true, LastSeen: s.since.UnixMilli()}, true
	}
	last, known := p.away[subject]
	if !known {
		last, known = p.unsaved[subject]
	}
	return presenceState{User: subject, LastSeen: last}, known && last != 0
}

// state returns what is told of a subject now, from disk if need be, and whether it has ever
// been seen.
func (p *presence) state(subject string) (state presenceState, seen bool) {
	if state, known := p.remembered(subject); known {
		return state, true
	}
	var last int64
	if err := p.scan(subject, func(found string, at int64) bool {
		last, seen = at, found == subject
		return false // it would be the first
	}); err != nil {
		p.logger.Warn("cannot tell when somebody was last seen", "subject", subject, "error", err)
		return state, false
	}
	if state, known := p.remembered(subject); known { // it has come or gone since we have looked
		return state, true
	}
	if !seen || last == 0 {
		return state, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.subjects[subject] == nil {
		p.rememberLocked(subject, last)
	}
	return presenceState{User: subject, LastSeen: last}, true
}

// rememberLocked keeps when a subject was last seen in memory, so that not everybody's
// contacts are looked for on disk when many come at a time.
func (p *presence) rememberLocked(subject string, last int64) {
	if len(p.away) >= maxAway {
		for other := range p.away { // any
			delete(p.away, other)
			break
		}
	}
	p.away[subject] = last
}

// scan calls fn for the subjects that have been seen and whose ids begin with prefix, in
// byte order, with when that was, until fn returns false.
func (p *presence) scan(prefix string, fn func(subject string, last int64) bool) error {
	return p.store.Scan(presencePrefix+prefix, func(key string, value []byte) bool {
		last, err := strconv.ParseInt(string(value), 10, 64)
		return err != nil || fn(key[len(presencePrefix):], last)
	})
}

// topics returns the topics of those who have been seen that a filter matches. One without
// wildcards is returned whether or not there is anything to tell.
func (p *presence) topics(filter string) (topics []string) {
	if chat.ParseTopic(filter).Kind == chat.KindPresence {
		return []string{filter}
	}
	if !strings.HasPrefix(filter, presencePrefix) {
		return nil // see hidden
	}
	p.mu.Lock()
	unsaved := make(map[string]struct{}, len(p.unsaved)) // those that the store may not have yet
	for subject := range p.unsaved {
		unsaved[subject] = struct{}{}
	}
	p.mu.Unlock()
	add := func(subject string) {
		if topic := chat.PresenceTopic(subject); matches(filter, topic) {
			topics = append(topics, topic)
		}
	}
	if err := p.scan("", func(subject string, _ int64) bool {
		delete(unsaved, subject)
		add(subject)
		return true
	}); err != nil {
		p.logger.Warn("cannot tell who has been seen", "error", err)
	}
	for subject := range unsaved {
		add(subject)
	}
	slices.Sort(topics)
	return topics
}
