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
// Lock order: Engine.room, Inbound.mu, Session.subsMu, Engine.mu, entry.mu, Session.mu,
// outbox.Conn.mu, then any one of the others (store.mu, sessionList.mu, crashes.mu,
// episode.mu, outbox's writers.mu), under which nothing is called. PlainTopics is told and
// asked with Session.subsMu or Session.mu held, so its own locks come after those, and under
// Session.mu it is only asked for what it has in memory. The one goroutine that delivers takes
// Engine.mu, entry.mu and what comes after: under those nothing waits for a socket, a disk or
// the directory. What does is done under Session.subsMu, or under Engine.room, which hold up
// connections that come and go; and under Inbound.mu, which holds up what the same session
// publishes outside the chat, while that is retained.
package delivery
