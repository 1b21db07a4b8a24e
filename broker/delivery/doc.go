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
//   - Engine has the sessions. Attach gives a connection its session, Deliver hands committed
//     messages to those that are live, Signal hands out what is not logged.
//   - Session is a session.Session with a feed, which brings it the log's messages: from
//     Deliver while it is live, otherwise from a pump, which reads the log.
//   - A registry finds the sessions that subscribe to a topic; recent keeps the newest
//     messages for those that are slightly behind; maintenance does what is due later.
//
// What a session has waiting of topics outside the chat is its Queue's, which delivery knows
// by session.Queue only: it has the queue send when there is room, and takes turns with it.
//
// A mistake that shows for one session ends that session's connection, not the process: see
// session.Session.Survive.
//
// Lock order: Engine.makingRoom, session.Inbound's, Session.Changes, registry.mu, entry.mu,
// Session.Mu, outbox.Conn.mu, then any one of the others (table.mu, session.Store.mu,
// sessionList.mu, crashes.mu, loglimit.Episode's, outbox's writers.mu), under which nothing is
// called. Observer is told with Session.Changes held, and may take Session.Mu. Session.Queue is
// called with Session.Mu held, and asks under it only for what is in memory. The one goroutine
// that delivers takes registry.mu, entry.mu and what comes after: under those nothing waits for
// a socket, a disk or the directory. What does is done under Session.Changes, or under
// Engine.makingRoom, which hold up connections that come and go; and under Inbound's, which
// holds up what the same session publishes outside the chat, while that is retained.
package delivery
