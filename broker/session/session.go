package session

import (
	"sync"
	"time"

	"mynah/broker/outbox"
)

// Session is the state of a device that outlives its connections (MQTT 5, 4.1), as far as
// all kinds of messages share it: its subscriptions, its connection, and the window of what
// the client has not acknowledged. What brings it messages holds the rest: its Feed those of
// the log, its Queue those of other topics.
//
// Changes is taken before Mu. Whoever delivers to anybody waits for Mu, so nothing that may
// wait for a socket, a disk or the directory is done under it.
type Session struct {
	Key

	// Inbound is what the client publishes outside the chat. It guards itself.
	Inbound Inbound

	// Changes is held while subscriptions change and while connections come and go,
	// until that is stored. It guards the four that follow.
	Changes sync.Mutex
	Filters map[string]Subscription
	Groups  map[string]struct{} // those that the subject is known to be in
	Ended   bool                // for good; its key may be another session's
	Stored  bool                // it is in the Store

	// Mu guards all that follows.
	Mu       sync.Mutex
	Archiver bool // its position is the archive's; set with Changes held too
	AnyTopic bool // it may read what is not its own; set with Changes held too
	HasEnded bool // Ended is set, or is about to be: nothing is queued any more

	Conn      *outbox.Conn // nil while the client is offline
	V5        bool         // it speaks MQTT 5
	MaxPacket uint32       // the client's limit in bytes, 0 for none
	Limit     int          // messages that may be unacknowledged on this connection
	OnWire    int          // messages sent on this connection and not acknowledged
	Window    Window
	lastConn  uint64 // Conn.Attachment of the last connection that it has had

	Expiry    time.Duration // how long it outlives its connection; 0: not at all
	ExpiresAt time.Time     // zero while it has a connection

	Feed  Feed  // set before anybody else gets to see the session
	Queue Queue // nil until there is something
}

// Feed is what brings a session the messages of the log.
type Feed interface {
	// Advance has the Queue send what it can, now or soon. Mu is held.
	Advance()
	// Prompt reports whether the session gets what comes without delay, though it reads
	// the log. Mu is held.
	Prompt() bool
	// Finish says that a message of the Window, under a packet id, needs no more. Mu is held.
	Finish(id uint16, e *Inflight)
	// Panicked says that something that ran for the session has panicked with v: what
	// memory holds of it is not to be trusted. Mu is not held.
	Panicked(v any)
}

// Queue holds messages that wait for a session or for its acknowledgements, and are not in
// the log. All methods are called with Mu held, by the Feed and by Session.
type Queue interface {
	// Idle reports whether there is nothing to be sent.
	Idle() bool
	// HasQoS0 reports whether something is to be sent that needs no acknowledgement.
	HasQoS0() bool
	// Send sends what waits, as far as the client and its outbox take it, and until it
	// has sent so many messages of QoS 1 and 2 or so many bytes. The session has a
	// connection that has had its CONNACK. It reports whether it has sent anything.
	Send(messages, bytes int) bool
	// Delayed says that what waits does not reach the client at once.
	Delayed()
	// Forget forgets the message of a packet id, which the client has or is not to get
	// any more. The window still has the id.
	Forget(id uint16)
	// Attached says that the session has a connection, which has had nothing yet,
	// Detached that it has none any more.
	Attached()
	Detached()
	// Shrink gives memory back that is not needed now.
	Shrink()
	// Drop forgets everything, for good. Others may get what was for any one of several.
	Drop()
}

// Connection is what a CONNECT says of the connection that it opens.
type Connection struct {
	Conn               *outbox.Conn
	Number             uint64 // higher than that of any connection before
	V5                 bool
	Limit              int    // messages that may be unacknowledged
	MaxPacket          uint32 // bytes, 0 for no limit
	Expiry             time.Duration
	AnyTopic, Archiver bool
}

// Bind gives the session a connection, which has had nothing yet. Mu and Changes are held.
func (s *Session) Bind(c Connection) {
	s.Archiver, s.AnyTopic = c.Archiver, c.AnyTopic
	s.lastConn, c.Conn.Attachment = c.Number, c.Number
	s.Conn, s.V5, s.MaxPacket, s.Limit = c.Conn, c.V5, c.MaxPacket, c.Limit
	s.Expiry, s.ExpiresAt = c.Expiry, time.Time{}
	s.OnWire = 0
	for i := range s.Window.Len() {
		s.Window.At(i).OnWire = false
	}
	if s.Queue != nil {
		s.Queue.Attached()
	}
}

// Unbind takes the session from its connection, which it returns, nil if it had none. Mu and
// Changes are held.
func (s *Session) Unbind(now time.Time) (old *outbox.Conn) {
	old, s.Conn = s.Conn, nil
	s.Window.Shrink()
	if s.Queue != nil {
		s.Queue.Detached()
	}
	if old != nil {
		s.ExpiresAt = now.Add(s.Expiry)
	}
	return old
}

// Attached returns the session's connection, nil if it is offline.
func (s *Session) Attached() *outbox.Conn {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return s.Conn
}

// Superseded reports whether the session has had another connection after the given one.
func (s *Session) Superseded(conn *outbox.Conn) bool {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return s.lastConn != conn.Attachment
}

// Over reports whether the session has ended for good.
func (s *Session) Over() bool {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return s.HasEnded
}

// IsArchiver reports whether the session is an archiver's.
func (s *Session) IsArchiver() bool {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return s.Archiver
}

// Persistent reports whether the session outlives its connection.
func (s *Session) Persistent() bool {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return s.Expiry > 0
}

// EndsWithConnection reports whether the session is not to be passed on to a connection that
// comes at now, however fast it is (MQTT 3.1.1, 3.1.2.4; MQTT 5, 3.1.2.11.2).
func (s *Session) EndsWithConnection(now time.Time) bool {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return s.Expiry == 0 || s.Expired(now)
}

// Expired reports whether the session's time is over. An archiver's never is: with its
// position everything that it has not archived would be lost to the archive. Its session
// ends with a clean start only. Mu is held.
func (s *Session) Expired(now time.Time) bool {
	return s.Conn == nil && !s.Archiver && !s.ExpiresAt.IsZero() && now.After(s.ExpiresAt)
}

// Quota returns how many more messages the client takes (MQTT 5, 4.9), from wherever they
// come. Mu is held.
func (s *Session) Quota() int { return s.Limit - s.OnWire }

// Room returns how many more messages may be sent under new packet ids. Mu is held.
func (s *Session) Room() int { return min(s.Quota(), s.Window.FreeIDs()) }

// Survive is deferred, before any lock is taken, by what runs for a session on a goroutine
// that others need too. After a panic the Feed starts the session again from the Store; no
// lock stays held, since all of them are released by defer where more is done than to read a
// field.
func (s *Session) Survive() {
	if v := recover(); v != nil {
		s.Feed.Panicked(v)
	}
}
