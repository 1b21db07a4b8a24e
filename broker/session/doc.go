// Package session holds what a client's session is made of (MQTT 5, 4.1), as far as all kinds
// of messages share it, and keeps it on disk.
//
//   - Session is the state that outlives connections: subscriptions, the connection that has
//     it now, how many messages the client takes, when it expires. A Key names it.
//   - Session.Topics says which topics of the chat its filters stand for.
//   - Window holds what the client has not acknowledged, under the packet ids that are given
//     out. An entry says of what Kind its message is.
//   - Inbound holds the exchanges that the client has begun.
//   - Store keeps sessions that outlive their connections, their positions in the log, and
//     how far QoS 2 messages have got.
//
// A session gets messages from two sides that do not know each other and meet here: a Feed,
// which package delivery implements, brings those of the log; a Queue, which package pubsub
// implements, those of other topics. They share the connection's outbox, the packet ids and
// the client's Receive Maximum.
//
// Locks: Inbound's own, then Session.Changes, then Session.Mu, then that of the Store, under
// which nothing is called. Feed and Queue are called with Session.Mu held where they say so,
// and have no locks of their own for a session.
package session
