package msglog

import (
	"slices"
	"sync"

	"mynah/broker/state"
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
	// Seq, Prev, PrevSender and TS are decided by the log.
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
	// Ask means that the log only reports whether the message was stored before. The
	// message is never stored.
	Ask bool
}

// Entry is what one broker proposes at once: a group commit. All of it takes
// effect, or none.
type Entry struct {
	// Origin is the id of the broker that proposes it. The log fills it in.
	Origin string
	// Number counts the entries of an origin, so that one that is sent again is
	// recognised: it has no effect. 0 where nothing is sent again.
	Number uint64
	// Time is what the origin's clock showed, in milliseconds since 1970. A
	// message's TS is this, or that of the message before it if that is greater.
	Time int64
	// Full says that the origin's disk had no room: no new message is stored. The
	// log fills it in.
	Full bool

	// Records are messages without a seq, in the order of their publishing. The
	// log writes what it has decided into those that it stores; of a Duplicate it
	// writes the first one's Seq.
	Records []*Record
	// Trim is the seq up to and including which messages are forgotten, once the records
	// are decided. 0 for none.
	Trim uint64
	// State is changes to the state store, made after all the rest.
	State []state.Op
}

// Outcome is what was decided about a record.
type Outcome uint8

// The outcomes of a record.
const (
	Stored    Outcome = iota // it is new; Seq, Prev, PrevSender and TS are filled in
	Duplicate                // it was stored before; Seq is the first one's
	Conflict                 // its mid was used before with another content; nothing was stored
	NoRoom                   // it is new and the disk was full; nothing was stored
	Unknown                  // it is new and Ask was set; nothing was stored
)

// Committed is an entry that is durable and in its place in the order. If Err is set it
// is an entry of this log of which that is not known.
type Committed struct {
	// Entry is the very one that was proposed if it is Mine. Nobody changes it any
	// more.
	Entry *Entry
	// Outcomes has one outcome for each of the entry's records.
	Outcomes []Outcome
	// Position is the entry's place in the order. Entries without any effect may
	// share the position of the one before; 0 for messages that were read from the
	// log because they were committed before somebody followed.
	Position uint64
	// Chain is a hash over all that was decided up to here. Two machines at the
	// same position have the same one.
	Chain uint64
	// Mine says that the entry was proposed here, so that its proposer waits for the result.
	Mine bool
	// Err is nil for a committed entry. Else the entry is Mine, and it is not known
	// whether it was or will be committed; nobody may be told that it was.
	Err error
}

// Stored appends the records that the entry stored, which are those to deliver, to
// recs.
func (c *Committed) Stored(recs []*Record) []*Record {
	if c.Err != nil {
		return recs
	}
	for i, r := range c.Entry.Records {
		if c.Outcomes[i] == Stored {
			recs = append(recs, r)
		}
	}
	return recs
}

// newest returns the seq of the newest message that the entry stored, 0 for none.
func (c *Committed) newest() uint64 {
	for i, o := range slices.Backward(c.Outcomes) {
		if o == Stored {
			return c.Entry.Records[i].Seq
		}
	}
	return 0
}

// Proposal is an entry that was proposed, for those who wait for its result.
type Proposal struct {
	entry *Entry

	once      sync.Once
	done      chan struct{}
	committed *Committed // valid when done is closed
}

// NewProposal returns the proposal of an entry. It is for implementations of Log.
func NewProposal(e *Entry) *Proposal {
	p := &Proposal{}
	p.init(e)
	return p
}

func (p *Proposal) init(e *Entry) { p.entry, p.done = e, make(chan struct{}) }

// Entry returns what was proposed.
func (p *Proposal) Entry() *Entry { return p.entry }

// Wait blocks until the entry, and all before it, are durable, and returns what was
// decided. After an error it is not known whether the entry was committed.
func (p *Proposal) Wait() (*Committed, error) {
	<-p.done
	return p.committed, p.committed.Err
}

// Fail ends Wait with an error: it is not known whether the entry was committed. It is for
// implementations of Log. It has no effect on an entry that is settled.
func (p *Proposal) Fail(err error) { p.settle(&Committed{Entry: p.entry, Mine: true, Err: err}) }

// settle sets the result of the entry and ends Wait.
func (p *Proposal) settle(c *Committed) {
	p.once.Do(func() {
		p.committed = c
		close(p.done)
	})
}
