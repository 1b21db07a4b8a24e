package msglog

import (
	"errors"
	"fmt"
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

// appender is what belongs to the goroutine that appends.
type appender struct {
	log    *Pebble
	next   uint64 // seq of the next message
	topics *topicCache
	dups   *deviceCache
	filter midFilter

	block   blockBuilder
	blockID uint64        // counts blocks, to know which block a state's lists belong to
	touched []*topicState // topics of the block under construction
	used    []*deviceState
	devices map[device]*deviceState // of this batch
	mids    map[senderMid]use       // of this batch
	uses    map[devicePacket]use

	key, val []byte // scratch

	indexed indexEntry // the newest of the sparse index
	bytes   uint64     // appended since the log was made
}

// device is a sender's device as MQTT names it.
type device struct{ from, client string }

type senderMid struct{ from, mid string }

type devicePacket struct {
	device
	id uint16
}

// use is the message that used a mid or a packet id.
type use struct{ seq, digest uint64 }

// deviceState collects the packet ids that a device used in the block under
// construction.
type deviceState struct {
	device
	block uint64
	uses  []packetEntry
}

type packetEntry struct {
	id uint16
	use
}

func (a *appender) init(l *Pebble) error {
	a.log = l
	a.next = l.durable.Load() + 1
	a.topics = newTopicCache(l.opts.TailTopics)
	a.dups = newDeviceCache()
	a.filter = midFilter{log: l, limit: l.opts.MidFilterBytes, built: make(chan []*midGeneration, 1)}
	a.devices = make(map[device]*deviceState)
	a.mids = make(map[senderMid]use)
	a.uses = make(map[devicePacket]use)
	var err error
	a.indexed, err = l.lastIndex()
	a.bytes = a.indexed.bytes
	return err
}

// pending is a batch on its way to the disk.
type pending struct {
	outcomes []Outcome
	batch    *pebble.Batch // nil if nothing was to be stored
	last     uint64        // newest seq once it is durable
	done     chan struct{}
	err      error // valid when done is closed
}

// Outcomes has one outcome for each record of the batch.
func (p *pending) Outcomes() []Outcome { return p.outcomes }

// Wait blocks until the batch, and all before it, are on disk.
func (p *pending) Wait() error {
	<-p.done
	return p.err
}

// Append gives each new record its seq, in order, as one batch. See Log.
func (l *Pebble) Append(recs []*Record) (Pending, error) {
	if err := l.use(); err != nil {
		return nil, err
	}
	defer l.done()
	if err := l.failure.get(); err != nil {
		return nil, err
	}
	size := 0
	for _, r := range recs {
		size += len(r.Tail) + recordOverhead
	}
	noRoom := l.disk.admit(size)
	if noRoom != nil && !slices.ContainsFunc(recs, func(r *Record) bool { return r.Dup || r.Mid != "" }) {
		return nil, noRoom
	}
	p, err := l.appender.append(recs, size, noRoom != nil)
	if err != nil {
		return nil, fmt.Errorf("append batch: %w", err)
	}
	if noRoom != nil && !slices.ContainsFunc(p.outcomes, func(o Outcome) bool { return o != NoRoom }) {
		return nil, noRoom
	}
	// In the order of appending: there is one appending goroutine.
	l.commits <- p
	return p, nil
}

// append prepares a batch and begins to write it. If the disk is full, it only finds out
// what has been stored before.
func (a *appender) append(recs []*Record, size int, full bool) (*pending, error) {
	next := a.next
	p := &pending{outcomes: make([]Outcome, len(recs)), done: make(chan struct{})}
	b := a.log.db.NewBatchWithSize(size)
	index, err := a.prepare(b, p.outcomes, recs, full)
	clear(a.devices)
	clear(a.mids)
	clear(a.uses)
	if err != nil {
		// The caches know of messages that are not stored.
		a.topics.reset()
		a.dups.reset()
		a.next = next
		return nil, errors.Join(err, b.Close())
	}
	p.last = a.next - 1
	if a.next == next {
		return p, b.Close() // nothing new: to wait for what came before is all there is to do
	}
	// From here on there is no way back but a failed log: it is not known what of
	// the batch is on disk.
	written := uint64(b.Len()) //nolint:gosec // a length
	if err := a.log.guard(func() error { return a.log.applyAsync(b) }); err != nil {
		return nil, err
	}
	a.indexed, a.bytes = index, a.bytes+written
	p.batch = b
	return p, nil
}

// prepare finds out which messages are new, numbers them and puts them into the
// batch, unless the disk is full or it was only asked. It returns the newest entry of the sparse index.
func (a *appender) prepare(b *pebble.Batch, outcomes []Outcome, recs []*Record, full bool) (index indexEntry, err error) {
	seen := seenBefore{
		a: a, single: len(recs) == 1,
		keepUses: slices.ContainsFunc(recs, func(r *Record) bool { return r.Dup }),
	}
	defer func() { err = errors.Join(err, seen.close()) }()
	a.startBlock()
	var newest *Record
	for i, r := range recs {
		outcome, seq, err := seen.check(r)
		if err != nil {
			return index, err
		}
		switch {
		case outcome != Stored:
		case r.Ask:
			outcome = Unknown
		case full:
			outcome = NoRoom
		}
		outcomes[i] = outcome
		if outcome != Stored {
			r.Seq = seq
			continue
		}
		newest = r
		r.Seq = a.next
		a.next++
		if err := a.add(r); err != nil {
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
	if newest == nil {
		return a.indexed, nil
	}
	if len(a.block.offsets) > 0 {
		if err := a.finishBlock(b, newest.Seq); err != nil {
			return index, err
		}
	}
	return a.addIndex(b, newest.Seq, newest.TS)
}

// applyAsync begins to write the batch; its SyncWait tells when it is durable.
func (l *Pebble) applyAsync(b *pebble.Batch) error {
	if l.opts.NoSync {
		return l.db.Apply(b, pebble.NoSync)
	}
	return l.db.ApplyNoSyncWait(b, pebble.Sync)
}

func (a *appender) startBlock() {
	a.block.reset()
	a.blockID++
	a.touched = a.touched[:0]
	a.used = a.used[:0]
}

// add puts a record that has its seq into the block under construction.
func (a *appender) add(r *Record) error {
	to, err := a.topic(append(a.key[:0], r.To...))
	if err != nil {
		return err
	}
	r.Prev = to.tail
	r.PrevSender = 0
	a.post(to, r.Seq)
	if hasOwnTopic(r) {
		own, err := a.topic(append(append(a.key[:0], userPrefix...), r.From...))
		if err != nil {
			return err
		}
		r.PrevSender = own.tail
		a.post(own, r.Seq)
	}
	if isTracked(r) {
		a.track(r)
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

func (a *appender) post(t *topicState, seq uint64) {
	t.tail = seq
	if t.block != a.blockID {
		t.block, t.index = a.blockID, t.index[:0]
		a.touched = append(a.touched, t)
	}
	t.index = append(t.index, uint8(len(a.block.offsets))) //nolint:gosec // below blockRecords
}

// topic returns the state of a topic, from the log if it is not in the cache.
func (a *appender) topic(name []byte) (*topicState, error) {
	a.key = name // name may have outgrown it
	if t := a.topics.get(name); t != nil {
		return t, nil
	}
	t := &topicState{name: string(name)}
	var err error
	// What has been applied counts, durable or not: it comes before.
	if t.tail, err = a.log.tail(t.name, a.next-1); err != nil {
		return nil, err
	}
	a.topics.put(t)
	return t, nil
}

// isTracked reports whether a record's packet id is kept, so that it is
// recognised when it comes again with DUP. With a mid that does it.
func isTracked(r *Record) bool { return r.QoS > 0 && r.PacketID != 0 && r.Mid == "" }

func (a *appender) track(r *Record) {
	dev := device{r.From, r.Client}
	d := a.devices[dev]
	if d == nil {
		d = &deviceState{device: dev}
		a.devices[dev] = d
	}
	if d.block != a.blockID {
		d.block, d.uses = a.blockID, d.uses[:0]
		a.used = append(a.used, d)
	}
	d.uses = append(d.uses, packetEntry{r.PacketID, use{r.Seq, r.Digest}})
}

// finishBlock adds the block whose newest message is last, and what points into
// it, to the batch.
func (a *appender) finishBlock(b *pebble.Batch, last uint64) error {
	n := len(a.block.offsets)
	a.key = blockKey(a.key, last)
	if err := b.Set(a.key, a.block.finish(), nil); err != nil {
		return err
	}
	for _, t := range a.touched {
		a.key = postingKey(a.key, t.name, last)
		a.val = appendPosting(a.val[:0], n, t.index)
		if err := b.Set(a.key, a.val, nil); err != nil {
			return err
		}
	}
	for _, d := range a.used {
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
func (a *appender) addIndex(b *pebble.Batch, last uint64, ts int64) (indexEntry, error) {
	e := indexEntry{seq: last, bytes: a.bytes + uint64(b.Len()), ts: ts} //nolint:gosec // a length
	if e.bytes-a.indexed.bytes < indexBytes && e.ts-a.indexed.ts < indexMillis {
		return a.indexed, nil
	}
	a.key = indexKey(a.key, e.seq)
	a.val = e.append(a.val[:0])
	return e, b.Set(a.key, a.val, nil)
}

// commitLoop waits for batches to become durable, in order, and makes them
// visible.
func (l *Pebble) commitLoop() {
	defer close(l.committed)
	for p := range l.commits {
		p.err = l.commit(p)
		close(p.done)
	}
}

func (l *Pebble) commit(p *pending) error {
	// After a failure nothing is known to be durable, whatever a later sync says.
	if err := l.failure.get(); err != nil {
		return err
	}
	if p.batch == nil {
		return nil
	}
	if !l.opts.NoSync {
		if err := p.batch.SyncWait(); err != nil {
			return l.fail(fmt.Errorf("sync: %w", err))
		}
	}
	// In this order: whoever is told of a message finds it in HEAD.
	if !l.opts.NoSync {
		if err := l.head.raise(head{seq: p.last}); err != nil {
			return l.fail(err)
		}
	}
	l.durable.Store(p.last)
	// Its memory is used again by the next batches. It was applied, so there is
	// nothing that Close could report.
	_ = p.batch.Close()
	p.batch = nil
	return nil
}
