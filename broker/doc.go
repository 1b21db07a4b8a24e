// Package broker is the MQTT server of the chat: an embedded Mochi behind doors of
// our own, with a durable log in the place of its queues.
//
// Mochi keeps connections, the codec, CONNECT and SUBSCRIBE, and everything about
// topics outside the chat. A PUBLISH to a chat topic never reaches it: the hook takes
// it out of the stream, checks it and gives it to the sequencer, which appends all
// that is waiting to the log as one batch. When the batch is on disk, publishers get
// their acknowledgements and the delivery engine hands the messages on.
//
// What it guarantees: PUBACK and PUBREC mean that the message is on disk and has its
// place in the order; from is the subject of the verified token; every subscriber sees
// a topic's messages in seq order; a client that is slow, silent or hostile costs the
// others nothing but its share of the machine.
package broker
