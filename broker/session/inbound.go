package session

import "sync"

// Inbound is what a session remembers of what its client publishes outside the chat.
// The zero value is one that has had nothing.
type Inbound struct {
	mu   sync.Mutex // held while a PUBLISH is dealt with; taken before every other lock
	open map[uint16]struct{}
}

// Publish deals with a PUBLISH of the client by calling pass, one at a time, also while one
// connection takes over from another. exchange is its packet id at QoS 2, otherwise 0: until
// the client releases it, whatever comes under this id is the same message and not passed on
// again (MQTT 5, 4.3.3). It reports false, and does nothing, if mine, which is asked first,
// says that the connection has lost the session: what it sent is sent again on the next.
func (in *Inbound) Publish(exchange uint16, mine func() bool, pass func()) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !mine() {
		return false
	}
	if exchange != 0 {
		if _, again := in.open[exchange]; again {
			return true
		}
		if in.open == nil {
			in.open = map[uint16]struct{}{}
		}
		in.open[exchange] = struct{}{}
	}
	pass()
	return true
}

// Published reports whether the message of a QoS 2 packet id has been passed on and not
// been released.
func (in *Inbound) Published(exchange uint16) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	_, open := in.open[exchange]
	return open
}

// Exchanges returns how many QoS 2 publishes outside the chat the client has not released.
func (in *Inbound) Exchanges() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return len(in.open)
}

// Release takes in a PUBREL of the client: its packet id may stand for another message. It
// does nothing if mine says that the connection has lost the session.
func (in *Inbound) Release(exchange uint16, mine func() bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.open) > 0 && mine() {
		if delete(in.open, exchange); len(in.open) == 0 {
			in.open = nil // a map keeps the room that it once needed
		}
	}
}
