// Package session holds what a client's session is made of (MQTT 5, 4.1), each part
// for itself: the key that names it, its subscriptions, the window of messages that the
// client has not acknowledged, and the exchanges that the client has begun.
//
// None of them knows a connection or the log; package delivery and the broker put
// them together. A Window is guarded by whoever has it; an Inbound guards itself.
package session
