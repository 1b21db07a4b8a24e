package msglogtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"mynah/broker/msglog"
)

// Cluster is several machines with one order, in memory: what a replicated log is to the
// broker, less the network. Entries travel encoded. An origin sends some of them again, at
// once or later; each machine gets them when it gets them; any of them can be stopped, and
// started again from where it was.
type Cluster struct {
	first uint64

	mu      sync.Mutex
	changed sync.Cond
	order   [][]byte // the entry at position i+1
	rand    *rand.Rand
	nodes   []*Node
}

// Node is one machine of a cluster. It is a msglog.Log.
type Node struct {
	*msglog.Pebble
	cluster *Cluster
	id      string
	opts    msglog.Options
	dir     string

	proposing sync.Mutex // the order of numbers is that of proposing

	// Guarded by Cluster.mu.
	number   uint64                      // of the newest entry that it has proposed
	own      map[uint64]*msglog.Proposal // by number
	late     [][]byte                    // entries that it is going to send again
	open     bool
	paused   bool  // it gets no entries for the moment
	err      error // why it applies nothing any more
	position uint64

	applying sync.WaitGroup
}

// ClusterOptions are the options of a machine: its disk is fs.
func ClusterOptions(fs vfs.FS) msglog.Options {
	return msglog.Options{FS: fs, MemTableBytes: 1 << 20, Ballast: -1, MinFree: 1}
}

// NewCluster returns machines with these options and no disk in common, which are stopped.
// Their clocks and disks are their own. Whatever else is different is decided by seed.
func NewCluster(seed uint64, opts ...msglog.Options) *Cluster {
	c := &Cluster{first: 1_000_000, rand: rand.New(rand.NewPCG(seed, 2))}
	c.changed.L = &c.mu
	for i, o := range opts {
		o.Origin, o.FirstSeq = fmt.Sprint("broker-", i), c.first
		c.nodes = append(c.nodes, &Node{cluster: c, id: o.Origin, opts: o, dir: filepath.Join("machine", o.Origin)})
	}
	return c
}

// Node returns the i-th machine.
func (c *Cluster) Node(i int) *Node { return c.nodes[i] }

// Open starts a machine from what is on its disk.
func (n *Node) Open() error { return n.OpenWith(n.opts) }

// OpenWith is Open with some options of its own; what makes it the machine that it is stays.
func (n *Node) OpenWith(opts msglog.Options) error {
	opts.FS, opts.Origin, opts.FirstSeq = n.opts.FS, n.opts.Origin, n.opts.FirstSeq
	l, err := msglog.Open(n.dir, opts)
	if err != nil {
		return err
	}
	n.cluster.mu.Lock()
	n.Pebble, n.own, n.open, n.err = l, map[uint64]*msglog.Proposal{}, true, nil
	n.position, _ = l.Position()
	n.cluster.mu.Unlock()
	n.applying.Go(func() { n.apply(l) })
	return nil
}

// Propose puts an entry into the order, at times more than once.
func (n *Node) Propose(e *msglog.Entry) (*msglog.Proposal, error) {
	n.proposing.Lock()
	defer n.proposing.Unlock()
	c := n.cluster
	c.mu.Lock()
	err := n.err
	if !n.open {
		err = msglog.ErrClosed
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := n.Admit(e); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n.number++
	e.Number = n.number
	p := msglog.NewProposal(e)
	n.own[e.Number] = p
	b := msglog.AppendEntry(nil, e)
	c.order = append(c.order, b)
	switch c.rand.IntN(6) {
	case 0:
		c.order = append(c.order, b) // at once, as when an answer was lost
	case 1:
		n.late = append(n.late, b)
	case 2:
		c.order = append(c.order, n.late...) // behind newer ones
		n.late = nil
	}
	c.changed.Broadcast()
	return p, nil
}

// Compact proposes that messages are forgotten, and waits until they are, here.
func (n *Node) Compact(ctx context.Context, upto uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p, err := n.Propose(&msglog.Entry{Trim: upto})
	if err != nil {
		return err
	}
	if _, err := p.Wait(); err != nil {
		return err
	}
	return n.Remove(ctx)
}

// Pause says whether a machine gets no entries; those that it missed come afterwards.
func (n *Node) Pause(paused bool) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	n.paused = paused
	n.cluster.changed.Broadcast()
}

// apply applies entries in their order.
func (n *Node) apply(l *msglog.Pebble) {
	for {
		position, b, ok := n.next()
		if !ok {
			return
		}
		e, err := msglog.DecodeEntry(b)
		if err == nil {
			err = l.Apply(position, e, n.proposal(e))
		}
		c := n.cluster
		c.mu.Lock()
		if n.position = position; err != nil {
			n.err = fmt.Errorf("%s: entry %d: %w", n.id, position, err)
		}
		c.changed.Broadcast()
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// next waits for the next entry. It returns false when the machine is stopped.
func (n *Node) next() (position uint64, b []byte, ok bool) {
	c := n.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	for n.open && (n.paused || n.position >= uint64(len(c.order))) {
		c.changed.Wait()
	}
	if !n.open {
		return 0, nil, false
	}
	return n.position + 1, c.order[n.position], true
}

// proposal returns the proposal that an entry is, if it was proposed here since the machine
// was started.
func (n *Node) proposal(e *msglog.Entry) *msglog.Proposal {
	if e.Origin != n.id {
		return nil
	}
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	p := n.own[e.Number]
	delete(n.own, e.Number)
	return p
}

// Close stops the machine when it has applied all that it has proposed.
func (n *Node) Close() error {
	c := n.cluster
	c.mu.Lock()
	for n.open && n.err == nil && !n.paused && len(n.own) > 0 {
		c.changed.Wait()
	}
	if !n.open {
		c.mu.Unlock()
		return nil
	}
	n.open = false
	for _, p := range n.own {
		defer p.Fail(msglog.ErrClosed)
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	err := n.Pebble.Close()
	n.applying.Wait()
	return err
}

// Err returns why the machine applies nothing any more, nil if it does.
func (n *Node) Err() error {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	return n.err
}

// MustAgree waits until all machines that are open have applied all, and fails if they have
// decided differently. Their state stores are compared unless some have been changed beside
// the order. None may be paused, and nobody may propose.
func (c *Cluster) MustAgree(tb testing.TB, state bool) {
	tb.Helper()
	c.mu.Lock()
	end := uint64(len(c.order))
	c.mu.Unlock()
	var first *Node
	var want contents
	for _, n := range c.nodes {
		if !n.open {
			continue
		}
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			if err := n.Err(); err != nil {
				tb.Fatal(err)
			}
			position, _ := n.Position()
			if position == end {
				break
			}
			if time.Now().After(deadline) {
				tb.Fatalf("%s has come to position %d of %d", n.id, position, end)
			}
		}
		got := contentsOf(tb, n)
		if !state {
			got.State = nil
		}
		if first == nil {
			first, want = n, got
			continue
		}
		if d := want.diff(got); d != "" {
			tb.Fatalf("%s and %s have decided differently (-%s +%s):\n%s", first.id, n.id, first.id, n.id, d)
		}
	}
}

// contents is all that a machine has decided.
type contents struct {
	First, Last, Position, Chain uint64
	Records                      []msglog.Record
	Topics                       map[string][]uint64 // the messages of each
	Tails                        map[string]uint64
	State                        map[string]string
}

func contentsOf(tb testing.TB, n *Node) contents {
	tb.Helper()
	c := contents{Topics: map[string][]uint64{}, Tails: map[string]uint64{}, State: scan(tb, n.State(), "")}
	c.First, c.Last = n.Bounds()
	c.Position, c.Chain = n.Position()
	topics := map[string]bool{}
	for _, r := range readAll(tb, n, 0, 1<<60) {
		topics[r.To], topics["user/"+r.From] = true, true
		c.Records = append(c.Records, *r)
	}
	for topic := range topics {
		c.Topics[topic] = seqs(readTopic(tb, n, topic, 0, 1<<60))
		c.Tails[topic] = mustTail(tb, n, topic)
	}
	return c
}

func (c contents) diff(other contents) string { return cmp.Diff(c, other) }
