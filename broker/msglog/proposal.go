package msglog

import (
	"fmt"
	"slices"
)

// Propose adds an entry behind all that were proposed before. See Log. On one machine
// that is its place in the order, so its outcomes are decided at once. The next entry can
// be proposed while this one is written.
func (l *Pebble) Propose(e *Entry) (*Proposal, error) {
	if err := l.life.beginCall(); err != nil {
		return nil, err
	}
	defer l.life.endCall()
	if err := l.db.failure.get(); err != nil {
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
	p.ownProposal.init(e)
	p.proposal = &p.ownProposal
	p.committed.Mine = true
	l.committer.queue <- p // in the order of applying
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
		e.Origin = l.db.opts.Origin
	}
	if len(e.Records) == 0 {
		return nil
	}
	err := l.db.disk.checkRoom(entrySize(e))
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
	if err := l.life.beginCall(); err != nil {
		return err
	}
	defer l.life.endCall()
	if err := l.db.failure.get(); err != nil {
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
	l.committer.queue <- pend
	return nil
}

// Position returns where in the order the log is: the position of the newest entry that is
// durable, and the chain hash there, which is the same on every machine.
func (l *Pebble) Position() (position, chain uint64) {
	l.committer.mu.Lock()
	defer l.committer.mu.Unlock()
	return l.committer.decided.position, l.committer.decided.chain
}
