// Package stopwatch measures how long something takes, for tests of what is promised with
// a limit. A stopwatch stands still while the machine does not run the process, as when a
// hypervisor gives the processors to others for a second: that says nothing about the
// program, and would break a limit that the program keeps.
package stopwatch

import (
	"sync/atomic"
	"testing"
	"time"
)

const (
	// tick is how often it is looked whether the process runs, and how exact times are.
	tick = 5 * time.Millisecond
	// most is what counts of the time between two looks: what is beyond is the machine's.
	most = 50 * time.Millisecond
)

// Stopwatch is a running stopwatch. It is safe for concurrent use.
type Stopwatch struct{ ran atomic.Int64 }

// New returns a stopwatch that runs until the test ends.
func New(tb testing.TB) *Stopwatch {
	tb.Helper()
	w := &Stopwatch{}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		looks := time.NewTicker(tick)
		defer looks.Stop()
		for last := time.Now(); ; {
			select {
			case <-stop:
				return
			case <-looks.C:
			}
			now := time.Now()
			w.ran.Add(int64(min(now.Sub(last), most)))
			last = now
		}
	}()
	tb.Cleanup(func() { close(stop); <-stopped })
	return w
}

// Elapsed returns for how long the stopwatch has run.
func (w *Stopwatch) Elapsed() time.Duration { return time.Duration(w.ran.Load()) }

// Since returns for how long it has run since Elapsed returned began.
func (w *Stopwatch) Since(began time.Duration) time.Duration { return w.Elapsed() - began }
