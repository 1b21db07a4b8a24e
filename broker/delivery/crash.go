package delivery

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"

	"mynah/broker/outbox"
	"mynah/broker/packet"
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

// Panicked implements session.Feed: the pump restarts the session from the store.
func (s *feed) Panicked(v any) {
	s.engine.crashes.log(s.engine.logger, &s.Session, v)
	s.Mu.Lock()
	defer s.Mu.Unlock()
	s.broken = true
	s.pumpLocked()
}

// guarded calls do with Mu held.
func (s *feed) guarded(do func(*feed)) {
	defer s.Survive()
	s.Mu.Lock()
	defer s.Mu.Unlock()
	do(s)
}

// isBroken reports whether the session is to be restarted from the store.
func (s *feed) isBroken() bool {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return s.broken
}

// restartFromStore ends the session's connection and has the session go on from what is
// stored of it, or ends it too if nothing is. The pump calls it.
func (s *Session) restartFromStore() {
	s.Changes.Lock()
	defer s.Changes.Unlock()
	conn, v5 := s.forgetAll()
	if conn != nil && v5 {
		conn.Send(packet.EncodeDisconnect(packet.ReasonImplementationError))
	}
	if conn != nil {
		_ = conn.Close()
	}
	if s.Ended {
		return
	}
	s.detachLocked(conn)
	if !s.Stored {
		s.endLocked()
		return
	}
	if err := s.reload(); err != nil {
		panic(fmt.Errorf("read a session that is to be restarted: %w", err))
	}
}

// forgetAll throws away what is in memory only, and returns the session's connection. Changes
// is held.
func (s *Session) forgetAll() (conn *outbox.Conn, v5 bool) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	s.broken, s.oversized = false, false
	s.dropQueueLocked()
	s.Window, s.OnWire = session.Window{}, 0
	s.resends, s.rewinds, s.noticed = false, 0, nil
	s.storedExchanges, s.restored = nil, nil
	return s.Conn, s.V5
}

// reload has the session go on as it is stored. Changes is held, and the session is offline.
func (s *Session) reload() error {
	pos, found, err := s.engine.store.Cursor(s.Key)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("the position of session %q is not stored", strings.ReplaceAll(s.Bytes(), "\x00", "/"))
	}
	xs, err := s.engine.store.Exchanges(s.Key)
	if err != nil {
		return err
	}
	s.Mu.Lock()
	defer s.Mu.Unlock()
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
func (c *crashes) log(logger *slog.Logger, s *session.Session, v any) {
	text := fmt.Sprintf("%T", v)
	if err, ok := v.(runtime.Error); ok {
		text = err.Error()
	}
	attrs := []any{"subject", s.Subject, "client_id", s.ClientID, "panic", text}
	pcs := make([]uintptr, 16)
	h := fnv.New64a()
	for _, pc := range pcs[:runtime.Callers(4, pcs)] {
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
	logger.Error("a session is started anew after a panic: its connection ends, others go on", attrs...)
}
