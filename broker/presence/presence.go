// Package presence knows who is online and when everybody else was last seen.
//
// A subject is online while it has a connection. One that comes back within the settling
// time was never away, so that a changing network does not make contacts flicker. Who is
// online is in memory, and so are some of the others; when each was last seen is in the
// store, in order, and survives the process: whoever was online when it was killed was seen
// until it is started again.
//
// A Tracker knows neither connections nor topics. It is told that a subject has connected
// or disconnected, calls Config.Notify when that has changed what is to be said of it, and
// answers who asks. None of that waits for the disk, but for LookUp and Subjects.
package presence

import (
	"encoding/json"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"mynah/broker/state"
)

// keyPrefix begins the keys under which it is stored when a subject was last seen:
// milliseconds since 1970, 0 while it is online.
const keyPrefix = "presence/"

// maxLastSeen is of how many subjects that are offline it is kept in memory when they were
// last seen.
const maxLastSeen = 1 << 17

// Config is what a Tracker needs. All but Now is required.
type Config struct {
	Store  state.Store
	Logger *slog.Logger
	// Settle is how long a subject stays online without a connection; 0 for not at all.
	Settle time.Duration
	// Notify is called, one subject after the other and without locks, when one has come
	// or gone. It may ask the Tracker, and may wait for others.
	Notify func(subject string)
	Now    func() time.Time // default time.Now
}

// Tracker counts the connections of subjects. It is safe for concurrent use.
type Tracker struct {
	cfg   Config
	store state.Store
	now   func() time.Time

	// mu is held for moments only, and nothing is called under it.
	mu        sync.Mutex
	online    map[string]*tracked
	lastSeen  map[string]int64 // of some who are offline, in milliseconds since 1970
	stopped   bool
	changes   []change         // to be stored and notified, oldest first
	unsaved   map[string]int64 // the last change of each subject in changes
	notifying bool             // a goroutine does that
	notifiers sync.WaitGroup
}

// change says that a subject has come or gone.
type change struct {
	subject  string
	lastSeen int64 // in milliseconds since 1970; 0 if it has come
}

// tracked is a subject that is online, or was a moment ago.
type tracked struct {
	connections int
	since       time.Time   // when the first connection came
	leaving     *time.Timer // runs while there are none
	leftAt      time.Time   // when the last connection ended
}

// State is what is said of a subject.
type State struct {
	User     string `json:"user"`
	Online   bool   `json:"online"`
	LastSeen int64  `json:"last_seen"` // milliseconds since 1970; while online, when it came
}

// payload returns the state as clients get it.
func (s State) payload() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		return nil // it has nothing that JSON does not
	}
	return b
}

// New returns a Tracker that has everybody offline: whoever was online when the last one's
// process ended was seen until now. Errors are the store's.
func New(cfg Config) (*Tracker, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	t := &Tracker{
		cfg: cfg, store: cfg.Store, now: cfg.Now,
		online: map[string]*tracked{}, lastSeen: map[string]int64{},
	}
	return t, t.restore()
}

// restore marks all subjects offline.
func (t *Tracker) restore() error {
	last := strconv.AppendInt(nil, t.now().UnixMilli(), 10)
	var ops []state.Op
	if err := t.store.Scan(keyPrefix, func(key string, value []byte) bool {
		if string(value) == "0" {
			ops = append(ops, state.Op{Key: key, Value: last})
		}
		return true
	}); err != nil {
		return err
	}
	return t.store.Apply(ops, false)
}

// Connected counts a connection of a subject.
func (t *Tracker) Connected(subject string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.online[subject]
	if s == nil {
		s = &tracked{since: t.now()}
		t.online[subject] = s
		delete(t.lastSeen, subject)
		t.enqueueLocked(subject, 0)
	}
	s.connections++
	if s.leaving != nil {
		s.leaving.Stop()
		s.leaving = nil
	}
}

// Disconnected says that a counted connection of a subject has ended.
func (t *Tracker) Disconnected(subject string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.online[subject]
	if s == nil {
		return
	}
	if s.connections--; s.connections > 0 {
		return
	}
	s.leftAt = t.now()
	if t.stopped {
		t.leaveLocked(subject, s)
		return
	}
	s.leaving = time.AfterFunc(t.cfg.Settle, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.online[subject] == s && s.connections == 0 && !t.stopped {
			t.leaveLocked(subject, s)
		}
	})
}

// leaveLocked makes a subject offline.
func (t *Tracker) leaveLocked(subject string, s *tracked) {
	delete(t.online, subject)
	t.rememberLocked(subject, s.leftAt.UnixMilli())
	t.enqueueLocked(subject, s.leftAt.UnixMilli())
}

// Stop makes those who are about to leave offline at once, and returns when all changes
// are stored and Notify has been called for them.
func (t *Tracker) Stop() {
	defer t.notifiers.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	for subject, s := range t.online {
		if s.leaving != nil {
			s.leaving.Stop()
			t.leaveLocked(subject, s)
		}
	}
}

// Online returns how many subjects are online.
func (t *Tracker) Online() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.online)
}

// enqueueLocked queues a change, to be stored and then notified by a goroutine, in order:
// storing waits for the disk, and so may Notify for others. Neither a connection nor
// whoever asks for a state waits for that.
func (t *Tracker) enqueueLocked(subject string, lastSeen int64) {
	t.changes = append(t.changes, change{subject, lastSeen})
	if t.unsaved == nil {
		t.unsaved = map[string]int64{}
	}
	t.unsaved[subject] = lastSeen
	if !t.notifying {
		t.notifying = true
		t.notifiers.Go(t.notifyAll)
	}
}

func (t *Tracker) notifyAll() {
	for {
		t.mu.Lock()
		changes := t.changes
		t.changes = nil
		t.notifying = len(changes) > 0
		t.mu.Unlock()
		if len(changes) == 0 {
			return
		}
		for _, c := range changes {
			t.save(c)
			t.mu.Lock()
			if last := t.unsaved[c.subject]; last == c.lastSeen {
				delete(t.unsaved, c.subject)
			}
			t.mu.Unlock()
			t.cfg.Notify(c.subject)
		}
	}
}

func (t *Tracker) save(c change) {
	op := state.Op{Key: keyPrefix + c.subject, Value: strconv.AppendInt(nil, c.lastSeen, 10)}
	if err := t.store.Apply([]state.Op{op}, false); err != nil {
		t.cfg.Logger.Warn("cannot store when somebody was last seen", "subject", c.subject, "error", err)
	}
}

// InMemory returns the JSON of a subject's State if it is known without waiting for the
// disk. One who was never seen is not known.
func (t *Tracker) InMemory(subject string) (payload []byte, known bool) {
	s, known := t.inMemory(subject)
	if !known {
		return nil, false
	}
	return s.payload(), true
}

// LookUp returns the JSON of a subject's State, from the store if need be; nil if it was
// never seen.
func (t *Tracker) LookUp(subject string) []byte {
	s, seen := t.lookUp(subject)
	if !seen {
		return nil
	}
	return s.payload()
}

func (t *Tracker) inMemory(subject string) (s State, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if on := t.online[subject]; on != nil {
		return State{User: subject, Online: true, LastSeen: on.since.UnixMilli()}, true
	}
	last, known := t.lastSeen[subject]
	if !known {
		last, known = t.unsaved[subject]
	}
	return State{User: subject, LastSeen: last}, known && last != 0
}

func (t *Tracker) lookUp(subject string) (s State, seen bool) {
	if s, known := t.inMemory(subject); known {
		return s, true
	}
	var last int64
	if err := t.scan(subject, func(found string, at int64) bool {
		last, seen = at, found == subject
		return false // it would be the first
	}); err != nil {
		t.cfg.Logger.Warn("cannot tell when somebody was last seen", "subject", subject, "error", err)
		return s, false
	}
	if s, known := t.inMemory(subject); known { // it has come or gone since we have looked
		return s, true
	}
	if !seen || last == 0 {
		return s, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.online[subject] == nil {
		t.rememberLocked(subject, last)
	}
	return State{User: subject, LastSeen: last}, true
}

// rememberLocked keeps in memory when a subject was last seen, so that not everybody's
// contacts are looked for on disk when many come at a time.
func (t *Tracker) rememberLocked(subject string, lastSeen int64) {
	if len(t.lastSeen) >= maxLastSeen {
		for other := range t.lastSeen { // any
			delete(t.lastSeen, other)
			break
		}
	}
	t.lastSeen[subject] = lastSeen
}

// scan calls fn for the subjects that have been seen and whose ids begin with prefix, in
// byte order, with when that was, until fn returns false.
func (t *Tracker) scan(prefix string, fn func(subject string, lastSeen int64) bool) error {
	return t.store.Scan(keyPrefix+prefix, func(key string, value []byte) bool {
		last, err := strconv.ParseInt(string(value), 10, 64)
		return err != nil || fn(key[len(keyPrefix):], last)
	})
}

// Subjects calls fn for each subject that has been seen, once and in no order. fn may not
// keep the string's bytes.
func (t *Tracker) Subjects(fn func(subject string)) {
	t.mu.Lock()
	unsaved := make(map[string]struct{}, len(t.unsaved)) // those that the store may not have yet
	for subject := range t.unsaved {
		unsaved[subject] = struct{}{}
	}
	t.mu.Unlock()
	if err := t.scan("", func(subject string, _ int64) bool {
		delete(unsaved, subject)
		fn(subject)
		return true
	}); err != nil {
		t.cfg.Logger.Warn("cannot tell who has been seen", "error", err)
	}
	for subject := range unsaved {
		fn(subject)
	}
}
