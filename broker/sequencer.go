package broker

import (
	"time"

	"mynah/broker/msglog"
)

// batch is what the sequencer has appended and the committer waits for.
type batch struct {
	items   []publication
	recs    []*msglog.Record
	pending msglog.Pending
	err     error
}

// pipelined is how many batches may be on their way to the disk beside the one that is
// being put together. More would make batches smaller and fsyncs more.
const pipelined = 1

// sequence gives every message its place in the order: it appends all that waits as one
// batch, and while that is being synced, puts together the next.
func (b *Broker) sequence() {
	defer close(b.batches)
	for {
		var spare []publication
		select {
		case spare = <-b.spares:
		default:
		}
		items := b.queue.take(spare)
		if items == nil {
			return
		}
		t := batch{items: items}
		// One clock reading for the batch, and never backwards, so that ts does
		// not contradict seq.
		b.lastTS = max(b.lastTS, time.Now().UnixMilli())
		for _, p := range items {
			if p.rec != nil && p.refusal == nil {
				p.rec.TS = b.lastTS
				t.recs = append(t.recs, p.rec)
			}
		}
		if len(t.recs) > 0 {
			t.pending, t.err = b.log.Append(t.recs)
		}
		b.batches <- t
	}
}
