// Package msglog is the broker's durable, totally ordered log of chat messages.
// What Append has made durable
// survives the death of the process and of the machine; everything else in the
// broker is a cursor over it.
package msglog

import (
	"context"

	"mynah/chat"
)

// Record is one message of the log with what the log needs to know about its
// publisher in order to recognise it when it comes again.
type Record struct {
	chat.Message

	// QoS is the quality of service it was published with: 0, 1 or 2.
	QoS byte
	// Prev is the seq of the message before it on topic To, 0 for none.
	// PrevSender is the same for the sender's own topic user/<From>; it is 0
	// for group messages and notes to oneself, which have one topic only.
	// Append fills both in.
	Prev, PrevSender uint64

	// Client is the sender's MQTT client id; with From it names the device.
	Client string
	// PacketID is the publish's packet id, 0 for QoS 0.
	PacketID uint16
	// Props are the MQTT 5 properties that subscribers get with it, as in a
	// PUBLISH (3.3.2.3); nil for none. Request says that one of them is a
	// Response Topic.
	Props   []byte
	Request bool
	// Digest is a hash of topic and content. Two publishes with the same mid,
	// or the same packet id and DUP, are the same if it is equal.
	Digest uint64
	// RawDigest is what earlier versions would have made the Digest: the
	// RawDigest of To and of the tail that they would have stored. 0 stands for
	// that of To and Tail. It is not stored.
	RawDigest uint64
	// Dup is set on a publish with the DUP flag. It is not stored.
	Dup bool
	// DupAfter and DupUpTo narrow down what a Dup may be the retransmission of:
	// messages with a seq above the one and, unless that is 0, not above the
	// other. They are not stored.
	DupAfter, DupUpTo uint64
	// Ask has Append only find out whether the message was stored before. It
	// is not stored.
	Ask bool
}

// Outcome is what Append did with a record.
type Outcome uint8

// The outcomes of Append.
const (
	Stored    Outcome = iota // it is new; Seq, Prev and PrevSender are filled in
	Duplicate                // it was stored before; Seq is the first one's
	Conflict                 // its mid was used before with another content; nothing was stored
	NoRoom                   // it is new and the disk is full; nothing was stored
	Unknown                  // it is new and Ask was set; nothing was stored
)

// Pending is a batch that was appended and is on its way to the disk.
type Pending interface {
	// Outcomes has one outcome for each record of the batch.
	Outcomes() []Outcome
	// Wait blocks until the batch is on disk. After an error it is not known
	// whether it is; nobody may be told that it was stored.
	Wait() error
}

// Reader is what there is to read in a log. Its methods may be called by any
// goroutine and see only what is durable.
type Reader interface {
	// Bounds returns the seq of the oldest message that is still there and
	// that of the newest that is durable. An empty log has first = last+1.
	Bounds() (first, last uint64)
	// Tail returns the seq of the newest durable message on a delivery topic,
	// 0 for none.
	Tail(topic string) (uint64, error)
	// Read calls fn for each message after the given seq, up to and including
	// upto, in order, until fn returns false. fn may keep the record.
	Read(ctx context.Context, after, upto uint64, fn func(*Record) bool) error
	// ReadTopic does the same for the messages of one delivery topic: those
	// published to it and, for user/<id>, the direct messages that <id> sent.
	ReadTopic(ctx context.Context, topic string, after, upto uint64, fn func(*Record) bool) error
}

// Log is the durable log. Append is called by one goroutine, everything else by
// any. Readers see only what is durable.
type Log interface {
	Reader
	// Append gives each new record its seq, in order, as one batch. It returns
	// before the batch is durable so that the next can be prepared; Pending
	// tells when. Batches become durable in order. ErrFull is returned when
	// the disk has no room: nothing was stored and reading goes on. What was
	// stored before needs no room: if a batch has some of that, the others'
	// outcome is NoRoom instead.
	Append(recs []*Record) (Pending, error)
	// Trim forgets messages up to and including seq.
	Trim(ctx context.Context, upto uint64) error
	// Close makes everything durable and releases the log.
	Close() error
}
