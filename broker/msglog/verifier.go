package msglog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// Verification is the result of Verify.
type Verification struct {
	Messages uint64 // whose checksums were right
	Postings uint64 // places on topics that were right
	Mids     uint64 // mids that led to their messages
	Packets  uint64 // packet ids that led to their messages
	// Problems says what is wrong, at most MaxProblems of them; Found counts all.
	Problems []string
	Found    int
}

// MaxProblems bounds Verification.Problems.
const MaxProblems = 100

// Verify reads all of the log and checks all checksums, that no message is
// missing, that prev is unbroken, and that topics, mids and packet ids lead where
// they should. It returns an error only if it could not go on.
func (i *Inspector) Verify(ctx context.Context) (*Verification, error) {
	v := &verifier{log: i.log, tails: make(map[string]uint64), first: i.info.First, last: i.info.Last}
	if i.info.Last < i.info.Durable {
		v.addProblem("the log ends at %d, but was durable up to %d", i.info.Last, i.info.Durable)
	}
	var err error
	if v.lookup, err = i.log.db.pebble.NewIter(nil); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	// Its errors are reported as problems; Close would return them again.
	defer func() { _ = v.lookup.Close() }()
	if err := v.checkBlocks(ctx); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	if err := v.countPostings(ctx); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	return &v.Verification, nil
}

// verifier holds the state of one Verify.
type verifier struct {
	Verification
	log         *reader
	first, last uint64
	tails       map[string]uint64 // newest message seen on each topic
	counted     uint64            // places on topics that the postings name
	lookup      *pebble.Iterator
}

func (v *verifier) addProblem(format string, args ...any) {
	v.Found++
	if len(v.Problems) < MaxProblems {
		v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
	}
}

// checkBlocks checks every block and what points to it.
func (v *verifier) checkBlocks(ctx context.Context) error {
	next := v.first
	for next <= v.last {
		after, err := v.checkBlocksFrom(ctx, next)
		if err != nil {
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) {
				return err
			}
			v.addProblem("%v", err)
			after = corrupt.Last
		}
		next = after + 1
	}
	return nil
}

// checkBlocksFrom checks blocks until one cannot be read, and returns the last message
// it has seen.
func (v *verifier) checkBlocksFrom(ctx context.Context, next uint64) (after uint64, err error) {
	it, err := v.log.db.newBlockIter(next - 1)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		last, err := keySeq(it.Key())
		if err != nil {
			return 0, err
		}
		value, err := it.ValueAndErr()
		if err != nil {
			break // it.Error says the same
		}
		b, err := parseBlock(last, value)
		if err != nil {
			return 0, &CorruptError{First: next, Last: last, Err: err}
		}
		if b.first > next {
			v.addProblem("messages %d to %d are missing", next, b.first-1)
		}
		if err := v.checkBlock(&b); err != nil {
			return 0, err
		}
		next = last + 1
	}
	if it.Error() != nil {
		return 0, v.log.damage.findAndRecord(it, next-1, v.last)
	}
	if next <= v.last {
		v.addProblem("messages %d to %d are missing", next, v.last)
	}
	return v.last, nil
}

// checkBlock checks a block's messages and what points to them.
func (v *verifier) checkBlock(b *block) error {
	topics := make(map[string][]uint64)
	devices := make(map[device][]packetEntry)
	for seq := b.first; seq <= b.last; seq++ {
		var r Record
		if err := b.decode(&r, seq); err != nil {
			v.addProblem("%v", err)
			continue
		}
		topics[r.To] = append(topics[r.To], seq)
		if own := ownTopic(&r); own != "" {
			topics[own] = append(topics[own], seq)
			v.checkPrev(own, &r, r.PrevSender)
		}
		v.checkPrev(r.To, &r, r.Prev)
		if isTracked(&r) {
			d := device{r.From, r.Client}
			devices[d] = append(devices[d], packetEntry{r.PacketID, use{r.Seq, r.Digest}})
		}
		if seq < v.first {
			continue // trimmed, with its block still there
		}
		v.Messages++
		if r.Mid != "" {
			if err := v.checkMid(&r); err != nil {
				return err
			}
		}
	}
	return v.checkPointers(b.last, topics, devices)
}

// checkPrev checks that a message names the one before it on a topic.
func (v *verifier) checkPrev(topic string, r *Record, prev uint64) {
	want, seen := v.tails[topic]
	v.tails[topic] = r.Seq
	if seen && prev != want {
		v.addProblem("message %d on %s has prev %d, but %d is before it", r.Seq, topic, prev, want)
	} else if !seen && prev >= v.first {
		v.addProblem("message %d on %s has prev %d, which is not there", r.Seq, topic, prev)
	}
}

func (v *verifier) checkMid(r *Record) error {
	value, ok, err := v.get(midKey(nil, r.From, r.Mid))
	if err != nil {
		return err
	}
	if u, err := decodeMid(value); !ok || err != nil || u != (use{r.Seq, r.Digest}) {
		v.addProblem("mid %q of %s does not lead to message %d", r.Mid, r.From, r.Seq)
		return nil
	}
	v.Mids++
	return nil
}

// checkPointers checks the postings and packet ids of a block.
func (v *verifier) checkPointers(last uint64, topics map[string][]uint64, devices map[device][]packetEntry) error {
	for topic, want := range topics {
		value, ok, err := v.get(postingKey(nil, topic, last))
		if err != nil {
			return err
		}
		var got []uint64
		if ok {
			err = decodePosting(last, value, func(s uint64) bool { got = append(got, s); return true })
		}
		if err != nil || !slices.Equal(got, want) {
			v.addProblem("topic %s does not lead to its %d messages up to %d", topic, len(want), last)
			continue
		}
		v.Postings += uint64(len(want))
	}
	for d, want := range devices {
		value, ok, err := v.get(deviceKey(nil, d.from, d.client, last))
		if err != nil {
			return err
		}
		got, err := decodeUses(last, value)
		if !ok || err != nil || !slices.Equal(got, want) {
			v.addProblem("device %q of %s does not lead to its %d messages up to %d", d.client, d.from, len(want), last)
			continue
		}
		v.Packets += uint64(len(want))
	}
	return nil
}

// get returns a value, which is good until the next call.
func (v *verifier) get(key []byte) (value []byte, ok bool, err error) {
	if !v.lookup.SeekGE(key) || !bytes.Equal(v.lookup.Key(), key) {
		err = v.lookup.Error()
	} else if value, err = v.lookup.ValueAndErr(); err == nil {
		return value, true, nil
	}
	if err != nil && !pebble.IsCorruptionError(err) {
		return nil, false, err
	}
	return nil, false, nil // if it is damaged, it is reported as leading nowhere
}

// countPostings finds postings that lead to no message.
func (v *verifier) countPostings(ctx context.Context) (err error) {
	it, err := v.log.db.newPrefixIter(prefixPosting)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		last, err := keySeq(it.Key())
		if err != nil || last < v.first {
			continue // left over from trimming what could not be read; readers pass over it
		}
		value, err := it.ValueAndErr()
		if err != nil {
			break // it.Error says the same
		}
		if err := decodePosting(last, value, func(uint64) bool { v.counted++; return true }); err != nil {
			v.addProblem("posting of block %d: %v", last, err)
		}
	}
	if err := it.Error(); err != nil {
		v.addProblem("topics cannot be read: %v", err)
		return nil
	}
	if v.counted > v.Postings {
		v.addProblem("%d places on topics lead nowhere", v.counted-v.Postings)
	}
	return nil
}
