package msglog_test

import (
	"fmt"
	"runtime"
	"testing"

	"mynah/broker/msglog"
	"mynah/internal/waitfor"
)

// What the log keeps in memory of messages does not grow with their number, but for the
// filter's 12 bits a mid: not their mids, records or index entries. A client that sends as
// fast as it can would else fill the memory of the machine. The caches are made small, so
// that they are full before the first measurement.
func TestMemoryDoesNotGrowByMid(t *testing.T) { //nolint:paralleltest // it looks at the heap
	l := mustOpen(t, t.TempDir(), msglog.Options{MemTableBytes: 1 << 20, CacheBytes: 1 << 20, TailTopics: 1024, NoSync: true})
	sent := 0
	fill := func(upTo int) {
		for sent < upTo {
			batch := make([]*msglog.Record, 0, 500)
			for range cap(batch) {
				batch = append(batch, testRecord(sent, 0))
				sent++
			}
			mustAppend(t, l, batch...)
		}
	}
	heap := func() int {
		var m runtime.MemStats
		for range 2 { // what was in a pool goes with the second
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc) //nolint:gosec // far below
	}
	const few, many = 20_000, 220_000
	fill(few)
	before := heap()
	fill(many)
	// The filter's generations double, so that one may be up to half empty.
	const filter, slack = 2 * (many - few) * 12 / 8, 1 << 20
	// Compactions that are still under way have memory of their own, for as long as they last.
	grown := 0
	waitfor.MustSucceed(t, "a heap that does not grow by mid", func() error {
		if grown = heap() - before; grown > filter+slack {
			return fmt.Errorf("it has grown by %d bytes a mid, want 3 at most, and %d KiB for what varies", grown/(many-few), slack>>10)
		}
		return nil
	})
	t.Logf("%d KiB after %d mids, %d KiB more after %d", before>>10, few, grown>>10, many)
	mustClose(t, l)
}
