//nolint:thelper // these are the tests, not helpers: their own lines are to be reported
package msglogtest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"mynah/broker/msglog"
	"mynah/broker/state"
)

// model is a Log as simply as it can be said.
type model struct {
	next  uint64
	first uint64
	ts    int64            // of the newest message, 0 at the beginning
	recs  []*msglog.Record // in order, trimmed ones as well
	store map[string]string
}

func (m *model) append(r *msglog.Record, ts int64) msglog.Outcome {
	for _, old := range slices.Backward(m.recs) {
		if old.Seq < m.first {
			break
		}
		if r.Mid != "" && old.Mid == r.Mid && old.From == r.From {
			if old.Digest == r.Digest {
				r.Seq = old.Seq
				return msglog.Duplicate
			}
			return msglog.Conflict
		}
		samePacket := old.From == r.From && old.Client == r.Client && old.PacketID == r.PacketID
		if r.Mid == "" && r.Dup && r.QoS > 0 && old.Mid == "" && old.QoS > 0 && samePacket {
			if old.Digest == r.Digest && old.Seq > r.DupAfter && (r.DupUpTo == 0 || old.Seq <= r.DupUpTo) {
				r.Seq = old.Seq
				return msglog.Duplicate
			}
			break
		}
	}
	if r.Ask {
		return msglog.Unknown
	}
	r.Seq, r.TS = m.next, max(ts, m.ts)
	m.ts = r.TS
	m.next++
	r.Prev, r.PrevSender = m.tail(r.To), 0
	if own := "user/" + r.From; strings.HasPrefix(r.To, "user/") && r.To != own {
		r.PrevSender = m.tail(own)
	}
	m.recs = append(m.recs, r)
	return msglog.Stored
}

func (m *model) tail(topic string) uint64 {
	for _, r := range slices.Backward(m.recs) {
		if isOn(r, topic) {
			return r.Seq
		}
	}
	return 0
}

func (m *model) kept(after, upto uint64) []*msglog.Record {
	return between(m.recs, max(after, m.first-1), upto)
}

// testModel does at random what a broker does, and compares.
func testModel(t *testing.T, open Open) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "model") //nolint:usetesting // rapid.T has no TempDir, and each run needs its own
		if err != nil {
			rt.Fatal(err)
		}
		tb := failer{TB: t, rt: rt}
		l := open(tb, dir)
		defer func() { mustClose(tb, l) }()
		first, _ := l.Bounds()
		m := &model{next: first, first: first, store: map[string]string{}}
		id := rapid.SampledFrom([]string{"a", "b", "c"})
		topic := rapid.SampledFrom([]string{"user/a", "user/b", "user/c", "group/a", "group/b"})
		record := rapid.Custom(func(rt *rapid.T) *msglog.Record {
			r := msg(id.Draw(rt, "from"), topic.Draw(rt, "to"), rapid.SampledFrom([]string{"x", "y"}).Draw(rt, "body"))
			r.QoS = rapid.Byte().Draw(rt, "qos") % 3
			r.Client = r.From + id.Draw(rt, "client")
			if r.QoS > 0 {
				r.PacketID = rapid.Uint16Range(1, 4).Draw(rt, "packet")
				r.Dup = rapid.Bool().Draw(rt, "dup")
			}
			r.Ask = rapid.IntRange(0, 4).Draw(rt, "ask") == 0
			if rapid.Bool().Draw(rt, "has mid") {
				r.Mid = rapid.StringN(1, 2, 4).Draw(rt, "mid")
			}
			return r
		})
		key := rapid.StringOfN(rapid.SampledFrom([]rune("ab/\x00")), 0, 4, -1)
		rt.Repeat(map[string]func(*rapid.T){
			"append": func(rt *rapid.T) {
				n := rapid.SampledFrom([]int{0, 1, 2, 3, 5, 12}).Draw(rt, "n")
				var got, want []*msglog.Record
				var outcomes []msglog.Outcome
				for range n {
					r := record.Draw(rt, "record")
					if r.Dup && rapid.Bool().Draw(rt, "narrowed") {
						r.DupAfter = rapid.Uint64Range(first-1, m.next).Draw(rt, "after")
						r.DupUpTo = rapid.Uint64Range(first-1, m.next).Draw(rt, "up to")
					}
					w := *r
					got, want = append(got, r), append(want, &w)
				}
				e := Entry(got...)
				e.Time = rapid.Int64Range(-5, 5).Draw(rt, "time")
				for _, w := range want {
					outcomes = append(outcomes, m.append(w, e.Time))
				}
				p, err := l.Propose(e)
				if err != nil {
					rt.Fatal(err)
				}
				c, err := p.Wait()
				if err != nil {
					rt.Fatal(err)
				}
				wantOutcomes(tb, c.Outcomes, outcomes...)
				for i, w := range want {
					if outcomes[i] != msglog.Conflict && got[i].Seq != w.Seq {
						rt.Fatalf("record %d: seq %d, want %d", i, got[i].Seq, w.Seq)
					}
				}
			},
			"trim": func(rt *rapid.T) {
				upto := rapid.Uint64Range(m.first-1, m.next).Draw(rt, "upto")
				mustTrim(tb, l, upto)
				m.first = max(m.first, min(upto, m.next-1)+1)
			},
			"reopen": func(rt *rapid.T) {
				if rapid.IntRange(0, 3).Draw(rt, "seldom") != 0 {
					return
				}
				mustClose(tb, l)
				l = open(tb, dir)
			},
			"read": func(rt *rapid.T) {
				after := rapid.Uint64Range(first-1, m.next).Draw(rt, "after")
				upto := rapid.Uint64Range(first-1, m.next+1).Draw(rt, "upto")
				wantRecords(tb, readAll(tb, l, after, upto), m.kept(after, upto))
			},
			"read topic": func(rt *rapid.T) {
				name := topic.Draw(rt, "topic")
				after := rapid.Uint64Range(first-1, m.next).Draw(rt, "after")
				upto := rapid.Uint64Range(first-1, m.next+1).Draw(rt, "upto")
				wantRecords(tb, readTopic(tb, l, name, after, upto), onTopic(m.kept(after, upto), name))
			},
			"store": func(rt *rapid.T) {
				op := state.Op{Key: key.Draw(rt, "key"), Value: []byte(key.Draw(rt, "value"))}
				op.Delete, op.Prefix = rapid.Bool().Draw(rt, "delete"), rapid.Bool().Draw(rt, "prefix")
				if err := l.State.Apply([]state.Op{op}, rapid.Bool().Draw(rt, "sync")); err != nil {
					rt.Fatal(err)
				}
				switch {
				case op.Delete && op.Prefix:
					for k := range m.store {
						if strings.HasPrefix(k, op.Key) {
							delete(m.store, k)
						}
					}
				case op.Delete:
					delete(m.store, op.Key)
				default:
					m.store[op.Key] = string(op.Value)
				}
			},
			"": func(rt *rapid.T) {
				if f, last := l.Bounds(); f != m.first || last != m.next-1 {
					rt.Fatalf("bounds %d, %d, want %d, %d", f, last, m.first, m.next-1)
				}
				for _, name := range []string{"user/a", "group/b"} {
					if got, want := mustTail(tb, l, name), m.tail(name); got != want {
						rt.Fatalf("tail of %s is %d, want %d", name, got, want)
					}
				}
				if got := scan(tb, l.State, ""); fmt.Sprint(got) != fmt.Sprint(m.store) {
					rt.Fatalf("store %v, want %v", got, m.store)
				}
			},
		})
		wantRecords(tb, readAll(tb, l, 0, 1<<60), m.kept(0, 1<<60))
	})
}

// failer is a testing.TB whose failures make rapid look for a smaller case.
type failer struct {
	testing.TB
	rt *rapid.T
}

func (f failer) Helper()                           { f.rt.Helper() }
func (f failer) Fatal(args ...any)                 { f.rt.Fatal(args...) }
func (f failer) Fatalf(format string, args ...any) { f.rt.Fatalf(format, args...) }
func (f failer) Errorf(format string, args ...any) { f.rt.Errorf(format, args...) }
func (f failer) Context() context.Context          { return f.TB.Context() }
