// Package broker is the MQTT server of the chat: an embedded Mochi behind doors of
// our own, with a durable log in the place of its queues.
//
// Mochi keeps the codec. A PUBLISH to a chat topic is checked and given to the sequencer, which appends
// all that is waiting to the log as one batch. When the batch is on disk, publishers get
// their acknowledgements and the delivery engine hands the messages on. A PUBLISH to another
// topic is put into the queues of the sessions that subscribe, and then acknowledged in
// turn.
//
// What it guarantees: PUBACK and PUBREC of a message of the chat mean that it is on disk
// and has its place in the order, those of another that it is in the queues of all its
// subscribers, connected or not; from is the subject of the verified token; every
// subscriber sees a topic's messages in seq order; a client that is slow, silent or hostile
// costs the others nothing but its share of the machine.
package broker
