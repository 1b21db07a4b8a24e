package broker

import (
	"sync/atomic"
	"time"
)

// logLimiter does something at most once a minute. The zero value has done nothing yet.
type logLimiter struct{ last atomic.Int64 }

// Do calls f unless it called one within the last minute.
func (l *logLimiter) Do(f func()) {
	now := time.Now().Unix()
	if last := l.last.Load(); now-last >= 60 && l.last.CompareAndSwap(last, now) {
		f()
	}
}
