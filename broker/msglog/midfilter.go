package msglog

import (
	"errors"
	"hash/maphash"
	"math/bits"
	"time"
)

// midFilter tells cheaply that a mid is new, which nearly all are: looking it up
// would be the most expensive thing about a message. It is a Bloom filter in
// memory over the mids that the log keeps, in generations so that what is trimmed
// can be forgotten. It belongs to the appending goroutine.
type midFilter struct {
	db     *database
	life   *lifecycle
	bounds *bounds
	limit  int // bytes

	// complete says that every mid that the log keeps is in one of the
	// generations. Until then, and once there are too many, the log is asked.
	complete bool
	off      bool // there are too many
	built    chan []*midGeneration
	gens     []*midGeneration // oldest first
	bytes    int
}

// midGeneration is a Bloom filter whose bits for one mid are in one cache line.
type midGeneration struct {
	lines [][8]uint64
	room  int    // mids until it is full
	last  uint64 // newest message in it
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
	return &midGeneration{lines: make([][8]uint64, mids*midBits/midLineBits+1), room: mids}
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
	g.room--
	g.last = max(g.last, seq)
}

func (g *midGeneration) has(h uint64) bool {
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
	if f.off || !f.complete && !f.adopt() {
		return false
	}
	for _, g := range f.gens {
		if g.has(h) {
			return false
		}
	}
	return true
}

// adopt takes over what has been built of the messages that were there when the
// log was opened.
func (f *midFilter) adopt() bool {
	select {
	case gens, ok := <-f.built:
		if !ok {
			f.drop()
			return false
		}
		f.gens = append(gens, f.gens...)
		for _, g := range gens {
			f.bytes += g.size()
		}
		f.complete = true
		return true
	default:
		return false
	}
}

// add takes note of a new message's mid.
func (f *midFilter) add(h, seq uint64) {
	if f.off {
		return
	}
	n := len(f.gens)
	if n == 0 || f.gens[n-1].room <= 0 {
		f.grow()
		if n = len(f.gens); f.off {
			return
		}
	}
	f.gens[n-1].add(h, seq)
}

// grow begins a generation, larger than the last, and forgets those that were
// trimmed.
func (f *midFilter) grow() {
	floor := f.bounds.floor.Load() // a mid may be used again while its old message is there
	for len(f.gens) > 0 && f.gens[0].last < floor {
		f.bytes -= f.gens[0].size()
		f.gens = f.gens[1:]
	}
	mids := midGenMin
	if n := len(f.gens); n > 0 {
		mids = min(2*len(f.gens[n-1].lines)*midLineBits/midBits, midGenMax)
	}
	g := newMidGeneration(mids)
	if f.bytes += g.size(); f.bytes > f.limit {
		f.db.log.Info("more mids are kept than the filter has room for: looking them up takes longer from now on", "bytes", f.limit)
		f.drop()
		return
	}
	f.gens = append(f.gens, g)
}

// drop gives up: there are more mids than there is room for.
func (f *midFilter) drop() { f.off, f.gens, f.bytes = true, nil, 0 }

// build collects the mids of the messages that are in the log, up to and
// including last, in the background. It takes half of a processor at most.
func (f *midFilter) build(last uint64) {
	defer f.life.background.Done()
	gens, err := f.collect(last)
	switch {
	case errors.Is(err, ErrClosed):
		return
	case err != nil:
		// Whoever reads them will be told; without the filter they are read.
		f.db.log.Warn("mids could not be read; looking them up takes longer", "err", err)
		close(f.built)
	case gens == nil:
		close(f.built)
	default:
		f.built <- gens
	}
}

// collect returns nil if there are more mids than there is room for.
func (f *midFilter) collect(last uint64) (gens []*midGeneration, err error) {
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
		if g == nil || g.room <= 0 {
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
