package msglog

import (
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// Propose puts an entry behind all that were proposed before. See Log. On one machine
// that is its place in the order: what becomes of it is decided at once, and while it is
// written, the next can be proposed.
func (l *Pebble) Propose(e *Entry) (*Proposal, error) {
	if err := l.use(); err != nil {
		return nil, err
	}
	defer l.done()
	if err := l.failure.get(); err != nil {
		return nil, err
	}
	l.applying.Lock()
	defer l.applying.Unlock()
	noRoom := l.admit(e)
	if noRoom != nil && !e.Full {
		return nil, noRoom
	}
	p, err := l.applier.apply(l.applier.position+1, e, false)
	if err != nil {
		return nil, fmt.Errorf("append entry: %w", err)
	}
	if noRoom != nil && len(e.Records) > 0 && p.batch == nil &&
		!slices.ContainsFunc(p.committed.Outcomes, func(o Outcome) bool { return o != NoRoom }) {
		return nil, noRoom
	}
	p.own.init(e)
	p.proposal = &p.own
	p.committed.Mine = true
	l.commits <- p // in the order of applying
	return p.proposal, nil
}

// Admit says whether this machine has room for an entry that is to be proposed to an
// order that comes from elsewhere, and fills in what of the machine the decision needs
// to know. An error is ErrFull: nothing is to be proposed.
func (l *Pebble) Admit(e *Entry) error {
	l.applying.Lock()
	defer l.applying.Unlock()
	if err := l.admit(e); err != nil && !e.Full {
		return err
	}
	return nil
}

// admit returns ErrFull if there is no room for new messages. The entry may be
// proposed all the same if that has set Full: some may have been stored before.
func (l *Pebble) admit(e *Entry) error {
	if e.Origin == "" {
		e.Origin = l.opts.Origin
	}
	if len(e.Records) == 0 {
		return nil
	}
	err := l.disk.admit(entrySize(e))
	if err != nil && slices.ContainsFunc(e.Records, func(r *Record) bool { return r.Dup || r.Mid != "" }) {
		e.Full = true
	}
	return err
}

// Apply applies an entry at its position in an order that comes from elsewhere. It
// returns as soon as that is under way. Entries have to come in the order of their
// positions, which may have gaps; after the log has been opened, from behind Position
// on. One that was applied before is passed over. p is nil unless the entry was proposed
// here; then it is the one that Committed has.
func (l *Pebble) Apply(position uint64, e *Entry, p *Proposal) error {
	if err := l.use(); err != nil {
		return err
	}
	defer l.done()
	if err := l.failure.get(); err != nil {
		return err
	}
	l.applying.Lock()
	defer l.applying.Unlock()
	if position <= l.applier.position {
		return nil
	}
	if p != nil {
		e = p.entry
	}
	pend, err := l.applier.apply(position, e, true)
	if err != nil {
		return fmt.Errorf("apply entry %d: %w", position, err)
	}
	if pend.proposal = p; pend.committed != nil {
		pend.committed.Mine = p != nil
	}
	l.commits <- pend
	return nil
}

// Position returns where in the order the log is: the position of the newest entry that is
// durable, and the chain hash there, which is the same on every machine.
func (l *Pebble) Position() (position, chain uint64) {
	l.placeMu.Lock()
	defer l.placeMu.Unlock()
	return l.place.position, l.place.chain
}

// pending is an entry on its way to the disk.
type pending struct {
	committed *Committed    // nil if it was sent again and has no effect
	proposal  *Proposal     // nil if it was not proposed here
	batch     *pebble.Batch // nil if there is nothing to write

	decision Committed // what committed leads to: one allocation for both
	own      Proposal  // what proposal leads to, if it was made here

	last    uint64  // newest message once it is durable
	then    decided // what the entries have led to then
	changes uint64  // changes to the state store then, 0 if it makes none
}

// commitLoop waits for entries to become durable, in order, makes them visible, and
// tells whoever waits for them or follows.
func (l *Pebble) commitLoop() {
	defer close(l.committed)
	for p := range l.commits {
		err := l.commit(p)
		c := p.committed
		if c == nil {
			continue
		}
		if c.Err = err; p.proposal != nil {
			p.proposal.settle(c)
		}
		if err == nil || c.Mine {
			l.feeds.send(c)
		}
	}
	l.feeds.end()
}

func (l *Pebble) commit(p *pending) error {
	// After a failure nothing is known to be durable, whatever a later sync says.
	if err := l.failure.get(); err != nil {
		return err
	}
	if p.batch == nil {
		return nil
	}
	if !l.opts.NoSync {
		if err := p.batch.SyncWait(); err != nil {
			return l.fail(fmt.Errorf("sync: %w", err))
		}
		// In this order: whoever is told of a message finds it in HEAD.
		if err := l.head.raise(head{seq: p.last, store: p.changes}); err != nil {
			return l.fail(err)
		}
	}
	l.durable.Store(p.last)
	l.placeMu.Lock()
	l.place = p.then
	l.placeMu.Unlock()
	if p.then.first > l.first.Load() {
		l.first.Store(p.then.first)
		select {
		case l.trimmable <- struct{}{}:
		default:
		}
	}
	// Its memory is used again by the next batches. It was applied, so there is
	// nothing that Close could report.
	_ = p.batch.Close()
	p.batch = nil
	return nil
}
