package authhook

import (
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// How many refused CONNECTs are logged. Anybody can cause thousands a second without
// a token, and a disk full of log lines is as full as any other. One address gets
// what a broken device or an office behind one address may need to be understood,
// and cannot hide what others do; all together stay below 15 MB a day.
const (
	refusalLogBurst    = 100              // of one address
	refusalLogInterval = 10 * time.Second // of one address, after that

	totalRefusalLogBurst    = 1000
	totalRefusalLogInterval = time.Second

	// throttledLogInterval is how often it is logged that an address was throttled.
	throttledLogInterval = 10 * time.Minute

	maxRefusalAddresses = 1 << 14 // that are remembered
)

// RefusalLog decides which refused tokens and CONNECTs are logged, and counts the others.
type RefusalLog struct {
	now        func() time.Time
	refused    *buckets // by address
	throttled  *buckets // by address
	all        *rate.Limiter
	suppressed atomic.Int64
}

// NewRefusalLog returns a RefusalLog by the clock, of one door or of several.
func NewRefusalLog(now func() time.Time) *RefusalLog {
	perSecond := func(every time.Duration) float64 { return float64(time.Second) / float64(every) }
	return &RefusalLog{
		now:       now,
		refused:   newBuckets(perSecond(refusalLogInterval), refusalLogBurst, maxRefusalAddresses, now),
		throttled: newBuckets(perSecond(throttledLogInterval), 1, maxRefusalAddresses, now),
		all:       rate.NewLimiter(rate.Every(totalRefusalLogInterval), totalRefusalLogBurst),
	}
}

// Refusal reports whether a refusal of the remote address is to be logged, and if so,
// how many of all addresses were left out since the last that was.
func (r *RefusalLog) Refusal(remote string) (leftOut int64, ok bool) {
	if !r.allow(r.refused, remote) {
		r.suppressed.Add(1)
		return 0, false
	}
	return r.suppressed.Swap(0), true
}

// throttling reports whether it is to be logged that the remote address is throttled.
func (r *RefusalLog) throttling(remote string) bool { return r.allow(r.throttled, remote) }

func (r *RefusalLog) allow(b *buckets, remote string) bool {
	key, _ := addressKey(remote) // loopback, which is nobody's in particular, is one address too
	return b.take(key) && r.all.AllowN(r.now(), 1)
}
