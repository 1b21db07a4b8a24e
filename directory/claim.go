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

// claimPatience is how long a connection waits for its subject's account to be made.
// It is not refused when that takes longer: chat does not wait for PostgreSQL.
const claimPatience = time.Second

// claims are those who came with a token and have no account. They get one before
// they are let in: an id that has spoken must be nobody's to register, or whoever
// registers it would be them. What cannot be written is kept and tried again.
type claims struct {
	wake chan struct{} // has room for one: there is something new in open

	mu   sync.Mutex // guards what follows
	open map[string]*claim
}

// claim is an account to be made.
type claim struct {
	kind  string
	tried chan struct{} // closed after the first attempt
}

func newClaims() *claims {
	return &claims{wake: make(chan struct{}, 1), open: map[string]*claim{}}
}

// add notes a claim and returns it, or nil if there are most already.
func (c *claims) add(id, kind string, most int) *claim {
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.open[id]
	if one == nil {
		if len(c.open) >= most {
			return nil
		}
		one = &claim{kind: kind, tried: make(chan struct{})}
		c.open[id] = one
		c.signal()
	}
	return one
}

func (c *claims) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// list returns the ids and kinds of all that are open, in the order of the ids, so
// that two brokers cannot wait for each other's rows.
func (c *claims) list() (ids, kinds []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids = slices.Sorted(maps.Keys(c.open))
	for _, id := range ids {
		kinds = append(kinds, c.open[id].kind)
	}
	return ids, kinds
}

// tried lets go of who waits for the ids; made says that the accounts are there.
func (c *claims) tried(ids []string, made bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		one := c.open[id]
		if one == nil {
			continue
		}
		select {
		case <-one.tried: // by an earlier attempt
		default:
			close(one.tried)
		}
		if made {
			delete(c.open, id)
		}
	}
}

// claim has an account made for the token's subject and waits a moment for it.
func (d *Directory) claim(ctx context.Context, id *authhook.Identity) {
	one := d.claims.add(id.Subject, people.KindOf(id.Role), d.cfg.MaxSubjects)
	if one == nil || d.away.Load() {
		return
	}
	patience := time.NewTimer(claimPatience)
	defer patience.Stop()
	select {
	case <-one.tried:
	case <-patience.C:
	case <-ctx.Done():
	}
}

// serveClaims makes the accounts that are claimed until ctx ends.
func (d *Directory) serveClaims(ctx context.Context) {
	again := time.NewTicker(seenEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.claims.wake:
		case <-again.C:
		}
		d.makeAccounts(ctx)
	}
}

// makeAccounts makes all accounts that are claimed. While PostgreSQL is away they
// wait: nobody can register anything either.
func (d *Directory) makeAccounts(ctx context.Context) {
	ids, kinds := d.claims.list()
	const chunk = 1000
	for from := 0; from < len(ids); from += chunk {
		to := min(from+chunk, len(ids))
		if d.away.Load() {
			d.claims.tried(ids[from:], false)
			return
		}
		writing, cancel := context.WithTimeout(ctx, feedTimeout)
		_, err := d.pool.Exec(writing, schema.DirectoryClaim, ids[from:to], kinds[from:to])
		cancel()
		d.claims.tried(ids[from:to], err == nil)
		if err != nil {
			d.log.WarnContext(ctx, "cannot make accounts for whom tokens speak of; it is tried again. Until then their ids could be registered",
				"people", len(ids)-from, "error", err)
			d.claims.tried(ids[to:], false)
			return
		}
		d.subjects.forget(ids[from:to]...) // they are known now
	}
}
