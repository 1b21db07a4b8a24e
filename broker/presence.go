package broker

import (
	"encoding/json"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"mynah/broker/msglog"
	"mynah/chat"
)

// presencePrefix begins the keys under which it is stored when a subject was last seen:
// milliseconds since 1970, 0 while it is online.
const presencePrefix = "presence/"

// presence tells on presence/<id> whether a subject is online, which it is while it has
// a connection. One that comes back within the settling time was never away.
type presence struct {
	settle time.Duration
	store  msglog.Store
	plain  *plainTopics
	logger *slog.Logger
	now    func() time.Time

	mu       sync.Mutex
	subjects map[string]*seen
	stopped  bool
	waiting  []presenceState // to be told, oldest first
	telling  bool            // a goroutine does that
	tellers  sync.WaitGroup
}

// seen is a subject that is online, or was a moment ago.
type seen struct {
	connections int
	leaving     *time.Timer // runs while there are none
	last        time.Time   // when the last connection ended
}

// presenceState is the payload of presence/<id>.
type presenceState struct {
	User     string `json:"user"`
	Online   bool   `json:"online"`
	LastSeen int64  `json:"last_seen"` // milliseconds since 1970
}

// restore has everybody who has ever been seen offline: whoever was online when the broker
// stopped was seen until then. That is for those who ask from now on: nobody is connected,
// and sessions are not to be filled with it.
func (p *presence) restore() error {
	now := p.now().UnixMilli()
	var states []presenceState
	err := p.store.Scan(presencePrefix, func(key string, value []byte) bool {
		last, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil || last == 0 {
			last = now
		}
		states = append(states, presenceState{User: key[len(presencePrefix):], LastSeen: last})
		return true
	})
	if err != nil {
		return err
	}
	for _, s := range states {
		if topic, payload := p.message(s); payload != nil {
			p.plain.retain(ownMessage(topic, payload, presenceQoS), false)
		}
	}
	return nil
}

// came says that a subject has one connection more.
func (p *presence) came(subject string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.subjects[subject]
	if s == nil {
		s = &seen{}
		p.subjects[subject] = s
		p.note(subject, 0)
		p.announce(presenceState{User: subject, Online: true, LastSeen: p.now().UnixMilli()})
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
	last := s.last.UnixMilli()
	p.note(subject, last)
	p.announce(presenceState{User: subject, LastSeen: last})
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
	op := msglog.Op{Key: presencePrefix + subject, Value: strconv.AppendInt(nil, last, 10)}
	if err := p.store.Apply([]msglog.Op{op}, false); err != nil {
		p.logger.Warn("cannot store when somebody was last seen", "subject", subject, "error", err)
	}
}

// announce has a state told, in order and soon: not here, since whoever watches a subject
// may have to be looked up in the directory first, and a connection is not to wait for
// that. p.mu is held.
func (p *presence) announce(s presenceState) {
	p.waiting = append(p.waiting, s)
	if !p.telling {
		p.telling = true
		p.tellers.Go(p.tellWaiting)
	}
}

func (p *presence) tellWaiting() {
	for {
		p.mu.Lock()
		states := p.waiting
		p.waiting = nil
		p.telling = len(states) > 0
		p.mu.Unlock()
		if len(states) == 0 {
			return
		}
		for _, s := range states {
			p.tell(s)
		}
	}
}

// presenceQoS is at which QoS presence is published.
const presenceQoS = 1

func (p *presence) tell(s presenceState) {
	if topic, payload := p.message(s); payload != nil {
		p.plain.publishLatest(topic, payload, presenceQoS)
	}
}

// message returns what is told of a state.
func (p *presence) message(s presenceState) (topic string, payload []byte) {
	payload, err := json.Marshal(s)
	if err != nil {
		p.logger.Warn("cannot tell whether somebody is online", "subject", s.User, "error", err)
	}
	return chat.PresenceTopic(s.User), payload
}
