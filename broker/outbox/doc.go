// Package outbox writes to clients without ever waiting for them.
//
// A Conn wraps a client's connection. A write copies whole packets into a bounded
// buffer, the outbox, and returns at once. A few writers, shared by all
// connections, pass the bytes on, as much as the socket takes in one system call.
// Only a connection whose socket is full gets a goroutine of its own. That
// goroutine waits up to the write timeout and then ends the connection.
//
// It guarantees that a slow client costs others neither time nor memory beyond its
// bound. Frames that do not fit are refused, and Conn.OnDrain is called when there
// is room again.
//
// Lock order: Conn.mu, then writers.mu. No lock is held while writing to a socket.
package outbox
