package msglog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
)

// reader reads messages. It sees only what is kept and durable.
type reader struct {
	db     *database
	life   *lifecycle
	bounds bounds
	damage damage
}

func newReader(db *database) *reader { return &reader{db: db, life: newLifecycle()} }

// Bounds returns the seq of the oldest message that is still there and that of
// the newest that is durable.
func (r *reader) Bounds() (first, last uint64) { return r.bounds.load() }

// Read calls fn for each message after the given seq, up to and including upto,
// in order, until fn returns false. See Log; the error is a *CorruptError where
// messages cannot be read.
func (r *reader) Read(ctx context.Context, after, upto uint64, fn func(*Record) bool) (err error) {
	if err := r.life.beginCall(); err != nil {
		return err
	}
	defer r.life.endCall()
	after, upto = r.bounds.clamp(after, upto)
	if after >= upto {
		return nil
	}
	if err := r.damage.check(after+1, upto); err != nil {
		return err
	}
	it, err := r.db.newBlockIter(after)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok && after < upto; ok = it.Next() {
		if err := r.life.check(ctx); err != nil {
			return err
		}
		last, err := keySeq(it.Key())
		if err != nil {
			return err
		}
		value, err := it.ValueAndErr()
		if err != nil {
			break // it.Error says the same
		}
		b, err := parseBlock(last, value)
		if err != nil {
			return &CorruptError{First: after + 1, Last: min(last, upto), Err: err}
		}
		if b.first > after+1 && !r.bounds.trimmed(b.first-1) {
			return &CorruptError{First: after + 1, Last: min(b.first-1, upto), Err: errMissing}
		}
		to := min(last, upto)
		for seq := max(b.first, after+1); seq <= to; seq += readChunk {
			more, err := b.forEachRecord(seq, min(seq+readChunk-1, to), fn)
			if err != nil || !more {
				return err
			}
		}
		after = to
	}
	if err := it.Error(); err != nil {
		return r.damage.findAndRecord(it, after, upto)
	}
	if after < upto && !r.bounds.trimmed(upto) {
		return &CorruptError{First: after + 1, Last: upto, Err: errMissing}
	}
	return nil
}

// readChunk is how many records share one allocation. It is small, since a caller may stop
// after any record, and may keep one for long.
const readChunk = 16

// forEachRecord calls fn for the block's records from one seq to another, until fn returns
// false. The records share their memory.
func (b *block) forEachRecord(from, to uint64, fn func(*Record) bool) (more bool, err error) {
	stored, err := b.records(from, to)
	if err != nil {
		return false, &CorruptError{First: from, Last: to, Err: err}
	}
	stored = bytes.Clone(stored) // the block is the database's
	start := b.offset(from)
	recs := make([]Record, to-from+1)
	for seq := from; seq <= to; seq++ {
		r := &recs[seq-from]
		if err := decodeRecord(r, seq, stored[b.offset(seq)-start:b.end(seq)-start]); err != nil {
			return false, &CorruptError{First: seq, Last: seq, Err: fmt.Errorf("record %d: %w", seq, err)}
		}
		if !fn(r) {
			return false, nil
		}
	}
	return true, nil
}

var errMissing = errors.New("no such block")

// ReadTopic does the same for the messages of one delivery topic. Its cost is
// that of the messages it reads, however many others there are.
func (r *reader) ReadTopic(ctx context.Context, topic string, after, upto uint64, fn func(*Record) bool) (err error) {
	if err := r.life.beginCall(); err != nil {
		return err
	}
	defer r.life.endCall()
	after, upto = r.bounds.clamp(after, upto)
	if after >= upto {
		return nil
	}
	prefix := appendString([]byte(prefixPosting), topic)
	end := prefixEndKey(prefix)
	it, err := r.db.newIter(appendSeq(prefix, after+1), end)
	if err != nil {
		return fmt.Errorf("read topic: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if err := r.life.check(ctx); err != nil {
			return err
		}
		last, err := keySeq(it.Key())
		if err != nil {
			return err
		}
		value, err := it.ValueAndErr()
		if err != nil {
			break // it.Error says the same
		}
		more, err := r.readPosting(topic, last, value, after, upto, fn)
		if err != nil || !more {
			return err
		}
		after = last
	}
	if err := it.Error(); err != nil {
		return findUnreadable(it, after, upto, topic, func(seq uint64) []byte { return postingKey(nil, topic, seq) })
	}
	return nil
}

// readPosting calls fn for the messages of one block that are on a topic. more is false
// when the range ends in the block or fn has returned false.
func (r *reader) readPosting(topic string, last uint64, posting []byte, after, upto uint64, fn func(*Record) bool) (more bool, err error) {
	var seqs []uint64
	more = last < upto
	err = decodePosting(last, posting, func(seq uint64) bool {
		if seq > after && seq <= upto {
			seqs = append(seqs, seq)
		}
		return seq < upto
	})
	if err != nil {
		return false, &CorruptError{First: after + 1, Last: min(last, upto), Topic: topic, Err: fmt.Errorf("posting: %w", err)}
	}
	if len(seqs) == 0 {
		return more, nil
	}
	corrupt := func(err error) error {
		return &CorruptError{First: seqs[0], Last: seqs[len(seqs)-1], Topic: topic, Err: err}
	}
	if err := r.damage.check(last, last); err != nil {
		return false, corrupt(err)
	}
	value, closer, err := r.db.pebble.Get(blockKey(nil, last))
	if err != nil {
		if r.bounds.trimmed(seqs[0]) {
			return more, nil
		}
		return false, corrupt(errors.Join(err, r.findDamage(last)))
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	b, err := parseBlock(last, value)
	if err != nil {
		return false, corrupt(err)
	}
	recs := make([]Record, len(seqs))
	for i, seq := range seqs {
		if seq < b.first {
			return false, corrupt(fmt.Errorf("posting: %w", errEncoding))
		}
		if err := b.decode(&recs[i], seq); err != nil {
			return false, &CorruptError{First: seq, Last: seq, Topic: topic, Err: err}
		}
		recs[i].Tail = bytes.Clone(recs[i].Tail) // the block is the database's
		if !fn(&recs[i]) {
			return false, nil
		}
	}
	return more, nil
}

// Tail returns the seq of the newest durable message on a delivery topic, 0 for
// none. A message that was trimmed still counts.
func (r *reader) Tail(topic string) (uint64, error) {
	if err := r.life.beginCall(); err != nil {
		return 0, err
	}
	defer r.life.endCall()
	seq, err := r.db.readTail(topic, r.bounds.durable.Load())
	if err != nil {
		return 0, fmt.Errorf("tail of topic: %w", err)
	}
	return seq, nil
}

// readTail returns the newest message of a topic up to and including upto, which
// must be the last of a batch.
func (d *database) readTail(topic string, upto uint64) (seq uint64, err error) {
	prefix := appendString([]byte(prefixPosting), topic)
	it, err := d.newIter(prefix, appendSeq(slices.Clip(prefix), upto+1))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if it.Last() {
		last, err := keySeq(it.Key())
		if err != nil {
			return 0, err
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return 0, err
		}
		err = decodePosting(last, value, func(s uint64) bool { seq = s; return true })
		if err != nil {
			return 0, fmt.Errorf("%w: posting of block %d: %w", ErrCorrupt, last, err)
		}
		return seq, nil
	}
	if err := it.Error(); err != nil {
		return 0, err
	}
	seq, _, err = d.getUint(string(endKey(nil, topic)))
	return seq, err
}
