// Package pubsub serves the topics outside the chat: plain MQTT, with retained messages,
// shared subscriptions and wills.
//
//   - Topics finds who has subscribed to a topic and gives each of these sessions the message.
//     It keeps retained messages in memory and in the store. Its two trees, of filters and of
//     topics, take time that depends on a topic's levels and on what is found, not on how many
//     others there are.
//   - Queues hold what sessions have been given and are not done with, whatever becomes of
//     their connections. They are bounded for each session and over all, and do not survive
//     the process. What is in a queue is sent, acknowledged and sent again under the packet
//     ids and the Receive Maximum of the session's window, in turns with the messages of the
//     log.
//   - Wills hold the wills that wait for their delay.
//
// Nothing here asks about rights but by Config.MayRead, and what may be published has been
// decided before. Of presence it is told by a small interface; see Presence.
//
// Locks: a topic's order (retained.order) is held from retaining a message to the end of its
// fan-out, so that whoever is there gets the messages of a topic in the order in which they
// are retained; sessions' Mu are taken under it, one after the other. A session's Mu guards its
// queue. Topics.mu, retained.mu and Wills.mu come last, and under them nothing is called.
package pubsub
