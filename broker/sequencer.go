package broker

import (
	"time"

	"mynah/broker/msglog"
)

// batch is what the sequencer has taken from the queue at once.
type batch struct {
	items []publication
	entry *msglog.Entry // what was proposed of it, nil if nothing was
	err   error         // why not, if there was something to propose
}

// pipelined is how many batches may be on their way to the disk beside the one that is
// being put together. More would make batches smaller and fsyncs more.
const pipelined = 1

// sequence proposes all that waits as one entry of the log, and while that is being made
// durable, puts together the next.
func (b *Broker) sequence() {
	defer close(b.batches)
	for {
		var free []publication
		select {
		case free = <-b.freeBatches:
		default:
		}
		items := b.queue.take(free)
		if items == nil {
			return
		}
		b.batches <- b.propose(items)
	}
}

// propose proposes what is to be stored of some publications.
func (b *Broker) propose(items []publication) batch {
	t := batch{items: items}
	var recs []*msglog.Record
	for _, p := range items {
		if p.rec != nil && p.refusal == nil {
			recs = append(recs, p.rec)
		}
	}
	if len(recs) == 0 {
		return t
	}
	e := &msglog.Entry{Time: time.Now().UnixMilli(), Records: recs}
	if _, t.err = b.log.Propose(e); t.err == nil {
		t.entry = e
	}
	return t
}
