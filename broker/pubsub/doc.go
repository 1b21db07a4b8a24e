// Package pubsub serves the topics outside the chat: plain MQTT, with retained messages and
// shared subscriptions.
//
// Topics finds who has subscribed to a topic and gives each of these sessions the message. It
// keeps retained messages in memory and in the store. Its two trees, of filters and of topics,
// take time that depends on a topic's levels and on what is found, not on how many others
// there are.
//
// Nothing here asks about rights but by Config.MayRead, and what may be published has been
// decided before.
//
// Locks: a topic's order (retained.order) is held from retaining a message to the end of its
// fan-out, so that whoever is there gets the messages of a topic in the order in which they
// are retained; sessions are locked under it, one after the other. Under Topics.mu and
// retained.mu nothing is called.
package pubsub
