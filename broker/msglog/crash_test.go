package msglog_test

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"mynah/broker/msglog"
	"mynah/broker/msglog/msglogtest"
	"mynah/broker/state"
)

// In memory, since a model does a lot of syncs; the other tests use the disk.
func TestConformance(t *testing.T) {
	t.Parallel()
	disk := vfs.NewMem()
	msglogtest.Run(t, func(tb testing.TB, dir string) msglogtest.Instance {
		tb.Helper()
		l := mustOpen(tb, dir, msglog.Options{FS: disk, MemTableBytes: 1 << 20, Ballast: -1})
		return msglogtest.Instance{Log: l, State: l.State()}
	})
}

// An acknowledged message survives the loss of power: the file system forgets
// what was not synced, or keeps some of it in any order. Guards against telling
// anyone before the sync, and against taking the rest of a torn write for damage.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test's choices
			disk := vfs.NewCrashableMem()
			acked := map[uint64]string{}
			changes := 0
			for range 5 {
				disk = runUntilPowerLoss(t, disk, rng, acked, &changes)
			}
			if len(acked) == 0 {
				t.Fatal("nothing was acknowledged")
			}
		})
	}
}

// runUntilPowerLoss opens the log, checks that all that was acknowledged before is
// there, appends for a while and returns the disk as a loss of power leaves it.
func runUntilPowerLoss(t *testing.T, disk *vfs.MemFS, rng *rand.Rand, acked map[uint64]string, changes *int) *vfs.MemFS {
	t.Helper()
	l := mustOpen(t, "log", msglog.Options{FS: disk, MemTableBytes: 256 << 10})
	checkAcked(t, l, acked, *changes)

	var mu sync.Mutex // guards acked, changes and after
	var after *vfs.MemFS
	stop := rng.IntN(40) + 1
	unsynced := []int{0, 30, 100}[rng.IntN(3)]
	var wg sync.WaitGroup
	for i := range stop + 10 {
		recs := make([]*msglog.Record, rng.IntN(150)+1)
		for j := range recs {
			recs[j] = testRecord(rng.IntN(1<<30), j)
		}
		p, err := l.Propose(msglogtest.Entry(recs...))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			c, err := p.Wait()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if after != nil {
				return // too late: power is lost
			}
			for k, r := range recs {
				if c.Outcomes[k] == msglog.Stored {
					acked[r.Seq] = r.Mid
				}
			}
		})
		if i%7 == 0 {
			n := *changes + 1
			if err := l.State().Apply([]state.Op{{Key: "n", Value: fmt.Append(nil, n)}}, true); err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			if after == nil {
				*changes = n
			}
			mu.Unlock()
		}
		if i == stop {
			mu.Lock()
			after = disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: rng})
			mu.Unlock()
		}
	}
	wg.Wait()
	mustClose(t, l)
	return after
}

// checkAcked checks that everything acknowledged is there, as itself, and is
// recognised when it comes again.
func checkAcked(t *testing.T, l *msglog.Pebble, acked map[uint64]string, changes int) {
	t.Helper()
	stored := readAll(t, l)
	for seq, mid := range acked {
		if r := stored[seq]; r == nil || r.Mid != mid {
			_, last := l.Bounds()
			t.Fatalf("message %d, mid %s, was acknowledged and is now %v; the log ends at %d", seq, mid, r, last)
		}
	}
	got := 0
	err := l.State().Scan("n", func(_ string, value []byte) bool {
		_, err := fmt.Sscan(string(value), &got)
		return err == nil
	})
	if err != nil || got < changes {
		t.Fatalf("change %d of the store was acknowledged, %d is there: %v", changes, got, err)
	}
	for seq := range acked {
		again := *stored[seq]
		mustAppend(t, l, &again)
		if again.Seq != seq {
			t.Fatalf("message %d came again and became %d", seq, again.Seq)
		}
		break
	}
}

// An acknowledged message survives SIGKILL at any moment, and its seq is not given
// to another.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acked := map[uint64]string{}
	changes := 0
	for round := range 5 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		limit := 500*round + 200
		for n := 0; n < limit && lines.Scan(); n++ {
			note(t, lines.Text(), acked, &changes)
		}
		if round == 0 {
			// The log of a process that lives is refused, to others and to itself.
			if _, err := msglog.Open(dir, msglog.Options{}); !errors.Is(err, msglog.ErrInUse) {
				t.Fatalf("opened the log of another process: %v", err)
			}
		}
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatalf("%v: %s", err, stderr.String())
		}
		for lines.Scan() { // what was acknowledged until the signal came
			note(t, lines.Text(), acked, &changes)
		}
		_ = cmd.Wait() // it was killed
		tear(t, dir, round)
		l := mustOpen(t, dir, msglog.Options{Ballast: -1, MinFree: 1})
		checkAcked(t, l, acked, changes)
		mustClose(t, l)
	}
	if len(acked) < 1000 {
		t.Fatalf("only %d messages were acknowledged", len(acked))
	}
}

// tear cuts off or changes some of what the crash left unfinished.
func tear(t *testing.T, dir string, round int) {
	t.Helper()
	file, from, to, err := msglog.TornRange(dir)
	if err != nil {
		t.Fatal(err)
	}
	whole := mustRead(t, file)
	switch mid := (from + to) / 2; {
	case round%2 == 0:
		mustWrite(t, file, whole[:mid])
	case mid < to:
		mustWrite(t, file, flip(whole, int(mid)))
	}
}

func note(t *testing.T, line string, acked map[uint64]string, changes *int) {
	t.Helper()
	var seq uint64
	var mid string
	if n, _ := fmt.Sscanf(line, "acked %d %s", &seq, &mid); n == 2 {
		if old, ok := acked[seq]; ok && old != mid {
			t.Fatalf("seq %d was given to %s and to %s", seq, old, mid)
		}
		acked[seq] = mid
		return
	}
	_, _ = fmt.Sscanf(line, "store %d", changes) // or it is a line cut short
}
