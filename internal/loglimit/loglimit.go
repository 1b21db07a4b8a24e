// Package loglimit bounds how often something is logged that strangers can cause at will:
// a disk full of log lines is as full as any other.
package loglimit

import (
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Limiter says which of many lines are logged, and counts the others. It is safe for
// concurrent use.
type Limiter struct {
	lines   *rate.Limiter
	leftOut atomic.Int64
}

// New returns a Limiter that lets burst lines through at once, and then one in every.
func New(burst int, every time.Duration) *Limiter {
	return &Limiter{lines: rate.NewLimiter(rate.Every(every), burst)}
}

// Allow reports whether a line is to be logged, and if so, how many were left out since
// the last that was.
func (l *Limiter) Allow() (leftOut int64, ok bool) {
	if !l.lines.Allow() {
		l.leftOut.Add(1)
		return 0, false
	}
	return l.leftOut.Swap(0), true
}
