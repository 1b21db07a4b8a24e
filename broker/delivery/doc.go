// Package delivery brings the messages of the log to the sessions that subscribed
// to them.
//
// It guarantees that every session gets the messages of its topics in seq order,
// each once per attachment, and that a session which comes back goes on where it
// stopped: unacknowledged messages first, with DUP and under their old packet ids,
// then all it missed. (After a restart of the broker, a QoS 2 exchange that it interrupted
// comes before its turn if more messages than there are packet ids are due before it.)
// Nothing is queued per session. A session is live, and then it
// is handed frames as they are committed, or behind, and then it reads the log from
// its own position; what a slow client has not been sent costs no memory.
//
// Topics outside the chat are not in the log. Their messages wait in a bounded queue of the
// session, whatever becomes of its connections, and are sent, acknowledged and sent again
// under the same packet ids and the same Receive Maximum.
//
// A mistake that shows for one session ends that session's connection, not the process: see
// survive.
//
// Lock order: inbound.mu, Session.subsMu, Engine.mu, entry.mu, Session.mu, outbox.Conn.mu, then any
// one of the others, under which nothing is called. A lock is never held while writing to a
// socket or to the disk, Session.subsMu excepted, and inbound.mu while a message outside the
// chat is retained.
package delivery
