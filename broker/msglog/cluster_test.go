package msglog_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"mynah/broker/msglog"
	"mynah/broker/msglog/msglogtest"
	"mynah/broker/state"
	"mynah/chat"
)

// clock returns a clock that is wrong by d.
func clock(d time.Duration) func() time.Time { return func() time.Time { return time.Now().Add(d) } }

// threeMachines returns a cluster of three, with clocks that differ by days.
func threeMachines(seed uint64) *msglogtest.Cluster {
	var opts []msglog.Options
	for _, d := range []time.Duration{0, -48 * time.Hour, 24 * time.Hour} {
		o := msglogtest.ClusterOptions(vfs.NewMem())
		o.Now = clock(d)
		opts = append(opts, o)
	}
	return msglogtest.NewCluster(seed, opts...)
}

// clusterLog is the log of one machine of three. The others follow.
type clusterLog struct {
	*msglogtest.Node
	tb      testing.TB
	cluster *msglogtest.Cluster
}

func (l clusterLog) Close() error {
	l.tb.Helper()
	l.cluster.MustAgree(l.tb, false)
	return l.Node.Close()
}

// The conformance suite over one machine of three that share an order, of which one is
// stopped each second time that the first is started, and goes on from where it was.
func TestClusterConformance(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	clusters, opened := map[string]*msglogtest.Cluster{}, map[string]int{}
	msglogtest.Run(t, func(tb testing.TB, dir string) msglogtest.Instance {
		tb.Helper()
		mu.Lock()
		c, n := clusters[dir], opened[dir]
		if c == nil {
			c = threeMachines(uint64(len(clusters))) //nolint:gosec // small
			clusters[dir] = c
			tb.Cleanup(func() {
				for i := range 3 {
					if n := c.Node(i); n.Pebble != nil {
						_ = n.Close() // harmless to repeat
					}
				}
			})
		}
		opened[dir]++
		mu.Unlock()
		open := func(n *msglogtest.Node) {
			if err := n.Open(); err != nil {
				tb.Fatal(err)
			}
		}
		if n == 0 {
			open(c.Node(1))
		}
		if n%2 == 0 {
			open(c.Node(2))
		} else if err := c.Node(2).Close(); err != nil {
			tb.Fatal(err)
		}
		open(c.Node(0))
		return msglogtest.Instance{Log: clusterLog{c.Node(0), tb, c}, State: c.Node(0).State()}
	})
}

// fullDisk is a file system that says of itself that it has no room.
type fullDisk struct{ vfs.FS }

func (fullDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: 64 << 20, TotalBytes: 1 << 40, UsedBytes: 1<<40 - 64<<20}, nil
}

// Three machines decide the same about the same entries: with clocks that differ by days,
// one with a full disk, with more or less of what was forgotten still on their disks, some
// with next to no memory, some started anew, and whenever they get the entries. Guards
// against anything local in a decision.
func TestSameDecisions(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		c := msglogtest.NewCluster(rapid.Uint64().Draw(rt, "seed"), machines()...)
		m := &machinesTest{c: c, resume: make([]func(), 3)}
		for i := range 3 {
			m.open(rt, i)
		}
		defer m.stop()
		rt.Repeat(map[string]func(*rapid.T){
			"propose": m.propose,
			"pause":   func(rt *rapid.T) { c.Node(m.any(rt)).Pause(rapid.Bool().Draw(rt, "paused")) },
			"restart": func(rt *rapid.T) {
				i := m.any(rt)
				m.close(rt, i)
				m.open(rt, i)
			},
			"stop removing": func(rt *rapid.T) {
				if i := m.any(rt); m.resume[i] == nil {
					m.resume[i] = c.Node(i).StopRemoving()
				}
			},
			"remove": func(rt *rapid.T) {
				i := m.any(rt)
				m.removeAgain(i)
				if err := c.Node(i).Remove(t.Context()); err != nil {
					rt.Fatal(err)
				}
			},
			"compare": func(rt *rapid.T) {
				for i := range 3 {
					c.Node(i).Pause(false)
				}
				c.MustAgree(failing{t, rt}, true)
			},
		})
		for i := range 3 {
			c.Node(i).Pause(false)
		}
		c.MustAgree(failing{t, rt}, true)
		m.wantOutcomes(rt)
	})
}

// machines returns the options of machines that have nothing in common.
func machines() []msglog.Options {
	a := msglogtest.ClusterOptions(vfs.NewMem())
	a.Now = clock(-48 * time.Hour)
	b := msglogtest.ClusterOptions(fullDisk{vfs.NewMem()})
	b.MinFree, b.DiskPoll = 1<<30, time.Hour
	c := msglogtest.ClusterOptions(vfs.NewMem())
	c.Now, c.TailTopics, c.MidFilterBytes = clock(24*time.Hour), 1, 1
	return []msglog.Options{a, b, c}
}

// machinesTest is the state of a TestSameDecisions.
type machinesTest struct {
	c         *msglogtest.Cluster
	resume    []func()
	proposals []*msglog.Proposal
	n         int
}

func (m *machinesTest) any(rt *rapid.T) int { return rapid.IntRange(0, 2).Draw(rt, "machine") }

func (m *machinesTest) open(rt *rapid.T, i int) {
	if err := m.c.Node(i).Open(); err != nil {
		rt.Fatal(err)
	}
}

func (m *machinesTest) removeAgain(i int) {
	if m.resume[i] != nil {
		m.resume[i]()
		m.resume[i] = nil
	}
}

func (m *machinesTest) close(rt *rapid.T, i int) {
	m.removeAgain(i)
	if err := m.c.Node(i).Close(); err != nil {
		rt.Fatal(err)
	}
}

func (m *machinesTest) stop() {
	for i := range 3 {
		m.removeAgain(i)
		_ = m.c.Node(i).Close()
	}
}

// propose proposes an entry at one of the machines.
func (m *machinesTest) propose(rt *rapid.T) {
	i := m.any(rt)
	e := &msglog.Entry{Time: rapid.Int64Range(0, 50).Draw(rt, "time")}
	for range rapid.IntRange(0, 6).Draw(rt, "records") {
		e.Records = append(e.Records, m.record(rt))
	}
	if rapid.IntRange(0, 3).Draw(rt, "trims") == 0 {
		first, last := m.c.Node(i).Bounds()
		e.Trim = rapid.Uint64Range(first-1, last+3).Draw(rt, "trim")
	}
	key := rapid.SampledFrom([]string{"a", "ab", "b", "b/1"})
	for range rapid.IntRange(0, 2).Draw(rt, "changes") {
		e.State = append(e.State, state.Op{
			Key: key.Draw(rt, "key"), Value: []byte(key.Draw(rt, "value")),
			Delete: rapid.Bool().Draw(rt, "delete"), Prefix: rapid.Bool().Draw(rt, "prefix"),
		})
	}
	p, err := m.c.Node(i).Propose(e)
	if err != nil && i != 1 {
		rt.Fatal(err)
	}
	if err == nil {
		m.proposals = append(m.proposals, p)
	}
}

func (m *machinesTest) record(rt *rapid.T) *msglog.Record {
	name := rapid.SampledFrom([]string{"a", "b"})
	topic := rapid.SampledFrom([]string{"user/a", "user/b", "group/g"})
	body := rapid.SampledFrom([]string{"x", "y"}).Draw(rt, "body")
	r := &msglog.Record{
		Message: chat.Message{
			From: name.Draw(rt, "from"), To: topic.Draw(rt, "to"), TS: int64(m.n), Type: "text",
			Tail: fmt.Appendf(nil, `"type":"text","body":%q}`, body),
		},
		QoS: 1, Client: name.Draw(rt, "client"), Digest: uint64(body[0]),
		PacketID: rapid.Uint16Range(1, 3).Draw(rt, "packet"), Dup: rapid.Bool().Draw(rt, "dup"),
		Ask: rapid.IntRange(0, 5).Draw(rt, "ask") == 0,
	}
	m.n++
	if rapid.Bool().Draw(rt, "has mid") {
		r.Mid = rapid.SampledFrom([]string{"1", "2", "3"}).Draw(rt, "mid")
	}
	if r.Dup {
		first, last := m.c.Node(0).Bounds()
		r.DupAfter = rapid.Uint64Range(first-1, last).Draw(rt, "after")
	}
	return r
}

// wantOutcomes checks that all that was proposed has come to an end, and that those who have
// proposed were told as all others.
func (m *machinesTest) wantOutcomes(rt *rapid.T) {
	for _, p := range m.proposals {
		if c, err := p.Wait(); err == nil {
			if c.Entry != p.Entry() || !c.Mine || len(c.Outcomes) != len(c.Entry.Records) {
				rt.Fatalf("the outcome of %+v is %+v", p.Entry(), c)
			}
			if c.Entry.Full && slices.Contains(c.Outcomes, msglog.Stored) {
				rt.Fatalf("an entry of a full disk was stored: %v", c.Outcomes)
			}
		}
	}
}

// failing is a testing.TB whose failures make rapid look for a smaller case.
type failing struct {
	testing.TB
	rt *rapid.T
}

func (f failing) Helper()                           { f.rt.Helper() }
func (f failing) Fatal(args ...any)                 { f.rt.Fatal(args...) }
func (f failing) Fatalf(format string, args ...any) { f.rt.Fatalf(format, args...) }
