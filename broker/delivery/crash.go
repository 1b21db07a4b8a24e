package delivery

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"

	"mynah/broker/outbox"
	"mynah/broker/session"
)

// What runs for a session outside its client's own goroutine must not end the process if
// there is a mistake in it: one client that finds the mistake would be everybody's end, as
// often as it likes. So a panic there is caught (survive) and what the memory knows of the
// session is thrown away (startAnew): its connection ends, and the session goes on from what
// the disk knows of it, as it would after a restart of the broker. No lock stays held, since
// all of them are released by defer where more is done than to read a field.
//
// If a session cannot be put in order that way, the process ends after all. It loses nothing
// that was acknowledged.

// reasonImplementationError is a reason code of MQTT 5 (2.4).
const reasonImplementationError = 0x83

// survive is deferred, before any lock is taken, by what runs for a session on a goroutine
// that others need too. After a panic it has the pump start the session anew.
func (s *Session) survive() {
	v := recover()
	if v == nil {
		return
	}
	s.engine.crashes.log(s, v)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = true
	s.pumpLocked()
}

// guarded calls do with s.mu held.
func (s *Session) guarded(do func(*Session)) {
	defer s.survive()
	s.mu.Lock()
	defer s.mu.Unlock()
	do(s)
}

// isBroken reports whether the session is to be started anew.
func (s *Session) isBroken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// startAnew ends the session's connection and has the session go on from what is stored of
// it, or ends it too if nothing is. The pump calls it.
func (s *Session) startAnew() {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	conn, v5 := s.forgetAll()
	if conn != nil && v5 {
		conn.Send(disconnect(reasonImplementationError))
	}
	if conn != nil {
		_ = conn.Close()
	}
	if s.ended {
		return
	}
	s.detachLocked(conn)
	if !s.kept {
		s.endLocked()
		return
	}
	if err := s.engine.store.reload(s); err != nil {
		panic(fmt.Errorf("read a session that is to start anew: %w", err))
	}
}

// forgetAll throws away what is in memory only, and returns the session's connection. subsMu
// is held.
func (s *Session) forgetAll() (conn *outbox.Conn, v5 bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken, s.roomy = false, false
	s.engine.orphaned(s.dropPlainLocked())
	s.win, s.onWire = session.Window{}, 0
	s.resends, s.rewinds, s.noticed = false, 0, nil
	s.stored, s.restored = nil, nil
	return s.conn, s.v5
}

// reload has a session go on as it is stored. subsMu is held, and the session is offline.
func (st *store) reload(s *Session) error {
	var pos uint64
	found := false
	key := cursorPrefix + s.Bytes()
	err := st.kv.Scan(key, func(k string, v []byte) bool {
		if k == key && len(v) == cursorLen {
			pos, found = binary.BigEndian.Uint64(v), true
		}
		return !found
	})
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("the position of session %q is not stored", strings.ReplaceAll(s.Bytes(), "\x00", "/"))
	}
	xs, err := st.exchanges(s.Bytes())
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pos = pos
	s.restoreLocked(xs)
	return nil
}

// crashes logs panics. A hostile client may repeat one as often as it can connect, so each
// stack is logged once.
type crashes struct {
	mu     sync.Mutex
	stacks map[uint64]struct{}
}

// log logs a panic while its stack is still there. What is not the runtime's own may hold a
// payload, so only its type is logged.
func (c *crashes) log(s *Session, v any) {
	text := fmt.Sprintf("%T", v)
	if err, ok := v.(runtime.Error); ok {
		text = err.Error()
	}
	attrs := []any{"subject", s.Subject, "client_id", s.ClientID, "panic", text}
	pcs := make([]uintptr, 16)
	h := fnv.New64a()
	for _, pc := range pcs[:runtime.Callers(3, pcs)] {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(pc)))
	}
	c.mu.Lock()
	_, known := c.stacks[h.Sum64()]
	if c.stacks == nil {
		c.stacks = map[uint64]struct{}{}
	}
	c.stacks[h.Sum64()] = struct{}{}
	c.mu.Unlock()
	if !known {
		attrs = append(attrs, "stack", string(debug.Stack()))
	}
	s.engine.logger.Error("a session is started anew after a panic: its connection ends, others go on", attrs...)
}
