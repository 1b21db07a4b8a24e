package delivery

import (
	"sync"

	"mynah/broker/outbox"
)

// inbound is what a session remembers of what its client publishes outside the chat.
type inbound struct {
	mu   sync.Mutex // held while a PUBLISH is dealt with; taken before every other lock
	open map[uint16]struct{}
}

// Publish deals with a PUBLISH of the client to a topic outside the chat by calling pass,
// one at a time, also while one connection takes over from another. exchange is its packet
// id at QoS 2, otherwise 0: until the client releases it, whatever comes under this id is
// the same message and not passed on again (MQTT 5, 4.3.3). It reports false, and does
// nothing, if the connection has lost the session: what it sent is sent again on the next.
func (s *Session) Publish(conn *outbox.Conn, exchange uint16, pass func()) bool {
	s.inbound.mu.Lock()
	defer s.inbound.mu.Unlock()
	if s.Attached() != conn {
		return false
	}
	if exchange != 0 {
		if _, again := s.inbound.open[exchange]; again {
			return true
		}
		if s.inbound.open == nil {
			s.inbound.open = map[uint16]struct{}{}
		}
		s.inbound.open[exchange] = struct{}{}
	}
	pass()
	return true
}

// Published reports whether the message of a QoS 2 packet id has been passed on and not
// been released.
func (s *Session) Published(exchange uint16) bool {
	s.inbound.mu.Lock()
	defer s.inbound.mu.Unlock()
	_, open := s.inbound.open[exchange]
	return open
}

// Exchanges returns how many QoS 2 publishes outside the chat the client has not released.
func (s *Session) Exchanges() int {
	s.inbound.mu.Lock()
	defer s.inbound.mu.Unlock()
	return len(s.inbound.open)
}

// Release takes in a PUBREL of the client: its packet id may stand for another message.
func (s *Session) Release(conn *outbox.Conn, exchange uint16) {
	s.inbound.mu.Lock()
	defer s.inbound.mu.Unlock()
	if len(s.inbound.open) > 0 && s.Attached() == conn {
		if delete(s.inbound.open, exchange); len(s.inbound.open) == 0 {
			s.inbound.open = nil // a map keeps the room that it once needed
		}
	}
}
