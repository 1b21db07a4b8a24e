// Package msglogtest is the conformance suite of msglog.Log. Every
// implementation runs it: what the broker relies on is what is tested here.
package msglogtest

import (
	"context"
	"fmt"
	"hash/fnv"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mynah/broker/msglog"
	"mynah/broker/state"
	"mynah/chat"
)

// Open opens a log whose state is under dir. Opened again with the same dir it
// must have all that was there. It must fail the test if it cannot.
type Open func(tb testing.TB, dir string) Instance

// Instance is a log with the state store beside it. Closing the log closes both.
type Instance struct {
	msglog.Log
	State state.Store
}

// Run runs the suite.
func Run(t *testing.T, open Open) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, Open){
		"Empty":              testEmpty,
		"Order":              testOrder,
		"BatchSizes":         testBatchSizes,
		"Fields":             testFields,
		"Prev":               testPrev,
		"Mid":                testMid,
		"MidInBatch":         testMidInBatch,
		"MidPending":         testMidPending,
		"Dup":                testDup,
		"Ask":                testAsk,
		"DupInBatch":         testDupInBatch,
		"OddNames":           testOddNames,
		"RawDigest":          testRawDigest,
		"Reopen":             testReopen,
		"Bounds":             testBounds,
		"ReadTopic":          testReadTopic,
		"ReadStops":          testReadStops,
		"ReadCancelled":      testReadCancelled,
		"Kept":               testKept,
		"Trim":               testTrim,
		"TrimAll":            testTrimAll,
		"TrimKeepsMids":      testTrimKeepsMids,
		"TrimKeepsTails":     testTrimKeepsTails,
		"TrimWithinBlock":    testTrimWithinBlock,
		"Store":              testStore,
		"Closed":             testClosed,
		"ReadersWhileAppend": testReadersWhileAppend,
		"TrimWhileAppend":    testTrimWhileAppend,
		"Follow":             testFollow,
		"FollowFrom":         testFollowFrom,
		"FollowEnds":         testFollowEnds,
		"StateInEntry":       testStateInEntry,
		"Time":               testTime,
		"Full":               testFull,
		"ForgetInOrder":      testForgetInOrder,
		"Model":              testModel,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open)
		})
	}
}

// msg returns a record as a publish makes it.
func msg(from, to, body string) *msglog.Record {
	r := &msglog.Record{
		Message: chat.Message{From: from, To: to, TS: 1_700_000_000_000, Type: "text"},
		QoS:     1, Client: from + "-phone",
	}
	setBody(r, body)
	return r
}

func setBody(r *msglog.Record, body string) {
	r.Tail = fmt.Appendf(nil, `"type":"text","body":%q}`, body)
	h := fnv.New64a()
	_, _ = h.Write([]byte(r.To + "\x00" + body)) // a hash does not fail
	r.Digest = h.Sum64()
}

func withMid(r *msglog.Record, mid string) *msglog.Record {
	r.Mid = mid
	return r
}

func withPacket(r *msglog.Record, id uint16, dup bool) *msglog.Record {
	r.PacketID, r.Dup = id, dup
	return r
}

// Entry returns an entry of records, proposed at the time that the newest has as its TS.
func Entry(recs ...*msglog.Record) *msglog.Entry {
	e := &msglog.Entry{Records: recs}
	for i, r := range recs {
		if i == 0 || r.TS > e.Time {
			e.Time = r.TS
		}
	}
	return e
}

// Propose proposes records, waits for them and returns what was decided.
func Propose(l msglog.Log, recs ...*msglog.Record) (*msglog.Committed, error) {
	p, err := l.Propose(Entry(recs...))
	if err != nil {
		return nil, fmt.Errorf("propose: %w", err)
	}
	return p.Wait()
}

// appendAll proposes records, waits for them and returns the outcomes.
func appendAll(tb testing.TB, l msglog.Log, recs ...*msglog.Record) []msglog.Outcome {
	tb.Helper()
	c, err := Propose(l, recs...)
	if err != nil {
		tb.Fatal(err)
	}
	return c.Outcomes
}

// store appends a batch of which every record must be new.
func store(tb testing.TB, l msglog.Log, recs ...*msglog.Record) {
	tb.Helper()
	for i, o := range appendAll(tb, l, recs...) {
		if o != msglog.Stored {
			tb.Fatalf("record %d: outcome %v, want it stored", i, o)
		}
	}
}

func wantOutcomes(tb testing.TB, got []msglog.Outcome, want ...msglog.Outcome) {
	tb.Helper()
	if !slices.Equal(got, want) {
		tb.Fatalf("outcomes %v, want %v", got, want)
	}
}

func readAll(tb testing.TB, l msglog.Log, after, upto uint64) []*msglog.Record {
	tb.Helper()
	var recs []*msglog.Record
	err := l.Read(context.Background(), after, upto, func(r *msglog.Record) bool {
		recs = append(recs, r)
		return true
	})
	if err != nil {
		tb.Fatalf("read: %v", err)
	}
	return recs
}

func readTopic(tb testing.TB, l msglog.Log, topic string, after, upto uint64) []*msglog.Record {
	tb.Helper()
	var recs []*msglog.Record
	err := l.ReadTopic(context.Background(), topic, after, upto, func(r *msglog.Record) bool {
		recs = append(recs, r)
		return true
	})
	if err != nil {
		tb.Fatalf("read %s: %v", topic, err)
	}
	return recs
}

// wantRecords compares what was read with what was appended; Dup, what
// narrows it and Ask are not stored.
func wantRecords(tb testing.TB, got, want []*msglog.Record) {
	tb.Helper()
	if len(got) != len(want) {
		tb.Fatalf("read %d records %v, want %d %v", len(got), seqs(got), len(want), seqs(want))
	}
	for i, r := range want {
		w, g := *r, *got[i]
		w.Dup, w.DupAfter, w.DupUpTo, w.Ask, w.RawDigest = false, 0, 0, false, 0
		// An empty tail may come back nil.
		sameTail := string(w.Tail) == string(g.Tail)
		w.Tail, g.Tail = nil, nil
		if !sameTail || !reflect.DeepEqual(w, g) {
			tb.Fatalf("record %d (-want +got):\n%s", i, cmp.Diff(r, got[i]))
		}
	}
}

func seqs(recs []*msglog.Record) []uint64 {
	s := make([]uint64, len(recs))
	for i, r := range recs {
		s[i] = r.Seq
	}
	return s
}

func mustTail(tb testing.TB, l msglog.Log, topic string) uint64 {
	tb.Helper()
	seq, err := l.Tail(topic)
	if err != nil {
		tb.Fatalf("tail of %s: %v", topic, err)
	}
	return seq
}

func mustTrim(tb testing.TB, l msglog.Log, upto uint64) {
	tb.Helper()
	if err := l.Compact(context.Background(), upto); err != nil {
		tb.Fatalf("trim: %v", err)
	}
}

func mustClose(tb testing.TB, l msglog.Log) {
	tb.Helper()
	if err := l.Close(); err != nil {
		tb.Fatalf("close: %v", err)
	}
}

// open1 opens a log that is closed when the test ends.
func openTemp(t *testing.T, open Open) Instance {
	t.Helper()
	l := open(t, t.TempDir())
	t.Cleanup(func() { mustClose(t, l) })
	return l
}

func scan(tb testing.TB, s state.Store, prefix string) map[string]string {
	tb.Helper()
	m := make(map[string]string)
	var keys []string
	err := s.Scan(prefix, func(key string, value []byte) bool {
		keys = append(keys, strings.Clone(key))
		m[strings.Clone(key)] = string(value)
		return true
	})
	if err != nil {
		tb.Fatalf("scan: %v", err)
	}
	if !slices.IsSorted(keys) {
		tb.Fatalf("scan is not in byte order: %q", keys)
	}
	return m
}
