package msglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// seenBefore recognises messages that come again, for one batch.
type seenBefore struct {
	a        *appender
	single   bool // the batch is one message: it cannot repeat itself
	keepUses bool // the batch has DUPs: its own packet ids are to be remembered

	mids  *pebble.Iterator // over prefixMid, once it is needed
	first uint64           // oldest message that was kept after mids was opened
	hash  uint64           // of the mid that was checked last
}

// openMids makes what is needed to look up mids.
func (s *seenBefore) openMids() (err error) {
	// An iterator, since a Get does not ask the filters of the last level, where
	// most of the keys are: a new mid, the usual case, would be a read each.
	s.mids, err = s.a.log.db.NewIter(&pebble.IterOptions{
		LowerBound:   []byte(prefixMid),
		UpperBound:   prefixEndKey([]byte(prefixMid)),
		UseL6Filters: true,
	})
	// After it, so that a mid that was trimmed in between is taken for forgotten.
	s.first = s.a.log.first.Load()
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
		if ok && u.seq >= s.a.log.first.Load() && r.isSame(u.digest) && r.mayRepeat(u.seq) {
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
	case isTracked(r):
		dev := device{r.From, r.Client}
		if s.keepUses {
			s.a.uses[devicePacket{dev, r.PacketID}] = u
		}
		s.a.dups.note(dev, r.PacketID, u)
	}
}

func (s *seenBefore) mid(r *Record) (use, bool, error) {
	s.hash = midHash(r.From, r.Mid)
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
	// What was trimmed is forgotten.
	return u, err == nil && u.seq >= s.first, err
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
	if u, ok := s.a.uses[devicePacket{dev, r.PacketID}]; ok {
		return u, true, nil
	}
	uses, err := s.a.dups.get(s.a.log, dev, s.a.next-1)
	if err != nil {
		return use{}, false, err
	}
	// What came earlier in this batch is not in the database yet.
	for dp, u := range s.a.uses {
		if dp.device == dev {
			uses[dp.id] = u
		}
	}
	u, ok := uses[r.PacketID]
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

// deviceCache holds the newest use of each packet id of devices that have sent
// DUPs lately. A device that retransmits sends many of them; the first one costs
// reading what it sent, the others nothing.
type deviceCache struct {
	devices map[device]map[uint16]use
	entries int
}

func newDeviceCache() *deviceCache {
	c := &deviceCache{}
	c.reset()
	return c
}

func (c *deviceCache) reset() { c.devices, c.entries = make(map[device]map[uint16]use), 0 }

// note records a new message's packet id if its device is in the cache.
func (c *deviceCache) note(dev device, id uint16, u use) {
	if len(c.devices) == 0 {
		return
	}
	if uses, ok := c.devices[dev]; ok {
		if _, known := uses[id]; !known {
			c.entries++
		}
		uses[id] = u
	}
}

// get returns the packet ids of a device among the messages up to upto.
func (c *deviceCache) get(l *Pebble, dev device, upto uint64) (map[uint16]use, error) {
	if uses, ok := c.devices[dev]; ok {
		return uses, nil
	}
	uses, err := l.packetUses(dev, upto)
	if err != nil {
		return nil, err
	}
	if c.entries+len(uses) > dupEntries {
		c.reset()
	}
	c.devices[dev] = uses
	c.entries += len(uses) + 1 // a device without any takes room as well
	return uses, nil
}

// packetUses reads the newest use of each packet id of a device.
func (l *Pebble) packetUses(dev device, upto uint64) (uses map[uint16]use, err error) {
	prefix := appendString(appendString([]byte(prefixDevice), dev.from), dev.client)
	it, err := l.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: appendSeq(slices.Clip(prefix), upto+1)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	uses = make(map[uint16]use)
	scanned := 0
	for ok := it.Last(); ok && scanned < dupScan; ok = it.Prev() {
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
			if _, newer := uses[e.id]; !newer {
				uses[e.id] = e.use
			}
		}
		scanned += len(entries)
	}
	return uses, it.Error()
}
