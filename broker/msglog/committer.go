package msglog

import (
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// committer waits for entries to become durable and publishes them.
type committer struct {
	db      *database
	bounds  *bounds
	feeds   *feeds
	remover *remover

	queue chan *pending
	done  chan struct{} // closed when run has ended

	mu      sync.Mutex // guards decided
	decided decided    // what the entries that are durable have led to
}

func newCommitter(r *reader, f *feeds, rm *remover) *committer {
	return &committer{
		db: r.db, bounds: &r.bounds, feeds: f, remover: rm,
		queue: make(chan *pending, 256), done: make(chan struct{}),
	}
}

// close waits until all entries in the queue are committed. Nothing may be put into the
// queue any more.
func (c *committer) close() {
	close(c.queue)
	<-c.done
}

// pending is an entry on its way to the disk.
type pending struct {
	committed *Committed    // nil if it was sent again and has no effect
	proposal  *Proposal     // nil if it was not proposed here
	batch     *pebble.Batch // nil if there is nothing to write

	ownCommitted Committed // what committed leads to: one allocation for both
	ownProposal  Proposal  // what proposal leads to, if it was made here

	last    uint64  // newest message once it is durable
	decided decided // what the entries have led to then
	changes uint64  // changes to the state store then, 0 if it makes none
}

// run waits for entries to become durable, in order, and makes them visible to readers.
// Then it reports them to their proposers and to the followers.
func (c *committer) run() {
	defer close(c.done)
	for p := range c.queue {
		err := c.commit(p)
		committed := p.committed
		if committed == nil {
			continue
		}
		if committed.Err = err; p.proposal != nil {
			p.proposal.settle(committed)
		}
		if err == nil || committed.Mine {
			c.feeds.send(committed)
		}
	}
	c.feeds.end()
}

func (c *committer) commit(p *pending) error {
	// After a failure nothing is known to be durable, whatever a later sync says.
	if err := c.db.failure.get(); err != nil {
		return err
	}
	if p.batch == nil {
		return nil
	}
	if !c.db.opts.NoSync {
		if err := p.batch.SyncWait(); err != nil {
			return c.db.fail(fmt.Errorf("sync: %w", err))
		}
		// HEAD is written before the commit is reported.
		if err := c.db.head.advance(head{seq: p.last, changes: p.changes}); err != nil {
			return c.db.fail(err)
		}
	}
	c.bounds.durable.Store(p.last)
	c.mu.Lock()
	c.decided = p.decided
	c.mu.Unlock()
	if p.decided.first > c.bounds.first.Load() {
		c.bounds.first.Store(p.decided.first)
		c.remover.wake()
	}
	// Close gives the memory to the next batches. The batch was applied, so Close has
	// no error to report.
	_ = p.batch.Close()
	p.batch = nil
	return nil
}
