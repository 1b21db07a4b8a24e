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
	// loaders is how many batches a table loads at once.
	loaders = 2
	// most is how many ids are loaded at once.
	most = 500
	// loadTimeout bounds loading; awayTimeout while PostgreSQL is known to be
	// away, when asking is only for the case that it has just come back.
	loadTimeout = time.Second
	awayTimeout = 250 * time.Millisecond
)

// table remembers what was loaded under an id. Concurrent questions for one id
// are one load, and those for different ids that come while another load is under
// way are loaded together.
type table[R any] struct {
	max  int
	away *atomic.Bool
	load func(ctx context.Context, ids []string) (map[string]*R, error)
	wake chan struct{} // has room for one: there is something in queue

	mu      sync.RWMutex // guards what follows
	entries map[string]*entry[R]
	ids     []string // the keys of entries in no order, to draw lots from
	flights map[string]*flight[R]
	queue   []*flight[R]
	era     uint64 // entries of an older one must be asked for anew, if that is possible
	dirty   bool   // something was loaded or forgotten since the last copy
}

type entry[R any] struct {
	value *R
	used  atomic.Int64 // Unix seconds
	era   uint64
	place int // in ids
}

// flight is a load that somebody waits for.
type flight[R any] struct {
	id    string
	done  chan struct{}
	value *R    // valid after done
	err   error // valid after done
}

func newTable[R any](size int, away *atomic.Bool, load func(context.Context, []string) (map[string]*R, error)) *table[R] {
	return &table[R]{
		max: size, away: away, load: load, wake: make(chan struct{}, 1), era: 1,
		entries: map[string]*entry[R]{}, flights: map[string]*flight[R]{},
	}
}

// get returns what is known under the id, loading it if it must. The error is
// refusedUnknown.
func (t *table[R]) get(ctx context.Context, id string) (*R, error) {
	t.mu.RLock()
	e := t.entries[id]
	fresh := e != nil && e.era == t.era
	t.mu.RUnlock()
	if e != nil {
		if now := time.Now().Unix(); e.used.Load() != now {
			e.used.Store(now)
		}
		if fresh || t.away.Load() {
			return e.value, nil
		}
	}
	value, err := t.fetch(ctx, id)
	if err != nil && e != nil {
		return e.value, nil // known rights go on
	}
	return value, err
}

// fetch waits for a load of the id.
func (t *table[R]) fetch(ctx context.Context, id string) (*R, error) {
	f := t.launch(id)
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

// launch returns the flight of the id, starting one if there is none.
func (t *table[R]) launch(id string) *flight[R] {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.flights[id]; f != nil {
		return f
	}
	f := &flight[R]{id: id, done: make(chan struct{})}
	t.flights[id] = f
	t.queue = append(t.queue, f)
	t.signal()
	return f
}

func (t *table[R]) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// forget drops what is known under the ids. What is being loaded is not kept.
func (t *table[R]) forget(ids ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range ids {
		t.drop(id)
		if t.flights[id] != nil {
			delete(t.flights, id) // who waits gets it; who asks from now on gets a new one
		}
	}
}

func (t *table[R]) drop(id string) {
	e := t.entries[id]
	if e == nil {
		return
	}
	last := len(t.ids) - 1
	moved := t.ids[last]
	t.ids[e.place], t.entries[moved].place = moved, e.place
	t.ids = t.ids[:last]
	delete(t.entries, id)
	t.dirty = true
}

// knows returns those of the ids that are known.
func (t *table[R]) knows(ids []string) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return t.entries[id] == nil })
}

// doubt has everything asked for anew, but keeps it for the case that nobody
// answers.
func (t *table[R]) doubt() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.era++
	clear(t.flights)
}

// clear forgets everything.
func (t *table[R]) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.era++
	clear(t.flights)
	clear(t.entries)
	t.ids, t.dirty = nil, true
}

// recent returns the ids that were used last, at most n.
func (t *table[R]) recent(n int) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	ids := slices.Clone(t.ids)
	slices.SortFunc(ids, func(a, b string) int {
		return cmp.Compare(t.entries[b].used.Load(), t.entries[a].used.Load())
	})
	return ids[:min(n, len(ids))]
}

// preload loads the ids into the table, many at once.
func (t *table[R]) preload(ctx context.Context, ids []string) {
	flights := make([]*flight[R], len(ids))
	for i, id := range ids {
		flights[i] = t.launch(id)
	}
	for _, f := range flights {
		select {
		case <-f.done:
		case <-ctx.Done():
			return
		}
	}
}

// serve loads what is asked for until ctx ends.
func (t *table[R]) serve(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		}
		flights := t.take()
		if len(flights) == 0 {
			continue
		}
		ids := make([]string, len(flights))
		for i, f := range flights {
			ids[i] = f.id
		}
		values, err := t.attempt(ctx, ids)
		t.land(flights, values, err)
	}
}

// take takes what is asked for from the queue. An id may be in it twice, if a
// change came in between.
func (t *table[R]) take() []*flight[R] {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := min(len(t.queue), most)
	flights := t.queue[:n:n]
	if t.queue = t.queue[n:]; len(t.queue) > 0 {
		t.signal()
	} else {
		t.queue = nil
	}
	return flights
}

// attempt loads the ids. A connection of the pool that had died is found out by
// using it, so a quick failure is tried once more.
func (t *table[R]) attempt(ctx context.Context, ids []string) (values map[string]*R, err error) {
	limit := loadTimeout
	if t.away.Load() {
		limit = awayTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for range 2 {
		if values, err = t.load(ctx, ids); err == nil || !pgtx.Unreachable(err) || ctx.Err() != nil {
			break
		}
	}
	return values, err
}

// land gives those who wait what was loaded, and remembers it unless a change came
// while it was on its way.
func (t *table[R]) land(flights []*flight[R], values map[string]*R, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now().Unix()
	for _, f := range flights {
		f.value, f.err = values[f.id], err
		if t.flights[f.id] == f {
			delete(t.flights, f.id)
			if err == nil {
				t.put(f.id, values[f.id], now, t.era)
			}
		}
		close(f.done)
	}
}

// put remembers a value; t.mu is held.
func (t *table[R]) put(id string, value *R, used int64, era uint64) {
	e := t.entries[id]
	if e == nil {
		for len(t.ids) >= t.max {
			t.evict()
		}
		e = &entry[R]{place: len(t.ids)}
		t.ids = append(t.ids, id)
	} else {
		// A new one: others may be reading the old one's fields.
		e = &entry[R]{place: e.place}
	}
	e.value, e.era = value, era
	e.used.Store(used)
	t.entries[id] = e
	t.dirty = true
}

// evict drops the one of some drawn by lot that was not used for longest, which is
// as good as the oldest of all and needs no list.
func (t *table[R]) evict() {
	oldest := ""
	var at int64
	for range 16 {
		id := t.ids[rand.IntN(len(t.ids))] //nolint:gosec // lots need not be secret
		if used := t.entries[id].used.Load(); oldest == "" || used < at {
			oldest, at = id, used
		}
	}
	t.drop(oldest)
}

// kept is an entry in the cache file.
type kept[R any] struct {
	ID    string
	Value *R
	Used  int64
	Doubt bool // asked for anew as soon as that is possible
}

// copy returns all entries, and whether there is anything new since the last copy.
func (t *table[R]) copy() (all []kept[R], dirty bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all = make([]kept[R], 0, len(t.ids))
	for _, id := range t.ids {
		e := t.entries[id]
		all = append(all, kept[R]{id, e.value, e.used.Load(), e.era != t.era})
	}
	dirty, t.dirty = t.dirty, false
	return all, dirty
}

// fill puts kept entries in.
func (t *table[R]) fill(all []kept[R]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range all {
		if k.Value == nil {
			k.Value = new(R) // gob leaves out what is zero
		}
		era := t.era
		if k.Doubt {
			era--
		}
		t.put(k.ID, k.Value, k.Used, era)
	}
	t.dirty = false
}
