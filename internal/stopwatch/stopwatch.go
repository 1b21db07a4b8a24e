// Package stopwatch measures durations for tests of a time limit. A stopwatch does not
// count the time in which the machine does not run the process, as when a hypervisor
// suspends it for a second. That time says nothing about the program, and would exceed a
// limit that the program keeps. Use New and Elapsed or Since instead of time.Now and
// time.Since.
package stopwatch

import (
	"sync/atomic"
	"testing"
	"time"
)

const (
	// tick is the period of the goroutine that counts the time, and so the precision.
	tick = 5 * time.Millisecond
	// maxStep is the longest time between two ticks that counts. Above it, the process
	// was suspended.
	maxStep = 50 * time.Millisecond
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
			w.ran.Add(int64(min(now.Sub(last), maxStep)))
			last = now
		}
	}()
	tb.Cleanup(func() { close(stop); <-stopped })
	return w
}

// Elapsed returns for how long the stopwatch has run.
func (w *Stopwatch) Elapsed() time.Duration { return time.Duration(w.ran.Load()) }

// Since returns how long the stopwatch has run since Elapsed returned began.
func (w *Stopwatch) Since(began time.Duration) time.Duration { return w.Elapsed() - began }
