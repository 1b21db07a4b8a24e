// Package loglimit limits how often an event is logged that unauthenticated clients can
// cause. It guarantees that they cannot fill the disk with log lines. Make one Limiter
// for each event, and log only if Allow says so.
package loglimit

import (
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Limiter is a rate limit for log lines. It counts the lines that it suppresses. It
// is safe for concurrent use.
type Limiter struct {
	lines      *rate.Limiter
	suppressed atomic.Int64
}

// New returns a Limiter that allows burst lines at once, and then one line in each
// period of every.
func New(burst int, every time.Duration) *Limiter {
	return &Limiter{lines: rate.NewLimiter(rate.Every(every), burst)}
}

// Allow reports whether a line is to be logged, and if so, how many were suppressed
// since the last one.
func (l *Limiter) Allow() (leftOut int64, ok bool) {
	if !l.lines.Allow() {
		l.suppressed.Add(1)
		return 0, false
	}
	return l.suppressed.Swap(0), true
}
