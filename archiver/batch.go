package archiver

import (
	"context"
	"fmt"
	"time"

	"mynah/chat"
)

// message is the part of a mqtt.Message that the archiver needs.
type message interface {
	Topic() string
	Payload() []byte
	Ack()
}

// item is a message of a batch with the row that it became.
type item struct {
	message  message
	seq      uint64 // 0 if it is not known
	ts       int64  // milliseconds since 1970, 0 if it is not known
	from, to int    // its row in the batch's buf; empty if there is nothing to store
	refused  error  // why it cannot be a row: it is a dead letter
}

// batch is a set of messages that are committed and acknowledged together.
type batch struct {
	items []item
	buf   []byte // the rows, in COPY's binary form
	last  uint64 // the greatest seq so far
}

// newBatch returns an empty batch. It reuses the memory of a finished one if there
// is one.
func (r *run) newBatch() *batch {
	select {
	case b := <-r.freeBatches:
		return b
	default:
		return new(batch)
	}
}

// recycle keeps the memory of a finished batch for newBatch.
func (r *run) recycle(b *batch) {
	clear(b.items) // let go of the messages
	*b = batch{items: b.items[:0], buf: b.buf[:0]}
	select {
	case r.freeBatches <- b:
	default:
	}
}

// add renders a message as a row. Only what is published to a person or a group is
// stored; anything else that a subscription to everything brings is acknowledged.
func (b *batch) add(m message) {
	it := item{message: m, from: len(b.buf), to: len(b.buf)}
	defer func() { b.items = append(b.items, it) }()
	if kind := chat.ParseTopic(m.Topic()).Kind; kind != chat.KindUser && kind != chat.KindGroup {
		return
	}
	e, err := chat.ParseEnvelope(m.Payload())
	if err != nil {
		it.refused = err
		return
	}
	it.seq, it.ts = e.Seq, e.TS
	if e.Type == chat.TypeGap && e.Seq == 0 {
		// Whoever sees this dead letter learns what is missing.
		it.refused = fmt.Errorf("the broker trimmed its log before these messages were archived: %s", e.Object)
		return
	}
	if b.has(e.Seq) {
		return // delivered again on a new connection; the first one's row will do
	}
	b.buf, it.refused = appendRow(b.buf, &e)
	it.to = len(b.buf)
}

// has reports whether a row with the seq is in the batch already.
func (b *batch) has(seq uint64) bool {
	if seq > b.last {
		b.last = seq
		return false
	}
	for i := range b.items {
		if b.items[i].seq == seq && b.items[i].to > b.items[i].from {
			return true
		}
	}
	return false
}

// full reports whether the batch takes no more messages.
func (b *batch) full(size int) bool { return len(b.items) >= size || len(b.buf) >= batchBytes }

// makeBatches makes batches from the queue, until ctx ends or, when draining is
// closed, until the queue is empty. A batch goes to the committer when the committer
// is free and the batch is full or its first message has waited for Linger.
func (r *run) makeBatches(ctx context.Context, out chan<- *batch) {
	linger := time.NewTimer(0)
	defer linger.Stop()
	b, lingered := r.newBatch(), false
	for {
		queue, to := r.queue, out
		switch {
		case b.full(r.cfg.BatchSize):
			queue = nil
		case len(b.items) == 0 || !lingered:
			to = nil
		}
		select {
		case m := <-queue:
			r.take(b, m)
			if len(b.items) == 1 {
				lingered = false
				linger.Reset(r.cfg.Linger)
			}
		case <-linger.C:
			lingered = true
		case to <- b:
			b = r.newBatch()
		case <-ctx.Done():
			return
		case <-r.draining:
			r.drainQueue(ctx, b, out)
			return
		}
	}
}

// drainQueue passes the received messages on, then returns.
func (r *run) drainQueue(ctx context.Context, b *batch, out chan<- *batch) {
	for {
		more := true
		for more && !b.full(r.cfg.BatchSize) {
			select {
			case m := <-r.queue:
				r.take(b, m)
			default:
				more = false
			}
		}
		if len(b.items) == 0 {
			return
		}
		select {
		case out <- b:
			b = r.newBatch()
		case <-ctx.Done():
			return
		}
	}
}

func (r *run) take(b *batch, m message) {
	b.add(m)
	if len(b.items) == 1 {
		r.stats.batchBegun(b.items[0].ts)
	}
}
