package msglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// duplicateFinder recognises messages that come again, for one batch.
type duplicateFinder struct {
	applier *applier
	single  bool // the batch is one message: it cannot repeat itself
	hasDup  bool // the batch has DUPs: its own packet ids are to be remembered

	mids *pebble.Iterator // over prefixMid, once it is needed

	// Of the mid that was checked last.
	hash         uint64
	forgottenSeq uint64 // the message that had it, if that is not kept any more
}

// openMids opens the iterator that looks up mids.
func (s *duplicateFinder) openMids() (err error) {
	// An iterator, since a Get does not use the filters of the last level, which has
	// most of the keys. With a Get each new mid, the usual case, would cost a read.
	s.mids, err = s.applier.db.pebble.NewIter(&pebble.IterOptions{
		LowerBound:   []byte(prefixMid),
		UpperBound:   prefixEndKey([]byte(prefixMid)),
		UseL6Filters: true,
	})
	return err
}

func (s *duplicateFinder) close() error {
	if s.mids == nil {
		return nil
	}
	return s.mids.Close()
}

// check returns whether r was stored before, and the seq that it has if so.
func (s *duplicateFinder) check(r *Record) (Outcome, uint64, error) {
	switch {
	case r.Mid != "":
		u, ok, err := s.findMid(r)
		switch {
		case err != nil:
			return 0, 0, fmt.Errorf("look up mid: %w", err)
		case !ok:
			return Stored, 0, nil
		case !r.hasDigest(u.digest):
			return Conflict, 0, nil
		}
		return Duplicate, u.seq, nil
	case r.Dup && isTracked(r):
		u, ok, err := s.findPacketID(r)
		if err != nil {
			return 0, 0, fmt.Errorf("look up packet id: %w", err)
		}
		if ok && u.seq >= s.applier.first && r.hasDigest(u.digest) && r.mayRetransmit(u.seq) {
			return Duplicate, u.seq, nil
		}
	}
	return Stored, 0, nil
}

// mayRetransmit reports whether a Dup may be the retransmission of the message seq.
func (r *Record) mayRetransmit(seq uint64) bool {
	return seq > r.DupAfter && (r.DupUpTo == 0 || seq <= r.DupUpTo)
}

// remember records a new message, so that the rest of the batch is compared with it.
func (s *duplicateFinder) remember(r *Record) {
	switch u := (use{r.Seq, r.Digest}); {
	case r.Mid != "":
		if !s.single {
			s.applier.entryMids[senderMid{r.From, r.Mid}] = u
		}
		s.applier.filter.add(s.hash, r.Seq)
		if s.forgottenSeq != 0 {
			s.applier.newlyReused = append(s.applier.newlyReused, reusedMid{string(midKey(nil, r.From, r.Mid)), s.forgottenSeq, u})
		}
	case isTracked(r):
		dev := device{r.From, r.Client}
		if s.hasDup {
			uses := s.applier.entryUses[dev]
			if uses == nil {
				uses = &deviceUses{}
				s.applier.entryUses[dev] = uses
			}
			uses.add(r.PacketID, u)
		}
		s.applier.packetIDs.add(dev, r.PacketID, u)
	}
}

func (s *duplicateFinder) findMid(r *Record) (use, bool, error) {
	s.hash, s.forgottenSeq = midHash(r.From, r.Mid), 0
	if s.applier.filter.isNew(s.hash) {
		return use{}, false, nil
	}
	if u, ok := s.applier.entryMids[senderMid{r.From, r.Mid}]; ok {
		return u, true, nil
	}
	if s.mids == nil {
		if err := s.openMids(); err != nil {
			return use{}, false, err
		}
	}
	s.applier.key = midKey(s.applier.key, r.From, r.Mid)
	// The whole key is the prefix: nothing but this key is found.
	if !s.mids.SeekPrefixGE(s.applier.key) {
		return use{}, false, s.mids.Error()
	}
	value, err := s.mids.ValueAndErr()
	if err != nil {
		return use{}, false, err
	}
	u, err := decodeMid(value)
	if err == nil && u.seq < s.applier.first {
		s.forgottenSeq = u.seq // it may still be on disk
		return use{}, false, nil
	}
	return u, err == nil, err
}

func appendMid(b []byte, u use) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, u.seq), u.digest)
}

func decodeMid(value []byte) (use, error) {
	if len(value) != 16 {
		return use{}, fmt.Errorf("%w: mid: %w", ErrCorrupt, errEncoding)
	}
	return use{binary.BigEndian.Uint64(value), binary.BigEndian.Uint64(value[8:])}, nil
}

func (s *duplicateFinder) findPacketID(r *Record) (use, bool, error) {
	dev := device{r.From, r.Client}
	uses, err := s.applier.packetIDs.get(s.applier.db, dev, s.applier.next-1, s.applier.entryUses[dev])
	if err != nil {
		return use{}, false, err
	}
	u, ok := uses.get(r.PacketID)
	return u, ok, nil
}

const (
	// dupSearchDepth is how many messages of a device are searched for a packet
	// id: as many as there are packet ids, so all that can be in flight if the
	// device uses them in turn.
	dupSearchDepth = 1 << 16
	// maxCachedPacketIDs bounds the cache, in packet ids.
	maxCachedPacketIDs = 1 << 18
)

// deviceUses is the newest use of each packet id among the newest dupSearchDepth of a device's
// messages. It is the same however much of it comes from memory.
type deviceUses struct {
	byID  map[uint16]numberedUse
	count int // number of the newest
}

// numberedUse is a use and the number of its message among the device's.
type numberedUse struct {
	use
	number int
}

// add records the device's next message.
func (d *deviceUses) add(id uint16, u use) {
	if d.byID == nil {
		d.byID = make(map[uint16]numberedUse)
	}
	d.count++
	d.byID[id] = numberedUse{u, d.count}
}

// get returns the newest use of a packet id.
func (d *deviceUses) get(id uint16) (use, bool) {
	u, ok := d.byID[id]
	return u.use, ok && d.count-u.number < dupSearchDepth
}

// deviceCache holds the packet ids of devices that have sent DUPs lately. A device that
// retransmits sends many of them: the first one costs a read of the device's earlier
// packet ids, the others none.
type deviceCache struct {
	devices map[device]*deviceUses
	entries int
}

func newDeviceCache() *deviceCache {
	c := &deviceCache{}
	c.reset()
	return c
}

func (c *deviceCache) reset() { c.devices, c.entries = make(map[device]*deviceUses), 0 }

// add records a new message's packet id if its device is in the cache.
func (c *deviceCache) add(dev device, id uint16, u use) {
	if len(c.devices) == 0 {
		return
	}
	if uses, ok := c.devices[dev]; ok {
		before := len(uses.byID)
		uses.add(id, u)
		c.entries += len(uses.byID) - before
	}
}

// get returns the packet ids of a device among the messages up to upto and those of this
// entry, which are not in the database yet.
func (c *deviceCache) get(db *database, dev device, upto uint64, entry *deviceUses) (*deviceUses, error) {
	if uses, ok := c.devices[dev]; ok {
		return uses, nil
	}
	uses, err := db.readPacketIDs(dev, upto)
	if err != nil {
		return nil, err
	}
	if entry != nil {
		maps.Copy(uses.byID, entry.byID)
		uses.count = entry.count
	}
	if c.entries+len(uses.byID) > maxCachedPacketIDs {
		c.reset()
	}
	c.devices[dev] = uses
	c.entries += len(uses.byID) + 1 // a device without any takes room as well
	return uses, nil
}

// readPacketIDs reads the newest use of each packet id of a device. The numbers of what it
// reads go down from 0.
func (d *database) readPacketIDs(dev device, upto uint64) (uses *deviceUses, err error) {
	prefix := appendString(appendString([]byte(prefixDevice), dev.from), dev.client)
	it, err := d.newIter(prefix, appendSeq(slices.Clip(prefix), upto+1))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	uses = &deviceUses{byID: make(map[uint16]numberedUse)}
	number := 0
	for ok := it.Last(); ok && -number < dupSearchDepth; ok = it.Prev() {
		last, err := keySeq(it.Key())
		if err != nil {
			return nil, err
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, err
		}
		entries, err := decodeUses(last, value)
		if err != nil {
			return nil, fmt.Errorf("%w: packet ids of block %d: %w", ErrCorrupt, last, err)
		}
		for _, e := range slices.Backward(entries) {
			if _, newer := uses.byID[e.id]; !newer {
				uses.byID[e.id] = numberedUse{e.use, number}
			}
			number--
		}
	}
	return uses, it.Error()
}
