package delivery

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"mynah/broker/session"
	"mynah/broker/state"
)

// Keys of the session store: the key of a session is its subject, a zero byte and the
// client id; no MQTT string has a zero byte.
const (
	subsPrefix    = "subs/"    // + session key → storedSubs
	cursorPrefix  = "cursor/"  // + session key → cursorValue
	exactlyPrefix = "exactly/" // + session key, zero byte, seq → the rest of an exchange
)

// storedSubs is what changes seldom in a session.
type storedSubs struct {
	Subject  string                 `json:"subject"`
	ClientID string                 `json:"client_id"`
	Filters  []session.Subscription `json:"filters"`
	Groups   []string               `json:"groups,omitempty"`
	Since    map[string]uint64      `json:"since,omitempty"` // by delivery topic
	Archiver bool                   `json:"archiver,omitempty"`
	AnyTopic bool                   `json:"any_group,omitempty"`
}

// store keeps sessions beside the log. Sessions that end with their connection are
// not in it.
type store struct {
	kv     state.Store
	logger *slog.Logger

	positions, packetIDs, arrivals, removals episode // of storing them

	mu      sync.Mutex
	ops     []state.Op // waiting for the committer
	then    []func(bool)
	waiting chan struct{} // has a value if ops has
}

func newStore(kv state.Store, logger *slog.Logger, now func() time.Time) *store {
	storing := func(what string) episode { return episode{fault: "storing " + what, logger: logger, now: now} }
	return &store{
		kv: kv, logger: logger, waiting: make(chan struct{}, 1),
		positions: storing("positions of sessions"), packetIDs: storing("packet ids of QoS 2 messages"),
		arrivals: storing("that QoS 2 messages have arrived"), removals: storing("that sessions have ended"),
	}
}

// cursorLen is how long a stored cursor is.
const cursorLen = 24

// cursorValue returns a cursor as it is stored: the seq, then expiry and expiresAt of the
// session.
func cursorValue(cursor uint64, expiry time.Duration, expiresAt time.Time) []byte {
	b := binary.BigEndian.AppendUint64(nil, cursor)
	b = binary.BigEndian.AppendUint64(b, uint64(expiry)) //nolint:gosec // not negative
	var at uint64
	if !expiresAt.IsZero() {
		at = uint64(expiresAt.UnixMilli()) //nolint:gosec // after 1970
	}
	return binary.BigEndian.AppendUint64(b, at)
}

func exactlyKey(k session.Key, seq uint64) string {
	return string(binary.BigEndian.AppendUint64([]byte(exactlyPrefix+k.Bytes()+"\x00"), seq))
}

func exchangeOp(k session.Key, x session.Exchange) state.Op {
	v := append(binary.BigEndian.AppendUint16(nil, x.ID), byte(x.State))
	return state.Op{Key: exactlyKey(k, x.Seq), Value: append(v, x.Topic...)}
}

// saveSubscriptions stores the subscriptions, durably if they have changed, and the
// cursor. subsMu is held.
func (st *store) saveSubscriptions(s *Session, changed bool) error {
	s.mu.Lock()
	persistent := s.expiry > 0
	since := make(map[string]uint64, len(s.topics))
	for topic, t := range s.topics {
		if !t.signal {
			since[topic] = t.since
		}
	}
	s.mu.Unlock()
	if !persistent {
		if s.kept {
			st.forget(s)
			s.kept = false
		}
		return nil
	}
	// A client that is told of a session counts on it, so a new one is synced too.
	changed = changed || !s.kept
	v, err := json.Marshal(storedSubs{
		Subject: s.Subject, ClientID: s.ClientID, Archiver: s.archiver, AnyTopic: s.anyTopic, Since: since,
		Filters: slices.Collect(maps.Values(s.filters)),
		Groups:  slices.Collect(maps.Keys(s.groups)),
	})
	if err != nil {
		return fmt.Errorf("encode session: %w", err)
	}
	ops := append(st.cursorOps(s), state.Op{Key: subsPrefix + s.Bytes(), Value: v})
	if err := st.kv.Apply(ops, changed); err != nil {
		return fmt.Errorf("store session: %w", err)
	}
	s.kept = true
	return nil
}

// cursorOps returns what brings the stored cursor up to date. QoS 2 messages that it
// has passed need not be remembered.
func (st *store) cursorOps(s *Session) []state.Op {
	delivered := s.engine.delivered.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty = false
	cursor := s.cursorLocked(delivered)
	ops := []state.Op{{Key: cursorPrefix + s.Bytes(), Value: cursorValue(cursor, s.expiry, s.expiresAt)}}
	n := 0
	for n < len(s.stored) && s.stored[n] <= cursor {
		ops = append(ops, state.Op{Key: exactlyKey(s.Key, s.stored[n]), Delete: true})
		n++
	}
	s.stored = slices.Delete(s.stored, 0, n)
	if len(s.stored) == 0 {
		s.stored = nil
	}
	return ops
}

// savedPositions says whether positions could be stored. What follows if not is only that
// clients get again what they have had.
func (st *store) savedPositions(err error) {
	if st.positions.begins(err) {
		st.logger.Warn("cannot store positions of sessions; after a restart they may get messages again", "error", err)
	}
}

// saveLogged stores the cursor, and logs if that begins to fail.
func (st *store) saveLogged(s *Session, sync bool) {
	st.savedPositions(st.kv.Apply(st.cursorOps(s), sync))
}

// saveAll stores the cursors of sessions, many at a time.
func (st *store) saveAll(sessions []*Session) {
	const most = 256
	for len(sessions) > 0 {
		some := sessions[:min(most, len(sessions))]
		sessions = sessions[len(some):]
		var ops []state.Op
		for _, s := range some {
			ops = append(ops, st.movedOps(s)...)
		}
		st.savedPositions(st.kv.Apply(ops, false))
	}
}

// movedOps returns what brings the cursor of a session up to date, nothing if the
// session has ended meanwhile: its key may be another one's by now.
func (st *store) movedOps(s *Session) []state.Op {
	defer s.survive()
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	if s.ended || !s.kept {
		return nil
	}
	return st.cursorOps(s)
}

// saveExactly stores the packet ids of QoS 2 messages before they are sent.
func (st *store) saveExactly(s *Session, xs []session.Exchange) error {
	s.mu.Lock()
	persistent := s.expiry > 0
	s.mu.Unlock()
	if !persistent {
		return nil
	}
	ops := make([]state.Op, len(xs))
	for i, x := range xs {
		ops[i] = exchangeOp(s.Key, x)
	}
	err := st.kv.Apply(ops, true)
	if st.packetIDs.begins(err) {
		st.logger.Error("cannot store the packet ids of QoS 2 messages; the connections that they are for are closed so that the clients try again",
			"subject", s.Subject, "client_id", s.ClientID, "error", err)
	}
	return err
}

// progress stores durably, together with others, how far a QoS 2 message has got, and
// then tells done whether it could. s.mu is held.
func (st *store) progress(s *Session, x session.Exchange, done func(stored bool)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if s.expiry > 0 {
		st.ops = append(st.ops, exchangeOp(s.Key, x))
	}
	st.then = append(st.then, done)
	select {
	case st.waiting <- struct{}{}:
	default:
	}
}

// commit runs until stop is closed and makes durable what progress was given.
func (st *store) commit(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-st.waiting:
		}
		st.mu.Lock()
		ops, then := st.ops, st.then
		st.ops, st.then = nil, nil
		st.mu.Unlock()
		stored := true
		if len(ops) > 0 {
			err := st.kv.Apply(ops, true)
			if st.arrivals.begins(err) {
				st.logger.Error("cannot store that QoS 2 messages have arrived; their exchanges go on when the clients reconnect", "error", err)
			}
			stored = err == nil
		}
		for _, f := range then {
			f(stored)
		}
	}
}

// forget removes a session.
func (st *store) forget(s *Session) {
	err := st.kv.Apply([]state.Op{
		{Key: subsPrefix + s.Bytes(), Delete: true},
		{Key: cursorPrefix + s.Bytes(), Delete: true},
		{Key: exactlyPrefix + s.Bytes() + "\x00", Delete: true, Prefix: true},
	}, false)
	if st.removals.begins(err) {
		st.logger.Warn("cannot remove sessions that have ended; they will expire after a restart",
			"subject", s.Subject, "client_id", s.ClientID, "error", err)
	}
}

// load reads all sessions.
func (st *store) load(e *Engine) error {
	byKey := map[string]*Session{}
	var bad error
	err := st.kv.Scan(subsPrefix, func(key string, value []byte) bool {
		var v storedSubs
		if err := json.Unmarshal(value, &v); err != nil {
			bad = fmt.Errorf("stored session %q: %w", key, err)
			return false
		}
		s := &Session{
			Key: session.Key{Subject: v.Subject, ClientID: v.ClientID}, engine: e, kept: true, archiver: v.Archiver, anyTopic: v.AnyTopic, groups: setOf(v.Groups),
			filters: make(map[string]session.Subscription, len(v.Filters)),
		}
		for _, f := range v.Filters {
			s.filters[f.Filter] = f
		}
		s.topics = expand(s.filters, s.Subject, s.groups, s.anyTopic)
		for topic, t := range s.topics {
			t.session, t.since = s, v.Since[topic]
		}
		s.plan = newPlan(s.topics)
		byKey[key[len(subsPrefix):]] = s
		return true
	})
	if err = errors.Join(err, bad); err != nil {
		return err
	}
	err = st.kv.Scan(cursorPrefix, func(key string, value []byte) bool {
		s := byKey[key[len(cursorPrefix):]]
		if s == nil || len(value) != cursorLen {
			return true
		}
		s.pos = binary.BigEndian.Uint64(value)
		s.expiry = time.Duration(binary.BigEndian.Uint64(value[8:]))  //nolint:gosec // as it was stored
		if at := int64(binary.BigEndian.Uint64(value[16:])); at > 0 { //nolint:gosec // as it was stored
			s.expiresAt = time.UnixMilli(at)
		} else {
			s.expiresAt = e.now().Add(s.expiry) // it was connected when the broker died
		}
		return true
	})
	if err != nil {
		return err
	}
	for key, s := range byKey {
		if s.expiry == 0 {
			continue
		}
		xs, err := st.exchanges(key)
		if err != nil {
			return err
		}
		s.restoreLocked(xs)
		e.sessions[s.Key] = s
		if e.subjects[s.Subject] == nil {
			e.subjects[s.Subject] = map[*Session]struct{}{}
		}
		e.subjects[s.Subject][s] = struct{}{}
		s.tellPlain(slices.Collect(maps.Values(s.filters))...)
	}
	return nil
}

// exchanges returns the QoS 2 messages of a session's key that were on their way.
func (st *store) exchanges(key string) (xs []session.Exchange, err error) {
	prefix := exactlyPrefix + key + "\x00"
	err = st.kv.Scan(prefix, func(k string, v []byte) bool {
		if len(k) == len(prefix)+8 && len(v) >= 3 {
			seq := binary.BigEndian.Uint64([]byte(k[len(prefix):]))
			xs = append(xs, session.Exchange{Seq: seq, ID: binary.BigEndian.Uint16(v), Topic: string(v[3:]), State: session.State(v[2])})
		}
		return true
	})
	return xs, err
}

// restoreLocked takes in, in the order of their seqs, the QoS 2 messages that were on their
// way. Those of other QoS that were between them are read again from the cursor; their
// packet ids are void.
func (s *Session) restoreLocked(xs []session.Exchange) {
	if len(xs) == 0 {
		return
	}
	s.restored = make(map[uint64]uint16, len(xs))
	var open []session.Exchange
	for _, x := range xs {
		s.restored[x.Seq] = x.ID
		s.stored = append(s.stored, x.Seq)
		if x.State != session.StateDone {
			open = append(open, x)
		}
	}
	s.win.Restore(open)
}
