package msglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// seenBefore recognises messages that come again, for one batch.
type seenBefore struct {
	a        *applier
	single   bool // the batch is one message: it cannot repeat itself
	keepUses bool // the batch has DUPs: its own packet ids are to be remembered

	mids *pebble.Iterator // over prefixMid, once it is needed

	// Of the mid that was checked last.
	hash      uint64
	forgotten uint64 // the message that had it, if that is not kept any more
}

// openMids makes what is needed to look up mids.
func (s *seenBefore) openMids() (err error) {
	// An iterator, since a Get does not ask the filters of the last level, where
	// most of the keys are: a new mid, the usual case, would be a read each.
	s.mids, err = s.a.db.pebble.NewIter(&pebble.IterOptions{
		LowerBound:   []byte(prefixMid),
		UpperBound:   prefixEndKey([]byte(prefixMid)),
		UseL6Filters: true,
	})
	return err
}

func (s *seenBefore) close() error {
	if s.mids == nil {
		return nil
	}
	return s.mids.Close()
}

// check tells whether r was stored before, and as what.
func (s *seenBefore) check(r *Record) (Outcome, uint64, error) {
	switch {
	case r.Mid != "":
		u, ok, err := s.mid(r)
		switch {
		case err != nil:
			return 0, 0, fmt.Errorf("look up mid: %w", err)
		case !ok:
			return Stored, 0, nil
		case !r.isSame(u.digest):
			return Conflict, 0, nil
		}
		return Duplicate, u.seq, nil
	case r.Dup && isTracked(r):
		u, ok, err := s.packet(r)
		if err != nil {
			return 0, 0, fmt.Errorf("look up packet id: %w", err)
		}
		if ok && u.seq >= s.a.first && r.isSame(u.digest) && r.mayRepeat(u.seq) {
			return Duplicate, u.seq, nil
		}
	}
	return Stored, 0, nil
}

// mayRepeat reports whether a Dup may be the retransmission of the message seq.
func (r *Record) mayRepeat(seq uint64) bool {
	return seq > r.DupAfter && (r.DupUpTo == 0 || seq <= r.DupUpTo)
}

// remember takes note of a new message for the rest of the batch.
func (s *seenBefore) remember(r *Record) {
	switch u := (use{r.Seq, r.Digest}); {
	case r.Mid != "":
		if !s.single {
			s.a.mids[senderMid{r.From, r.Mid}] = u
		}
		s.a.filter.add(s.hash, r.Seq)
		if s.forgotten != 0 {
			s.a.reused = append(s.a.reused, reusedMid{string(midKey(nil, r.From, r.Mid)), s.forgotten, u})
		}
	case isTracked(r):
		dev := device{r.From, r.Client}
		if s.keepUses {
			uses := s.a.uses[dev]
			if uses == nil {
				uses = &deviceUses{}
				s.a.uses[dev] = uses
			}
			uses.add(r.PacketID, u)
		}
		s.a.dups.note(dev, r.PacketID, u)
	}
}

func (s *seenBefore) mid(r *Record) (use, bool, error) {
	s.hash, s.forgotten = midHash(r.From, r.Mid), 0
	if s.a.filter.isNew(s.hash) {
		return use{}, false, nil
	}
	if u, ok := s.a.mids[senderMid{r.From, r.Mid}]; ok {
		return u, true, nil
	}
	if s.mids == nil {
		if err := s.openMids(); err != nil {
			return use{}, false, err
		}
	}
	s.a.key = midKey(s.a.key, r.From, r.Mid)
	// The whole key is the prefix: nothing but this key is found.
	if !s.mids.SeekPrefixGE(s.a.key) {
		return use{}, false, s.mids.Error()
	}
	value, err := s.mids.ValueAndErr()
	if err != nil {
		return use{}, false, err
	}
	u, err := decodeMid(value)
	if err == nil && u.seq < s.a.first {
		s.forgotten = u.seq // it may still be on disk
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

func (s *seenBefore) packet(r *Record) (use, bool, error) {
	dev := device{r.From, r.Client}
	uses, err := s.a.dups.get(s.a.db, dev, s.a.next-1, s.a.uses[dev])
	if err != nil {
		return use{}, false, err
	}
	u, ok := uses.get(r.PacketID)
	return u, ok, nil
}

const (
	// dupScan is how many messages of a device are looked through for a packet
	// id: as many as there are packet ids, so all that can be in flight if the
	// device uses them in turn.
	dupScan = 1 << 16
	// dupEntries bounds the cache, in packet ids.
	dupEntries = 1 << 18
)

// deviceUses is the newest use of each packet id among the newest dupScan of a device's
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

// add takes note of the device's next message.
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
	return u.use, ok && d.count-u.number < dupScan
}

// deviceCache holds the packet ids of devices that have sent DUPs lately. A device that
// retransmits sends many of them; the first one costs reading what it sent, the others
// nothing.
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

// note records a new message's packet id if its device is in the cache.
func (c *deviceCache) note(dev device, id uint16, u use) {
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
	uses, err := db.packetUses(dev, upto)
	if err != nil {
		return nil, err
	}
	if entry != nil {
		maps.Copy(uses.byID, entry.byID)
		uses.count = entry.count
	}
	if c.entries+len(uses.byID) > dupEntries {
		c.reset()
	}
	c.devices[dev] = uses
	c.entries += len(uses.byID) + 1 // a device without any takes room as well
	return uses, nil
}

// packetUses reads the newest use of each packet id of a device. The numbers of what it
// reads go down from 0.
func (d *database) packetUses(dev device, upto uint64) (uses *deviceUses, err error) {
	prefix := appendString(appendString([]byte(prefixDevice), dev.from), dev.client)
	it, err := d.newIter(prefix, appendSeq(slices.Clip(prefix), upto+1))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	uses = &deviceUses{byID: make(map[uint16]numberedUse)}
	number := 0
	for ok := it.Last(); ok && -number < dupScan; ok = it.Prev() {
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
