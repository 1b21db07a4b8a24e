package session

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

	"mynah/broker/msglog"
	"mynah/broker/state"
	"mynah/internal/loglimit"
)

// Keys of the store: the key of a session is its subject, a zero byte and the client id; no
// MQTT string has a zero byte.
const (
	subsPrefix    = "subs/"    // + session key → storedSubs
	cursorPrefix  = "cursor/"  // + session key → cursorValue
	exactlyPrefix = "exactly/" // + session key, zero byte, seq → the rest of an exchange
)

// storedSubs is what changes seldom in a session.
type storedSubs struct {
	Subject  string            `json:"subject"`
	ClientID string            `json:"client_id"`
	Filters  []Subscription    `json:"filters"`
	Groups   []string          `json:"groups,omitempty"`
	Since    map[string]uint64 `json:"since,omitempty"` // by topic of the chat
	Archiver bool              `json:"archiver,omitempty"`
	AnyTopic bool              `json:"any_group,omitempty"`
}

// Position is what changes often in a session that outlives its connection.
type Position struct {
	Cursor    uint64        // seq up to which everything is done
	Expiry    time.Duration // how long the session outlives its connection
	ExpiresAt time.Time     // zero while it has a connection
	// Passed are the seqs of QoS 2 messages that are done with and are in the store.
	Passed []uint64
}

// Store keeps sessions that outlive their connections. The caller serialises what it does
// with one session.
type Store struct {
	kv     state.Store
	logger *slog.Logger
	now    func() time.Time

	positions, packetIDs, arrivals, removals *loglimit.Episode // of storing them

	mu      sync.Mutex // the innermost
	ops     []state.Op // waiting for Run
	then    []func(bool)
	waiting chan struct{} // has a value if ops has
}

// NewStore returns a Store in kv.
func NewStore(kv state.Store, logger *slog.Logger, now func() time.Time) *Store {
	storing := func(what string) *loglimit.Episode { return loglimit.NewEpisode("storing "+what, logger, now) }
	return &Store{
		kv: kv, logger: logger, now: now, waiting: make(chan struct{}, 1),
		positions: storing("positions of sessions"), packetIDs: storing("packet ids of QoS 2 messages"),
		arrivals: storing("that QoS 2 messages have arrived"), removals: storing("that sessions have ended"),
	}
}

// failed reports whether an error is to be logged. That a log has been closed is no fault.
func (st *Store) failed(ep *loglimit.Episode, err error) bool {
	return !errors.Is(err, msglog.ErrClosed) && ep.Observe(err)
}

// cursorLen is how long a stored cursor is.
const cursorLen = 24

// cursorValue returns a position as it is stored: the seq, then expiry and expiresAt of the
// session.
func cursorValue(p Position) []byte {
	b := binary.BigEndian.AppendUint64(nil, p.Cursor)
	b = binary.BigEndian.AppendUint64(b, uint64(p.Expiry)) //nolint:gosec // not negative
	var at uint64
	if !p.ExpiresAt.IsZero() {
		at = uint64(p.ExpiresAt.UnixMilli()) //nolint:gosec // after 1970
	}
	return binary.BigEndian.AppendUint64(b, at)
}

func exactlyKey(k Key, seq uint64) string {
	return string(binary.BigEndian.AppendUint64([]byte(exactlyPrefix+k.Bytes()+"\x00"), seq))
}

func exchangeOp(k Key, x Exchange) state.Op {
	v := append(binary.BigEndian.AppendUint16(nil, x.ID), byte(x.State))
	return state.Op{Key: exactlyKey(k, x.Seq), Value: append(v, x.Topic...)}
}

// AppendPosition appends what stores a position.
func AppendPosition(ops []state.Op, k Key, p Position) []state.Op {
	ops = append(ops, state.Op{Key: cursorPrefix + k.Bytes(), Value: cursorValue(p)})
	for _, seq := range p.Passed {
		ops = append(ops, state.Op{Key: exactlyKey(k, seq), Delete: true})
	}
	return ops
}

// Save stores a session's subscriptions and position: durably if durable is set. since is,
// by topic of the chat, up to where messages are from before the subscription. Changes is
// held.
func (st *Store) Save(s *Session, since map[string]uint64, p Position, durable bool) error {
	v, err := json.Marshal(storedSubs{
		Subject: s.Subject, ClientID: s.ClientID, Archiver: s.Archiver, AnyTopic: s.AnyTopic, Since: since,
		Filters: slices.Collect(maps.Values(s.Filters)),
		Groups:  slices.Collect(maps.Keys(s.Groups)),
	})
	if err != nil {
		return fmt.Errorf("encode session: %w", err)
	}
	ops := append(AppendPosition(nil, s.Key, p), state.Op{Key: subsPrefix + s.Bytes(), Value: v})
	if err := st.kv.Apply(ops, durable); err != nil {
		return fmt.Errorf("store session: %w", err)
	}
	s.Stored = true
	return nil
}

// SavePositions makes changes that AppendPosition has returned, and logs if that begins to
// fail. What follows then is only that clients get again what they have had.
func (st *Store) SavePositions(ops []state.Op, sync bool) {
	if err := st.kv.Apply(ops, sync); st.failed(st.positions, err) {
		st.logger.Warn("cannot store positions of sessions; after a restart they may get messages again", "error", err)
	}
}

// Sync makes durable what has been stored.
func (st *Store) Sync() error { return st.kv.Apply(nil, true) }

// SaveExchanges stores the packet ids of QoS 2 messages, before they are sent.
func (st *Store) SaveExchanges(k Key, xs []Exchange) error {
	ops := make([]state.Op, len(xs))
	for i, x := range xs {
		ops[i] = exchangeOp(k, x)
	}
	err := st.kv.Apply(ops, true)
	if st.failed(st.packetIDs, err) {
		st.logger.Error("cannot store the packet ids of QoS 2 messages; the connections that they are for are closed so that the clients try again",
			"subject", k.Subject, "client_id", k.ClientID, "error", err)
	}
	return err
}

// SaveProgress stores durably, together with others and later, how far a QoS 2 message of a
// session has got, and then calls done with whether it could. A session that ends with its
// connection has nothing stored, but its turn comes all the same. Run calls done. s.Mu is
// held.
func (st *Store) SaveProgress(s *Session, x Exchange, done func(stored bool)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if s.Expiry > 0 {
		st.ops = append(st.ops, exchangeOp(s.Key, x))
	}
	st.then = append(st.then, done)
	select {
	case st.waiting <- struct{}{}:
	default:
	}
}

// Run makes durable what SaveProgress was given, until stop is closed.
func (st *Store) Run(stop <-chan struct{}) {
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
			if st.failed(st.arrivals, err) {
				st.logger.Error("cannot store that QoS 2 messages have arrived; their exchanges go on when the clients reconnect", "error", err)
			}
			stored = err == nil
		}
		for _, f := range then {
			f(stored)
		}
	}
}

// Forget removes a session. Changes is held.
func (st *Store) Forget(s *Session) {
	err := st.kv.Apply([]state.Op{
		{Key: subsPrefix + s.Bytes(), Delete: true},
		{Key: cursorPrefix + s.Bytes(), Delete: true},
		{Key: exactlyPrefix + s.Bytes() + "\x00", Delete: true, Prefix: true},
	}, false)
	if st.failed(st.removals, err) {
		st.logger.Warn("cannot remove sessions that have ended; they will expire after a restart",
			"subject", s.Subject, "client_id", s.ClientID, "error", err)
	}
	s.Stored = false
}

// Loaded is a session as it is stored.
type Loaded struct {
	Key
	Filters            map[string]Subscription
	Groups             map[string]struct{}
	Since              map[string]uint64
	Archiver, AnyTopic bool
	Position           // Expiry is 0 if none is stored
}

// Load calls fn for each stored session. The position of one that had a connection when the
// process died expires from now on.
func (st *Store) Load(fn func(Loaded)) error {
	byKey := map[string]*Loaded{}
	var bad error
	err := st.kv.Scan(subsPrefix, func(key string, value []byte) bool {
		var v storedSubs
		if err := json.Unmarshal(value, &v); err != nil {
			bad = fmt.Errorf("stored session %q: %w", key, err)
			return false
		}
		l := &Loaded{
			Key: Key{Subject: v.Subject, ClientID: v.ClientID}, Archiver: v.Archiver, AnyTopic: v.AnyTopic, Since: v.Since,
			Filters: make(map[string]Subscription, len(v.Filters)), Groups: SetOf(v.Groups),
		}
		for _, f := range v.Filters {
			l.Filters[f.Filter] = f
		}
		byKey[key[len(subsPrefix):]] = l
		return true
	})
	if err = errors.Join(err, bad); err != nil {
		return err
	}
	err = st.kv.Scan(cursorPrefix, func(key string, value []byte) bool {
		l := byKey[key[len(cursorPrefix):]]
		if l == nil || len(value) != cursorLen {
			return true
		}
		l.Cursor = binary.BigEndian.Uint64(value)
		l.Expiry = time.Duration(binary.BigEndian.Uint64(value[8:]))  //nolint:gosec // as it was stored
		if at := int64(binary.BigEndian.Uint64(value[16:])); at > 0 { //nolint:gosec // as it was stored
			l.ExpiresAt = time.UnixMilli(at)
		} else {
			l.ExpiresAt = st.now().Add(l.Expiry)
		}
		return true
	})
	if err != nil {
		return err
	}
	for _, l := range byKey {
		fn(*l)
	}
	return nil
}

// Cursor returns the stored cursor of a session, and whether there is one.
func (st *Store) Cursor(k Key) (cursor uint64, found bool, err error) {
	key := cursorPrefix + k.Bytes()
	err = st.kv.Scan(key, func(k string, v []byte) bool {
		if k == key && len(v) == cursorLen {
			cursor, found = binary.BigEndian.Uint64(v), true
		}
		return !found
	})
	return cursor, found, err
}

// Exchanges returns the QoS 2 messages of a session that were on their way, in the order of
// their seqs.
func (st *Store) Exchanges(k Key) (xs []Exchange, err error) {
	prefix := exactlyPrefix + k.Bytes() + "\x00"
	err = st.kv.Scan(prefix, func(k string, v []byte) bool {
		if len(k) == len(prefix)+8 && len(v) >= 3 {
			seq := binary.BigEndian.Uint64([]byte(k[len(prefix):]))
			xs = append(xs, Exchange{Seq: seq, ID: binary.BigEndian.Uint16(v), Topic: string(v[3:]), State: State(v[2])})
		}
		return true
	})
	return xs, err
}

// SetOf returns a set of ids.
func SetOf(ids []string) map[string]struct{} {
	m := make(map[string]struct{}, len(ids))
	for _, id := range ids {
		m[id] = struct{}{}
	}
	return m
}
