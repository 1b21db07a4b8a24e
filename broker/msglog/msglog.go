// Package msglog is the broker's durable, totally ordered log of chat messages, and
// the seam between one machine and many.
//
// Brokers propose entries: messages without a number, and changes to the state store.
// Entries are put into one order, made durable, and applied: that decides for each
// message its seq, its predecessor on its topic, its time, and whether it was there
// before. What is decided depends on the entries before and on nothing else, no clock,
// no disk, no place up to which this machine has forgotten, so that all machines that
// apply the same entries decide the same. Whoever follows the log gets the committed
// entries with what was decided; everything else in the broker is a cursor over it.
//
// What was committed survives the death of the process and of the machine.
//
// On one machine the order is that of proposing, and an entry is one batch of one
// Pebble database: see Pebble.Propose. Where the order comes from elsewhere, each
// machine applies it to a database of its own: see Pebble.Apply.
package msglog

import "context"

// Log is a log that this machine proposes to and follows. Its methods may be called by
// any goroutine.
type Log interface {
	// Propose adds an entry to the order, behind those that were proposed here before.
	// It returns without waiting for the disk, so that the next entry can be prepared.
	// The Proposal and the feeds report when the entry is committed.
	// The entry and its records belong to the log from here on. ErrFull is returned
	// when the disk has no room for new messages: nothing was proposed, and reading
	// goes on. What was stored before needs no room: if a record could be such a
	// one, the entry is proposed, and the outcome of those that are new is NoRoom.
	Propose(*Entry) (*Proposal, error)
	// Follow returns the feed of committed entries after the message with the given
	// seq: first messages that are there, then entries that come, in their order. An
	// after that is not below the newest message, such as math.MaxUint64, means only
	// those that come. Unless after is hundreds of messages back, all that is proposed
	// here after the call comes as an entry that is Mine, once, in the order of
	// proposing.
	Follow(after uint64) (*Feed, error)
	// Compact forgets messages up to and including seq. It returns when they are
	// forgotten for good and their room is given back; when ctx ends before, the
	// room is given back in the background.
	Compact(ctx context.Context, upto uint64) error

	Reader
	// Expired returns the newest seq that a retention does not want kept, 0 for
	// none: for Compact.
	Expired(ctx context.Context, keep Retention) (upto uint64, err error)
	// Close makes everything durable and releases the log. All feeds end.
	Close() error
}

// Reader is what there is to read in a log. Its methods may be called by any
// goroutine and see only what is committed.
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
