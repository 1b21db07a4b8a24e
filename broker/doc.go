// Package broker is the MQTT server of the chat: an embedded Mochi behind listeners of
// our own, with a durable log in the place of its queues.
//
// Mochi keeps the codec. A PUBLISH to a chat topic is checked and put into the queue. The
// sequencer proposes what waits there as one entry of the log. When the entry is committed,
// publishers get their acknowledgements and the delivery engine hands the messages on. A
// PUBLISH to another topic is put into the queues of the sessions that subscribe, and then
// acknowledged in turn.
//
// # Guarantees
//
//   - PUBACK and PUBREC of a message of the chat mean that it is on disk and has its place
//     in the order; those of another that it is in the queues of all its subscribers,
//     connected or not.
//   - from is the subject of the verified token.
//   - Every subscriber sees a topic's messages in seq order.
//   - A client that is slow, silent or hostile costs the others nothing but its share of the
//     machine.
//
// # Map
//
// Each part is a type in the file of its name. A part knows those below it, and what it needs
// of others is a field.
//
//	broker.go       Broker: Config, assembling the parts, Start, Stop
//	maintenance.go  periodic work: trimming the log, figures on $SYS (system.go)
//	connect.go      endpoint: a connection from CONNECT to its end; read.go: its packets
//	will.go         wills of clients that have gone
//	subscribe.go    subscriber: SUBSCRIBE, UNSUBSCRIBE; renew.go: fresh tokens
//	publish.go      publisher: a PUBLISH up to the queue; message.go: as a record of the
//	                log; plain.go: outside the chat
//	memberships.go  keeps sessions in the groups of their subjects
//	pipeline.go     pipeline: from the queue to the log; commit.go: back as acknowledgements
//	refusal.go      tells publishers why they were refused where an acknowledgement cannot
//	queue.go        where publications wait, in fair turns
//	device.go       what is known of packet ids, to recognise repetitions
//	rights.go       who a client is and what it may do now
//	connections.go  who is connected, and which connection has a session
//	conn.go         conn: one connection; reader.go: its bytes as packets
package broker
