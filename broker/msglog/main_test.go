package msglog_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"

	"mynah/broker/msglog"
	"mynah/broker/msglog/msglogtest"
	"mynah/broker/state"
	"mynah/chat"
	"mynah/internal/leak"
)

// childEnv tells the test binary that it is a process to be killed: it appends to
// the log in the named directory and says what was acknowledged.
const childEnv = "MSGLOG_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := appendUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leak.Main(m)
}

// appendUntilKilled appends batches with several on their way, and changes the
// store, printing each seq and each change that is durable.
func appendUntilKilled(dir string) error {
	l, err := msglog.Open(dir, msglog.Options{MemTableBytes: 1 << 20, Ballast: -1, MinFree: 1})
	if err != nil {
		return err
	}
	fmt.Println("open")
	out := bufio.NewWriter(os.Stdout)
	type batch struct {
		p    *msglog.Proposal
		recs []*msglog.Record
	}
	waiting := make(chan batch, 4)
	go func() {
		for i := os.Getpid() * 10_000; ; i++ { // no mid of an earlier process
			recs := make([]*msglog.Record, i%90+1)
			for j := range recs {
				recs[j] = testRecord(i, j)
			}
			p, err := l.Propose(msglogtest.Entry(recs...))
			if err != nil {
				panic(err)
			}
			waiting <- batch{p, recs}
		}
	}()
	for n := 0; ; n++ {
		b := <-waiting
		if _, err := b.p.Wait(); err != nil {
			return err
		}
		if n%10 == 0 {
			if err := l.State().Apply([]state.Op{{Key: "n", Value: []byte(strconv.Itoa(n))}}, true); err != nil {
				return err
			}
			fmt.Fprintln(out, "store", n)
		}
		for _, r := range b.recs {
			fmt.Fprintln(out, "acked", r.Seq, r.Mid)
		}
		// What has been written to the pipe outlives the process, as a PUBACK does.
		if err := out.Flush(); err != nil {
			return err
		}
	}
}

func testRecord(i, j int) *msglog.Record {
	mid := fmt.Sprintf("%d.%d", i, j)
	return &msglog.Record{
		Message: chat.Message{
			From: "alice", To: fmt.Sprintf("group/%d", j%5), TS: int64(i), Type: "text", Mid: mid,
			Tail: fmt.Appendf(nil, `"type":"text","body":%q}`, mid),
		},
		QoS: 1, Client: "phone", PacketID: uint16(j + 1), Digest: uint64(i)<<16 + uint64(j), //nolint:gosec // small
	}
}

func mustOpen(tb testing.TB, dir string, opts msglog.Options) *msglog.Pebble {
	tb.Helper()
	l, err := msglog.Open(dir, opts)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func mustClose(tb testing.TB, l *msglog.Pebble) {
	tb.Helper()
	if err := l.Close(); err != nil {
		tb.Fatal(err)
	}
}

func mustAppend(tb testing.TB, l *msglog.Pebble, recs ...*msglog.Record) {
	tb.Helper()
	p, err := l.Propose(msglogtest.Entry(recs...))
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		tb.Fatal(err)
	}
}

// readAll returns all messages, by seq, and fails if the log has a hole.
func readAll(tb testing.TB, l *msglog.Pebble) map[uint64]*msglog.Record {
	tb.Helper()
	first, last := l.Bounds()
	recs := make(map[uint64]*msglog.Record)
	next := first
	err := l.Read(context.Background(), 0, 1<<60, func(r *msglog.Record) bool {
		if r.Seq != next {
			tb.Fatalf("seq %d, want %d", r.Seq, next)
		}
		next++
		recs[r.Seq] = r
		return true
	})
	if err != nil {
		tb.Fatal(err)
	}
	if next != last+1 {
		tb.Fatalf("read up to %d, the log ends at %d", next-1, last)
	}
	return recs
}
