package msglog

import (
	"errors"
	"hash/maphash"
	"math/bits"
	"time"
)

// midFilter finds out cheaply that a mid is new, as nearly all are: a look-up would be
// the most expensive step of storing a message. It is a Bloom filter in memory over the
// mids that the log keeps. It has generations, so that the mids of trimmed messages can be
// dropped. It is used under Pebble.applying.
type midFilter struct {
	db     *database
	life   *lifecycle
	bounds *bounds
	limit  int // bytes

	// complete says that every mid that the log keeps is in one of the
	// generations. Until then, and once there are too many, mids are looked up.
	complete    bool
	disabled    bool // there are too many
	built       chan []*midGeneration
	generations []*midGeneration // oldest first
	bytes       int
}

// midGeneration is a Bloom filter whose bits for one mid are in one cache line.
type midGeneration struct {
	lines     [][8]uint64
	remaining int    // mids until it is full
	last      uint64 // newest message in it
}

const (
	midBits     = 12 // bits of filter for one mid
	midProbes   = 6  // bits that are set for one mid: one in 150 new ones seems known
	midGenMin   = 1 << 14
	midGenMax   = 1 << 20
	midLineBits = 512
)

// midSeed keeps clients from choosing mids that seem known.
var midSeed = maphash.MakeSeed()

func midHash(from, mid string) uint64 {
	return maphash.String(midSeed, from)*0x9E3779B97F4A7C15 ^ maphash.String(midSeed, mid)
}

func newMidGeneration(mids int) *midGeneration {
	return &midGeneration{lines: make([][8]uint64, mids*midBits/midLineBits+1), remaining: mids}
}

func (g *midGeneration) line(h uint64) *[8]uint64 {
	i, _ := bits.Mul64(h, uint64(len(g.lines)))
	return &g.lines[i]
}

func (g *midGeneration) add(h, seq uint64) {
	line := g.line(h)
	for range midProbes {
		h = h*0x5851F42D4C957F2D + 0x14057B7EF767814F
		line[h>>61] |= 1 << (h >> 55 & 63)
	}
	g.remaining--
	g.last = max(g.last, seq)
}

func (g *midGeneration) mayContain(h uint64) bool {
	line := g.line(h)
	for range midProbes {
		h = h*0x5851F42D4C957F2D + 0x14057B7EF767814F
		if line[h>>61]&(1<<(h>>55&63)) == 0 {
			return false
		}
	}
	return true
}

func (g *midGeneration) size() int { return len(g.lines) * midLineBits / 8 }

// isNew reports whether a mid is certainly in no message that the log keeps.
func (f *midFilter) isNew(h uint64) bool {
	if f.disabled || !f.complete && !f.takeBuilt() {
		return false
	}
	for _, g := range f.generations {
		if g.mayContain(h) {
			return false
		}
	}
	return true
}

// takeBuilt takes the generations that build has made of the messages that were there when
// the log was opened. It returns false if they are not ready.
func (f *midFilter) takeBuilt() bool {
	select {
	case gens, ok := <-f.built:
		if !ok {
			f.disable()
			return false
		}
		f.generations = append(gens, f.generations...)
		for _, g := range gens {
			f.bytes += g.size()
		}
		f.complete = true
		return true
	default:
		return false
	}
}

// add adds a new message's mid.
func (f *midFilter) add(h, seq uint64) {
	if f.disabled {
		return
	}
	n := len(f.generations)
	if n == 0 || f.generations[n-1].remaining <= 0 {
		f.addGeneration()
		if n = len(f.generations); f.disabled {
			return
		}
	}
	f.generations[n-1].add(h, seq)
}

// addGeneration begins a generation, larger than the last, and forgets those that were
// trimmed.
func (f *midFilter) addGeneration() {
	floor := f.bounds.floor.Load() // a mid may be used again while its old message is there
	for len(f.generations) > 0 && f.generations[0].last < floor {
		f.bytes -= f.generations[0].size()
		f.generations = f.generations[1:]
	}
	mids := midGenMin
	if n := len(f.generations); n > 0 {
		mids = min(2*len(f.generations[n-1].lines)*midLineBits/midBits, midGenMax)
	}
	g := newMidGeneration(mids)
	if f.bytes += g.size(); f.bytes > f.limit {
		f.db.log.Info("more mids are kept than the filter has room for: looking them up takes longer from now on", "bytes", f.limit)
		f.disable()
		return
	}
	f.generations = append(f.generations, g)
}

// disable turns the filter off for good: there are more mids than it has room for.
func (f *midFilter) disable() { f.disabled, f.generations, f.bytes = true, nil, 0 }

// build collects the mids of the messages that are in the log, up to and
// including last, in the background. It takes half of a processor at most.
func (f *midFilter) build(last uint64) {
	defer f.life.background.Done()
	gens, err := f.readGenerations(last)
	switch {
	case errors.Is(err, ErrClosed):
		return
	case err != nil:
		// A look-up of such a mid returns the error to its caller.
		f.db.log.Warn("mids could not be read; looking them up takes longer", "err", err)
		close(f.built)
	case gens == nil:
		close(f.built)
	default:
		f.built <- gens
	}
}

// readGenerations returns nil if there are more mids than there is room for.
func (f *midFilter) readGenerations(last uint64) (gens []*midGeneration, err error) {
	it, err := f.db.newPrefixIter(prefixMid)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	size := 0
	gens = []*midGeneration{}
	var g *midGeneration
	begin := time.Now()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%4096 == 0 {
			select {
			case <-f.life.stop:
				return nil, ErrClosed
			case <-time.After(time.Since(begin)):
			}
			begin = time.Now()
		}
		from, rest, err := cutString(it.Key()[len(prefixMid):])
		if err != nil {
			return nil, err
		}
		mid, _, err := cutString(rest)
		if err != nil {
			return nil, err
		}
		if g == nil || g.remaining <= 0 {
			mids := midGenMin
			if g != nil {
				mids = midGenMax
			}
			g = newMidGeneration(mids)
			if size += g.size(); size > f.limit {
				return nil, nil
			}
			gens = append(gens, g)
		}
		g.add(midHash(from, mid), last)
	}
	return gens, it.Error()
}
