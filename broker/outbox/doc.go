// Package outbox writes to clients without ever waiting for them.
//
// A Conn wraps a client's connection. Writing to it copies whole packets into a
// bounded buffer, the outbox, and returns at once; a few writers shared by all
// connections pass on what waits, as much as the socket takes in one system call.
// Only a connection whose socket is full gets a goroutine of its own, which waits
// under the write timeout and then gives the connection up.
//
// It guarantees that a slow client costs others neither time nor memory beyond its
// bound: frames that do not fit are refused, and Conn.OnDrain tells when to offer
// more.
//
// Lock order: Conn.mu, then writers.mu. No lock is held while writing to a socket.
package outbox
