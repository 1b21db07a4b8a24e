package msglog

import (
	"errors"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
)

const (
	userPrefix = "user/"

	// indexBytes and indexMillis are how much may be appended, and how much time
	// may pass between messages, from one index entry to the next. Trimming by
	// age and size is as exact as that.
	indexBytes  = 1 << 20
	indexMillis = 60_000

	// recordOverhead is about what a message takes besides its tail.
	recordOverhead = 256
)

// applier decides what becomes of entries, one after the other. What it decides depends
// on the entries before and on nothing else. It is used under Pebble.applying.
type applier struct {
	db         *database
	store      *store
	reusedMids *reusedMids
	decided
	next      uint64            // seq of the next message
	numbers   map[string]uint64 // number of the newest entry of each origin
	topics    *topicCache
	packetIDs *deviceCache
	filter    midFilter

	block        blockBuilder
	blockID      uint64        // counts blocks, to know which block a state's lists belong to
	blockTopics  []*topicState // topics of the block under construction
	blockDevices []*deviceState
	entryDevices map[device]*deviceState // of this entry
	entryMids    map[senderMid]use       // of this entry
	entryUses    map[device]*deviceUses  // packet ids of this entry
	newlyReused  []reusedMid             // mids of this entry whose earlier message is forgotten

	key, val []byte // scratch

	indexed indexEntry // the newest of the sparse index
	bytes   uint64     // written since the log was made
}

// device is a sender's device as MQTT names it.
type device struct{ from, client string }

type senderMid struct{ from, mid string }

// use is the message that used a mid or a packet id.
type use struct{ seq, digest uint64 }

// deviceState collects the packet ids that a device used in the block under
// construction.
type deviceState struct {
	device
	blockID uint64
	uses    []packetEntry
}

type packetEntry struct {
	id uint16
	use
}

func (a *applier) init(l *Pebble) error {
	a.db, a.store, a.reusedMids = l.db, l.store, &l.remover.reused
	a.next = l.bounds.durable.Load() + 1
	a.topics = newTopicCache(l.db.opts.TailTopics)
	a.packetIDs = newDeviceCache()
	a.filter = midFilter{db: l.db, life: l.life, bounds: &l.bounds, limit: l.db.opts.MidFilterBytes, built: make(chan []*midGeneration, 1)}
	a.entryDevices = make(map[device]*deviceState)
	a.entryMids = make(map[senderMid]use)
	a.entryUses = make(map[device]*deviceUses)
	var err error
	if a.decided, _, err = l.db.readDecided(); err != nil {
		return err
	}
	if a.numbers, err = l.db.readNumbers(); err != nil {
		return err
	}
	a.indexed, err = l.db.lastIndex()
	a.bytes = a.indexed.bytes
	return err
}

// apply decides about an entry and begins to write the result. always is set where the
// positions come from elsewhere: then the position is written even if the entry had no
// effect.
func (a *applier) apply(position uint64, e *Entry, always bool) (*pending, error) {
	p := &pending{ownCommitted: Committed{Entry: e, Outcomes: make([]Outcome, len(e.Records))}}
	p.committed = &p.ownCommitted
	before, next := a.decided, a.next
	b := a.db.pebble.NewBatchWithSize(entrySize(e))
	repeated := e.Number != 0 && e.Number <= a.numbers[e.Origin]
	index, err := a.indexed, error(nil)
	if repeated {
		p.committed = nil
	} else {
		index, err = a.prepare(b, p.committed.Outcomes, e)
	}
	if err == nil && (always || a.next != next || a.first != before.first || len(e.State) > 0) {
		if a.position = position; !repeated {
			a.chain = a.nextChain(p.committed.Outcomes, e)
			err = addStateOps(b, e.State)
		}
		err = errors.Join(err, a.putDecided(b, e))
	}
	clear(a.entryDevices)
	clear(a.entryMids)
	clear(a.entryUses)
	if err != nil {
		// The caches know of messages that are not stored.
		a.topics.reset()
		a.packetIDs.reset()
		a.decided, a.next = before, next
		return nil, errors.Join(err, b.Close())
	}
	p.last, p.decided = a.next-1, a.decided
	if p.committed != nil {
		p.committed.Position, p.committed.Chain = a.position, a.chain
	}
	if b.Empty() {
		return p, b.Close() // nothing to write: the entry is durable when those before it are
	}
	// An error from here on means a failed log: it is not known how much of the batch
	// is on disk.
	written := uint64(b.Len()) //nolint:gosec // a length
	if err := a.write(b, p, len(e.State) > 0 && !repeated); err != nil {
		return nil, err
	}
	if e.Number != 0 && !repeated {
		a.numbers[e.Origin] = e.Number
	}
	a.indexed, a.bytes = index, a.bytes+written
	p.batch = b
	return p, nil
}

// entrySize returns about how many bytes an entry takes in the database.
func entrySize(e *Entry) int {
	size := 0
	for _, r := range e.Records {
		size += len(r.Tail) + recordOverhead
	}
	return size
}

// prepare finds out which messages are new, numbers them and puts them into the
// batch, and moves the bounds of what is kept. It returns the newest entry of the
// sparse index.
func (a *applier) prepare(b *pebble.Batch, outcomes []Outcome, e *Entry) (index indexEntry, err error) {
	seen := duplicateFinder{
		applier: a, single: len(e.Records) == 1,
		hasDup: slices.ContainsFunc(e.Records, func(r *Record) bool { return r.Dup }),
	}
	defer func() { err = errors.Join(err, seen.close()) }()
	a.topics.rotate()
	a.startBlock()
	a.newlyReused = a.newlyReused[:0]
	ts := max(a.ts, e.Time) // never backwards, so that it does not contradict seq
	var newest *Record
	for i, r := range e.Records {
		outcome, seq, err := seen.check(r)
		if err != nil {
			return index, err
		}
		switch {
		case outcome != Stored:
		case r.Ask:
			outcome = Unknown
		case e.Full:
			outcome = NoRoom
		}
		outcomes[i] = outcome
		if outcome != Stored {
			r.Seq = seq
			continue
		}
		newest = r
		r.Seq, r.TS = a.next, ts
		a.next++
		if err := a.addRecord(r); err != nil {
			return index, err
		}
		seen.remember(r)
		if r.Mid != "" {
			a.key = midKey(a.key, r.From, r.Mid)
			a.val = appendMid(a.val[:0], use{r.Seq, r.Digest})
			if err := b.Set(a.key, a.val, nil); err != nil {
				return index, err
			}
		}
		if a.block.full() {
			if err := a.finishBlock(b, r.Seq); err != nil {
				return index, err
			}
		}
	}
	if e.Trim >= a.first {
		a.first = min(e.Trim, a.next-1) + 1
	}
	if newest == nil {
		return a.indexed, nil
	}
	a.ts = ts
	if len(a.block.offsets) > 0 {
		if err := a.finishBlock(b, newest.Seq); err != nil {
			return index, err
		}
	}
	return a.addIndex(b, newest.Seq, newest.TS)
}

// write begins to write a batch. The pending entry tells when it is durable.
func (a *applier) write(b *pebble.Batch, p *pending, changesState bool) (err error) {
	write := func(b *pebble.Batch) error { return a.reusedMids.applyNew(a.newlyReused, b, a.db.applyAsync) }
	if !changesState {
		return a.db.guard(func() error { return write(b) })
	}
	p.changes, err = a.store.applyCounted(b, write)
	return err
}

func (a *applier) startBlock() {
	a.block.reset()
	a.blockID++
	a.blockTopics = a.blockTopics[:0]
	a.blockDevices = a.blockDevices[:0]
}

// addRecord puts a record that has its seq into the block under construction.
func (a *applier) addRecord(r *Record) error {
	to, err := a.topic(append(a.key[:0], r.To...))
	if err != nil {
		return err
	}
	r.Prev = to.tail
	r.PrevSender = 0
	a.addToTopic(to, r.Seq)
	if hasOwnTopic(r) {
		own, err := a.topic(append(append(a.key[:0], userPrefix...), r.From...))
		if err != nil {
			return err
		}
		r.PrevSender = own.tail
		a.addToTopic(own, r.Seq)
	}
	if isTracked(r) {
		a.addPacketID(r)
	}
	a.block.add(r)
	return nil
}

// hasOwnTopic reports whether a message is delivered on its sender's own topic as
// well: a direct message that is not a note to oneself.
func hasOwnTopic(r *Record) bool {
	return strings.HasPrefix(r.To, userPrefix) && r.To[len(userPrefix):] != r.From
}

// ownTopic returns the sender's own topic if the message is delivered there as
// well, else "".
func ownTopic(r *Record) string {
	if !hasOwnTopic(r) {
		return ""
	}
	return userPrefix + r.From
}

func (a *applier) addToTopic(t *topicState, seq uint64) {
	t.tail = seq
	if t.blockID != a.blockID {
		t.blockID, t.index = a.blockID, t.index[:0]
		a.blockTopics = append(a.blockTopics, t)
	}
	t.index = append(t.index, uint8(len(a.block.offsets))) //nolint:gosec // below blockRecords
}

// topic returns the state of a topic, from the log if it is not in the cache.
func (a *applier) topic(name []byte) (*topicState, error) {
	a.key = name // name may have outgrown it
	if t := a.topics.get(name); t != nil {
		return t, nil
	}
	t := &topicState{name: string(name)}
	var err error
	// Messages that are applied and not yet durable count: they come earlier in the log.
	if t.tail, err = a.db.readTail(t.name, a.next-1); err != nil {
		return nil, err
	}
	a.topics.put(t)
	return t, nil
}

// isTracked reports whether a record's packet id is kept, so that it is
// recognised when it comes again with DUP. A record with a mid is recognised by that.
func isTracked(r *Record) bool { return r.QoS > 0 && r.PacketID != 0 && r.Mid == "" }

func (a *applier) addPacketID(r *Record) {
	dev := device{r.From, r.Client}
	d := a.entryDevices[dev]
	if d == nil {
		d = &deviceState{device: dev}
		a.entryDevices[dev] = d
	}
	if d.blockID != a.blockID {
		d.blockID, d.uses = a.blockID, d.uses[:0]
		a.blockDevices = append(a.blockDevices, d)
	}
	d.uses = append(d.uses, packetEntry{r.PacketID, use{r.Seq, r.Digest}})
}

// finishBlock adds the block whose newest message is last to the batch, together with
// its postings and packet ids.
func (a *applier) finishBlock(b *pebble.Batch, last uint64) error {
	n := len(a.block.offsets)
	a.key = blockKey(a.key, last)
	if err := b.Set(a.key, a.block.finish(), nil); err != nil {
		return err
	}
	for _, t := range a.blockTopics {
		a.key = postingKey(a.key, t.name, last)
		a.val = appendPosting(a.val[:0], n, t.index)
		if err := b.Set(a.key, a.val, nil); err != nil {
			return err
		}
	}
	for _, d := range a.blockDevices {
		a.key = deviceKey(a.key, d.from, d.client, last)
		a.val = appendUses(a.val[:0], last, d.uses)
		if err := b.Set(a.key, a.val, nil); err != nil {
			return err
		}
	}
	a.startBlock()
	return nil
}

// addIndex adds an entry to the sparse index if one is due, and returns the
// newest one.
func (a *applier) addIndex(b *pebble.Batch, last uint64, ts int64) (indexEntry, error) {
	e := indexEntry{seq: last, bytes: a.bytes + uint64(b.Len()), ts: ts} //nolint:gosec // a length
	if e.bytes-a.indexed.bytes < indexBytes && e.ts-a.indexed.ts < indexMillis {
		return a.indexed, nil
	}
	a.key = indexKey(a.key, e.seq)
	a.val = e.append(a.val[:0])
	return e, b.Set(a.key, a.val, nil)
}
