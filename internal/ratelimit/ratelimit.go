// Package ratelimit limits how often an address, an account or a phone number may do
// something.
//
// What it guarantees:
//
//   - Memory is bounded: of more than 50,000 keys the one unused for longest is forgotten.
//   - A refusal is a *chat.Error that says when to try again (RetryAfter).
//   - Refused attempts do not count.
//
// The counts are this process's own.
package ratelimit

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"mynah/chat"
)

// Limiter counts what each key does, with a token bucket for each. It
// remembers a bounded number of them: when it is full the one that has been
// unused for longest is forgotten.
type Limiter struct {
	interval time.Duration // one more is allowed after this time
	burst    int           // so many at once
	maxKeys  int           // keys remembered
	now      func() time.Time

	mu     sync.Mutex // guards what follows
	byUse  *list.List // of *bucket, the most recently used first
	bucket map[string]*list.Element
}

// bucket is a token bucket: it fills up to burst with one token every so often.
type bucket struct {
	key    string
	tokens float64 // at the time at
	at     time.Time
}

// maxBuckets is 50,000: some 10 MB when an attack fills it.
const maxBuckets = 50_000

// New returns a Limiter that allows each key burst at once and burst in every
// period. now tells the time.
func New(burst int, period time.Duration, now func() time.Time) *Limiter {
	return &Limiter{
		interval: period / time.Duration(burst), burst: burst, maxKeys: maxBuckets, now: now,
		byUse: list.New(), bucket: map[string]*list.Element{},
	}
}

// Allow counts one for the key. If that is one too many it returns an error that
// says when to try again (RetryAfter); refused attempts do not count.
func (l *Limiter) Allow(key string) error { return l.AllowN(key, 1) }

// AllowN counts n for the key, or none if they are too many. More than the burst are
// never allowed.
func (l *Limiter) AllowN(key string, n int) error {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.bucket[key]
	if !ok {
		if l.byUse.Len() >= l.maxKeys {
			oldest := l.byUse.Back()
			delete(l.bucket, oldest.Value.(*bucket).key)
			l.byUse.Remove(oldest)
		}
		e = l.byUse.PushFront(&bucket{key: key, tokens: float64(l.burst), at: now})
		l.bucket[key] = e
	}
	l.byUse.MoveToFront(e)
	b := e.Value.(*bucket)
	if passed := now.Sub(b.at); passed > 0 {
		b.tokens = min(b.tokens+float64(passed)/float64(l.interval), float64(l.burst))
		b.at = now
	}
	if b.tokens >= float64(n) {
		b.tokens -= float64(n)
		return nil
	}
	return &limitError{after: time.Duration((float64(n) - b.tokens) * float64(l.interval))}
}

// Refund takes one back that Allow has counted: it was no attempt after all.
func (l *Limiter) Refund(key string) { l.RefundN(key, 1) }

// RefundN takes n back that AllowN has counted.
func (l *Limiter) RefundN(key string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.bucket[key]; ok {
		b := e.Value.(*bucket)
		b.tokens = min(b.tokens+float64(n), float64(l.burst))
	}
}

// Len returns how many keys are remembered.
func (l *Limiter) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byUse.Len()
}

// limitError is a refusal that knows when it ends.
type limitError struct {
	after time.Duration
}

var errTooMany = chat.Refuse(chat.CodeRateLimited, "Too many attempts. Wait before the next.")

// Error returns the refusal's text.
func (e *limitError) Error() string { return errTooMany.Error() }

// RetryAfter returns how long to wait.
func (e *limitError) RetryAfter() time.Duration { return e.after }

// Unwrap returns the refusal.
func (e *limitError) Unwrap() error { return errTooMany }

// AddressKey returns what an address is counted as: IPv6 users own a /64, so that
// one person is not 2^64.
func AddressKey(a netip.Addr) string {
	if a.Is6() && !a.Is4In6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.Addr().String()
		}
	}
	return a.Unmap().String()
}
