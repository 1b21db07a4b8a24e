package directory

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"mynah/authhook"
	"mynah/people"
	"mynah/schema"
)

// accountTimeout is how long a connection waits for its subject's account to be made.
// It is not refused when that takes longer: chat does not wait for PostgreSQL.
const accountTimeout = time.Second

// pendingAccounts are those who came with a token and have no account. They get one before
// they are let in: an id that has spoken must be nobody's to register, or whoever
// registers it would be them. What cannot be written is kept and tried again.
type pendingAccounts struct {
	wake chan struct{} // has room for one: there is something new in byID

	mu   sync.Mutex // guards what follows
	byID map[string]*pendingAccount
}

// pendingAccount is an account to be made.
type pendingAccount struct {
	kind  string
	tried chan struct{} // closed after the first attempt
}

func newPendingAccounts() *pendingAccounts {
	return &pendingAccounts{wake: make(chan struct{}, 1), byID: map[string]*pendingAccount{}}
}

// add adds an account to be made and returns it, or nil if there are limit already.
func (p *pendingAccounts) add(id, kind string, limit int) *pendingAccount {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := p.byID[id]
	if one == nil {
		if len(p.byID) >= limit {
			return nil
		}
		one = &pendingAccount{kind: kind, tried: make(chan struct{})}
		p.byID[id] = one
		p.signal()
	}
	return one
}

func (p *pendingAccounts) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// list returns the ids and kinds of all, in the order of the ids, so
// that two brokers cannot wait for each other's rows.
func (p *pendingAccounts) list() (ids, kinds []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids = slices.Sorted(maps.Keys(p.byID))
	for _, id := range ids {
		kinds = append(kinds, p.byID[id].kind)
	}
	return ids, kinds
}

// markTried wakes who waits for the ids; made says that the accounts are there.
func (p *pendingAccounts) markTried(ids []string, made bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		one := p.byID[id]
		if one == nil {
			continue
		}
		select {
		case <-one.tried: // by an earlier attempt
		default:
			close(one.tried)
		}
		if made {
			delete(p.byID, id)
		}
	}
}

// ensureAccount has an account made for the token's subject and waits a moment for it.
func (d *Directory) ensureAccount(ctx context.Context, id *authhook.Identity) {
	one := d.pendingAccounts.add(id.Subject, people.KindOf(id.Role), d.cfg.MaxSubjects)
	if one == nil || d.away.Load() {
		return
	}
	timeout := time.NewTimer(accountTimeout)
	defer timeout.Stop()
	select {
	case <-one.tried:
	case <-timeout.C:
	case <-ctx.Done():
	}
}

// makePendingAccounts makes accounts until ctx ends.
func (d *Directory) makePendingAccounts(ctx context.Context) {
	again := time.NewTicker(seenEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.pendingAccounts.wake:
		case <-again.C:
		}
		d.makeAccounts(ctx)
	}
}

// makeAccounts makes all pending accounts. While PostgreSQL is away they
// wait: nobody can register anything either.
func (d *Directory) makeAccounts(ctx context.Context) {
	ids, kinds := d.pendingAccounts.list()
	const chunk = 1000
	for from := 0; from < len(ids); from += chunk {
		to := min(from+chunk, len(ids))
		if d.away.Load() {
			d.pendingAccounts.markTried(ids[from:], false)
			return
		}
		writing, cancel := context.WithTimeout(ctx, feedTimeout)
		_, err := d.pool.Exec(writing, schema.DirectoryClaim, ids[from:to], kinds[from:to])
		cancel()
		d.pendingAccounts.markTried(ids[from:to], err == nil)
		if err != nil {
			d.log.WarnContext(ctx, "cannot make accounts for whom tokens speak of; it is tried again. Until then their ids could be registered",
				"people", len(ids)-from, "error", err)
			d.pendingAccounts.markTried(ids[to:], false)
			return
		}
		d.subjects.forget(ids[from:to]...) // they are known now
	}
}
