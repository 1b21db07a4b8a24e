package broker

import (
	"log/slog"
	"time"

	"mynah/broker/delivery"
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

// pipeline brings publications from the queue to the log and back as acknowledgements: one
// goroutine proposes batches, another one follows what is committed.
type pipeline struct {
	queue    *queue
	log      msglog.Log
	feed     *msglog.Feed // of committed entries
	engine   *delivery.Engine
	devices  *devices
	refusals *refusals
	metrics  *metrics
	logger   *slog.Logger
	fullDisk logLimiter

	batches     chan batch
	freeBatches chan []publication // memory for batches to come
}

// newPipeline returns parts with what the two goroutines share.
func newPipeline(parts *pipeline) *pipeline {
	parts.batches = make(chan batch, pipelined)
	parts.freeBatches = make(chan []publication, pipelined+2)
	return parts
}

// sequence proposes all that waits as one entry of the log, and while that is being made
// durable, puts together the next.
func (pipe *pipeline) sequence() {
	defer close(pipe.batches)
	for {
		var free []publication
		select {
		case free = <-pipe.freeBatches:
		default:
		}
		items := pipe.queue.take(free)
		if items == nil {
			return
		}
		pipe.batches <- pipe.propose(items)
	}
}

// propose proposes what is to be stored of some publications.
func (pipe *pipeline) propose(items []publication) batch {
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
	if _, t.err = pipe.log.Propose(e); t.err == nil {
		t.entry = e
	}
	return t
}
