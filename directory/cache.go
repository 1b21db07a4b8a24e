package directory

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mynah/schema/pgtx"
)

const (
	// loadWorkers is how many batches a cache loads at once.
	loadWorkers = 2
	// maxBatch is how many ids are loaded at once.
	maxBatch = 500
	// loadTimeout bounds loading; awayTimeout while PostgreSQL is known to be
	// away: it may just have come back.
	loadTimeout = time.Second
	awayTimeout = 250 * time.Millisecond
)

// cache remembers what was loaded under an id. Concurrent questions for one id
// are one load, and those for different ids that come while another load is under
// way are loaded together.
type cache[R any] struct {
	max  int
	away *atomic.Bool
	load func(ctx context.Context, ids []string) (map[string]*R, error)
	wake chan struct{} // has room for one: there is something in queue

	mu         sync.RWMutex // guards what follows
	entries    map[string]*entry[R]
	ids        []string // the keys of entries in no order, to pick at random from
	pending    map[string]*pendingLoad[R]
	queue      []*pendingLoad[R]
	generation uint64 // entries of an older one are loaded again when they are asked for, if that is possible
	dirty      bool   // something was loaded or forgotten since savedEntries
}

type entry[R any] struct {
	value      *R
	used       atomic.Int64 // Unix seconds
	generation uint64
	place      int // in ids
}

// pendingLoad is a load that somebody waits for.
type pendingLoad[R any] struct {
	id    string
	done  chan struct{}
	value *R    // valid after done
	err   error // valid after done
}

func newCache[R any](size int, away *atomic.Bool, load func(context.Context, []string) (map[string]*R, error)) *cache[R] {
	return &cache[R]{
		max: size, away: away, load: load, wake: make(chan struct{}, 1), generation: 1,
		entries: map[string]*entry[R]{}, pending: map[string]*pendingLoad[R]{},
	}
}

// get returns what is known under the id, loading it if it must. The error is
// refusedUnknown.
func (c *cache[R]) get(ctx context.Context, id string) (*R, error) {
	c.mu.RLock()
	e := c.entries[id]
	fresh := e != nil && e.generation == c.generation
	c.mu.RUnlock()
	if e != nil {
		if now := time.Now().Unix(); e.used.Load() != now {
			e.used.Store(now)
		}
		if fresh || c.away.Load() {
			return e.value, nil
		}
	}
	value, err := c.fetch(ctx, id)
	if err != nil && e != nil {
		return e.value, nil // known rights go on
	}
	return value, err
}

// fetch returns the value of the id from a load, which it waits for.
func (c *cache[R]) fetch(ctx context.Context, id string) (*R, error) {
	f := c.startLoad(id)
	limit := time.NewTimer(2 * loadTimeout) // one that is under way, and ours
	defer limit.Stop()
	select {
	case <-f.done:
		if f.err != nil {
			return nil, refusedUnknown
		}
		return f.value, nil
	case <-ctx.Done():
	case <-limit.C:
	}
	return nil, refusedUnknown
}

// startLoad returns the load of the id that is pending, starting one if there is none.
func (c *cache[R]) startLoad(id string) *pendingLoad[R] {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.pending[id]; f != nil {
		return f
	}
	f := &pendingLoad[R]{id: id, done: make(chan struct{})}
	c.pending[id] = f
	c.queue = append(c.queue, f)
	c.signal()
	return f
}

func (c *cache[R]) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// forget drops what is known under the ids. What is being loaded is not kept.
func (c *cache[R]) forget(ids ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		c.drop(id)
		if c.pending[id] != nil {
			delete(c.pending, id) // who waits gets it; who asks from now on gets a new one
		}
	}
}

func (c *cache[R]) drop(id string) {
	e := c.entries[id]
	if e == nil {
		return
	}
	last := len(c.ids) - 1
	moved := c.ids[last]
	c.ids[e.place], c.entries[moved].place = moved, e.place
	c.ids = c.ids[:last]
	delete(c.entries, id)
	c.dirty = true
}

// knows returns those of the ids that are known.
func (c *cache[R]) knows(ids []string) []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return c.entries[id] == nil })
}

// markStale has everything loaded again when it is asked for. It stays known for the case
// that PostgreSQL does not answer.
func (c *cache[R]) markStale() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation++
	clear(c.pending)
}

// clear forgets everything.
func (c *cache[R]) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation++
	clear(c.pending)
	clear(c.entries)
	c.ids, c.dirty = nil, true
}

// recent returns the ids that were used last, at most n.
func (c *cache[R]) recent(n int) []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	ids := slices.Clone(c.ids)
	slices.SortFunc(ids, func(a, b string) int {
		return cmp.Compare(c.entries[b].used.Load(), c.entries[a].used.Load())
	})
	return ids[:min(n, len(ids))]
}

// preload loads the ids into the table, many at once.
func (c *cache[R]) preload(ctx context.Context, ids []string) {
	loads := make([]*pendingLoad[R], len(ids))
	for i, id := range ids {
		loads[i] = c.startLoad(id)
	}
	for _, f := range loads {
		select {
		case <-f.done:
		case <-ctx.Done():
			return
		}
	}
}

// runLoads loads what is asked for until ctx ends.
func (c *cache[R]) runLoads(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		loads := c.takeQueued()
		if len(loads) == 0 {
			continue
		}
		ids := make([]string, len(loads))
		for i, f := range loads {
			ids[i] = f.id
		}
		values, err := c.loadWithRetry(ctx, ids)
		c.finishLoads(loads, values, err)
	}
}

// takeQueued takes what is asked for from the queue. An id may be in it twice, if a
// change came in between.
func (c *cache[R]) takeQueued() []*pendingLoad[R] {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(c.queue), maxBatch)
	loads := c.queue[:n:n]
	if c.queue = c.queue[n:]; len(c.queue) > 0 {
		c.signal()
	} else {
		c.queue = nil
	}
	return loads
}

// loadWithRetry loads the ids. A connection of the pool that had died is found out by
// using it, so a quick failure is tried once more.
func (c *cache[R]) loadWithRetry(ctx context.Context, ids []string) (values map[string]*R, err error) {
	limit := loadTimeout
	if c.away.Load() {
		limit = awayTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for range 2 {
		if values, err = c.load(ctx, ids); err == nil || !pgtx.Unreachable(err) || ctx.Err() != nil {
			break
		}
	}
	return values, err
}

// finishLoads gives those who wait what was loaded, and remembers it unless a change came
// while it was on its way.
func (c *cache[R]) finishLoads(loads []*pendingLoad[R], values map[string]*R, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now().Unix()
	for _, f := range loads {
		f.value, f.err = values[f.id], err
		if c.pending[f.id] == f {
			delete(c.pending, f.id)
			if err == nil {
				c.remember(f.id, values[f.id], now, c.generation)
			}
		}
		close(f.done)
	}
}

// remember stores a loaded value; c.mu is held.
func (c *cache[R]) remember(id string, value *R, used int64, era uint64) {
	e := c.entries[id]
	if e == nil {
		for len(c.ids) >= c.max {
			c.evict()
		}
		e = &entry[R]{place: len(c.ids)}
		c.ids = append(c.ids, id)
	} else {
		// A new one: others may be reading the old one's fields.
		e = &entry[R]{place: e.place}
	}
	e.value, e.generation = value, era
	e.used.Store(used)
	c.entries[id] = e
	c.dirty = true
}

// evict drops, of some picked at random, the one that was not used for longest. That is
// as good as the one of all and needs no list.
func (c *cache[R]) evict() {
	oldest := ""
	var at int64
	for range 16 {
		id := c.ids[rand.IntN(len(c.ids))] //nolint:gosec // the choice need not be secret
		if used := c.entries[id].used.Load(); oldest == "" || used < at {
			oldest, at = id, used
		}
	}
	c.drop(oldest)
}

// savedEntry is an entry in the cache file.
type savedEntry[R any] struct {
	ID    string
	Value *R
	Used  int64
	Doubt bool // is loaded again as soon as that is possible
}

// savedEntries returns all entries, and whether there is anything new since the last copy.
func (c *cache[R]) savedEntries() (all []savedEntry[R], dirty bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all = make([]savedEntry[R], 0, len(c.ids))
	for _, id := range c.ids {
		e := c.entries[id]
		all = append(all, savedEntry[R]{id, e.value, e.used.Load(), e.generation != c.generation})
	}
	dirty, c.dirty = c.dirty, false
	return all, dirty
}

// restore puts kept entries in.
func (c *cache[R]) restore(all []savedEntry[R]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range all {
		if k.Value == nil {
			k.Value = new(R) // gob leaves out what is zero
		}
		era := c.generation
		if k.Doubt {
			era--
		}
		c.remember(k.ID, k.Value, k.Used, era)
	}
	c.dirty = false
}
