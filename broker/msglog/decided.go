package msglog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"mynah/broker/state"
)

// decided is the state that follows from the entries so far, beside the messages and
// their keys. It is stored with each entry that has an effect.
type decided struct {
	position uint64 // of the newest entry
	first    uint64 // oldest message that is kept
	ts       int64  // of the newest message
	chain    uint64 // hash over all that was decided
}

const decidedSize = 4 * 8

func (d *decided) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, d.position)
	b = binary.BigEndian.AppendUint64(b, d.first)
	b = binary.BigEndian.AppendUint64(b, uint64(d.ts))
	return binary.BigEndian.AppendUint64(b, d.chain)
}

// putDecided puts the state behind an entry into its batch.
func (a *applier) putDecided(b *pebble.Batch, e *Entry) error {
	a.val = a.append(a.val[:0])
	if err := b.Set([]byte(keyDecided), a.val, nil); err != nil {
		return err
	}
	if e.Number == 0 {
		return nil
	}
	a.key = append(append(a.key[:0], prefixOrigin...), e.Origin...)
	a.val = binary.BigEndian.AppendUint64(a.val[:0], max(e.Number, a.numbers[e.Origin]))
	return b.Set(a.key, a.val, nil)
}

// readDecided reads the state behind the newest entry; ok is false if there is none,
// which is so in a log of an older version.
func (d *database) readDecided() (_ decided, ok bool, err error) {
	value, closer, err := d.pebble.Get([]byte(keyDecided))
	if errors.Is(err, pebble.ErrNotFound) {
		return decided{}, false, nil
	} else if err != nil {
		return decided{}, false, fmt.Errorf("read %q: %w", keyDecided, err)
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	if len(value) != decidedSize {
		return decided{}, false, fmt.Errorf("%w: %q has %d bytes", ErrCorrupt, keyDecided, len(value))
	}
	u := binary.BigEndian.Uint64
	return decided{position: u(value), first: u(value[8:]), ts: int64(u(value[16:])), chain: u(value[24:])}, true, nil
}

// readNumbers reads the number of the newest entry of each origin.
func (d *database) readNumbers() (numbers map[string]uint64, err error) {
	it, err := d.newPrefixIter(prefixOrigin)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	numbers = make(map[string]uint64)
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, err
		}
		if len(value) != 8 {
			return nil, fmt.Errorf("%w: %q has %d bytes", ErrCorrupt, it.Key(), len(value))
		}
		numbers[string(it.Key()[len(prefixOrigin):])] = binary.BigEndian.Uint64(value)
	}
	return numbers, it.Error()
}

// nextChain returns the hash over all that was decided up to and including this entry.
func (a *applier) nextChain(outcomes []Outcome, e *Entry) uint64 {
	b := binary.BigEndian.AppendUint64(a.val[:0], a.chain)
	b = binary.BigEndian.AppendUint64(b, a.next)
	b = binary.BigEndian.AppendUint64(b, a.first)
	b = binary.BigEndian.AppendUint64(b, uint64(a.ts))
	for i, r := range e.Records {
		b = append(b, byte(outcomes[i]))
		b = binary.BigEndian.AppendUint64(b, r.Digest)
		b = binary.BigEndian.AppendUint64(b, r.Seq)
		if outcomes[i] == Stored {
			b = binary.BigEndian.AppendUint64(b, r.Prev)
			b = binary.BigEndian.AppendUint64(b, r.PrevSender)
		}
	}
	for _, op := range e.State {
		b = appendOp(b, op)
	}
	a.val = b
	return xxhash.Sum64(b)
}

// addStateOps puts changes of the state store into a batch.
func addStateOps(b *pebble.Batch, ops []state.Op) error {
	for _, op := range ops {
		key := append([]byte(prefixStore), op.Key...)
		var err error
		switch {
		case op.Delete && op.Prefix:
			err = b.DeleteRange(key, prefixEndKey(key), nil)
		case op.Delete:
			err = b.Delete(key, nil)
		default:
			err = b.Set(key, op.Value, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
