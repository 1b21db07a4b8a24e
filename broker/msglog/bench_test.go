package msglog_test

import (
	"bytes"
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"mynah/broker/msglog"
	"mynah/broker/msglog/msglogtest"
	"mynah/chat"
)

var benchTail = bytes.Repeat([]byte{'x'}, 128)

// benchBatch makes a batch of n messages from 10 senders to 10 groups.
func benchBatch(n, start int, mids bool) []*msglog.Record {
	recs := make([]*msglog.Record, n)
	for i := range recs {
		k := start + i
		recs[i] = &msglog.Record{
			Message: chat.Message{From: benchFrom[k%10], To: benchTo[k%10], TS: 1_795_000_000_000 + int64(k), Type: "text", Tail: benchTail},
			QoS:     1, Client: benchFrom[k%10], PacketID: uint16(k%60000 + 1), Digest: uint64(k), //nolint:gosec // in range
		}
		if mids {
			recs[i].Mid = fmt.Sprintf("%08x-%016x", uint32(k)*2654435761, uint64(k)*0x9E3779B97F4A7C15) //nolint:gosec // a hash
		}
	}
	return recs
}

var benchFrom, benchTo = func() (from, to []string) {
	for i := range 10 {
		from, to = append(from, fmt.Sprintf("user%d", i)), append(to, fmt.Sprintf("group/team%d", i))
	}
	return from, to
}()

func openBench(b *testing.B, opts msglog.Options) *msglog.Pebble {
	b.Helper()
	l, err := msglog.Open(b.TempDir(), opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := l.Close(); err != nil {
			b.Error(err)
		}
	})
	return l
}

// BenchmarkAppend appends one batch after the other with up to 8 on their way to
// the disk, as the sequencer does. ns/op is per message.
func BenchmarkAppend(b *testing.B) {
	for _, mids := range []bool{false, true} {
		for _, sync := range []bool{false, true} {
			for _, size := range []int{1, 16, 256} {
				b.Run(fmt.Sprintf("mid=%v/sync=%v/batch=%d", mids, sync, size), func(b *testing.B) {
					l := openBench(b, msglog.Options{NoSync: !sync})
					batches := make([][]*msglog.Record, 0, b.N/size+1)
					for n := 0; n < b.N; n += size {
						batches = append(batches, benchBatch(size, n, mids))
					}
					b.ReportAllocs()
					b.ResetTimer()
					cpu := cpuTime(b)
					var waiting []*msglog.Proposal
					for _, recs := range batches {
						p, err := l.Propose(msglogtest.Entry(recs...))
						if err != nil {
							b.Fatal(err)
						}
						if waiting = append(waiting, p); len(waiting) == 8 {
							if _, err := waiting[0].Wait(); err != nil {
								b.Fatal(err)
							}
							waiting = append(waiting[:0], waiting[1:]...)
						}
					}
					for _, p := range waiting {
						if _, err := p.Wait(); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
				})
			}
		}
	}
}

// cpuTime returns the processor time that the process has used, flushing and
// compacting included: what counts where others want the processor, too.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func fillBench(b *testing.B, l *msglog.Pebble, n int, mids bool) {
	b.Helper()
	for i := 0; i < n; i += 256 {
		p, err := l.Propose(msglogtest.Entry(benchBatch(256, i, mids)...))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRead reads the log from one end to the other. ns/op is per message.
func BenchmarkRead(b *testing.B) {
	l := openBench(b, msglog.Options{NoSync: true})
	const n = 1 << 19
	fillBench(b, l, n, false)
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime(b)
	for done := 0; done < b.N; {
		err := l.Read(context.Background(), 0, 1<<60, func(*msglog.Record) bool { done++; return done < b.N })
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
}

// BenchmarkReadTopic is one member of 200 groups who resumes with five messages
// in each, among 100,000 others. ns/op is for all of them.
func BenchmarkReadTopic(b *testing.B) {
	dir := b.TempDir()
	l, err := msglog.Open(dir, msglog.Options{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	k := 0
	for range 1000 { // 101 messages each, one of them for the member
		recs := benchBatch(101, k, false)
		recs[50].To = fmt.Sprintf("group/mine%d", (k/101)%200)
		k += len(recs)
		p, err := l.Propose(msglogtest.Entry(recs...))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	// Opening again writes everything out: it is read from tables.
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	if l, err = msglog.Open(dir, msglog.Options{NoSync: true}); err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			b.Error(err)
		}
	}()
	b.ReportAllocs()
	cpu := cpuTime(b)
	defer func() { b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op") }()
	for b.Loop() {
		n := 0
		for i := range 200 {
			err := l.ReadTopic(context.Background(), fmt.Sprintf("group/mine%d", i), 0, 1<<60, func(*msglog.Record) bool { n++; return true })
			if err != nil {
				b.Fatal(err)
			}
		}
		if n != 1000 {
			b.Fatalf("%d messages", n)
		}
	}
}
