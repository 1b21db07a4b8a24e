// Package ratelimit counts what an address, an account or a phone number does in a
// time, in bounded memory. The counts are this process's own.
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
// quiet the longest is forgotten.
type Limiter struct {
	every time.Duration // one more is allowed after this time
	burst int           // so many at once
	most  int           // keys remembered
	now   func() time.Time

	mu     sync.Mutex // guards what follows
	quiet  *list.List // of *bucket, the most recently used first
	bucket map[string]*list.Element
}

// bucket is a token bucket: it fills up to burst with one token every so often.
type bucket struct {
	key    string
	tokens float64   // at the time at
	at     time.Time //
}

// mostBuckets is 50,000: some 10 MB when an attack fills it.
const mostBuckets = 50_000

// New returns a Limiter that allows each key burst at once and burst in every
// period. now tells the time.
func New(burst int, period time.Duration, now func() time.Time) *Limiter {
	return &Limiter{
		every: period / time.Duration(burst), burst: burst, most: mostBuckets, now: now,
		quiet: list.New(), bucket: map[string]*list.Element{},
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
		if l.quiet.Len() >= l.most {
			oldest := l.quiet.Back()
			delete(l.bucket, oldest.Value.(*bucket).key)
			l.quiet.Remove(oldest)
		}
		e = l.quiet.PushFront(&bucket{key: key, tokens: float64(l.burst), at: now})
		l.bucket[key] = e
	}
	l.quiet.MoveToFront(e)
	b := e.Value.(*bucket)
	if passed := now.Sub(b.at); passed > 0 {
		b.tokens = min(b.tokens+float64(passed)/float64(l.every), float64(l.burst))
		b.at = now
	}
	if b.tokens >= float64(n) {
		b.tokens -= float64(n)
		return nil
	}
	return &tooMany{after: time.Duration((float64(n) - b.tokens) * float64(l.every))}
}

// Forgive takes one back that Allow has counted: it was no attempt after all.
func (l *Limiter) Forgive(key string) { l.ForgiveN(key, 1) }

// ForgiveN takes n back that AllowN has counted.
func (l *Limiter) ForgiveN(key string, n int) {
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
	return l.quiet.Len()
}

// tooMany is a refusal that knows when it ends.
type tooMany struct {
	after time.Duration
}

var errTooMany = chat.Refuse(chat.CodeRateLimited, "Too many attempts. Wait before the next.")

// Error returns the refusal's text.
func (e *tooMany) Error() string { return errTooMany.Error() }

// RetryAfter returns how long to wait.
func (e *tooMany) RetryAfter() time.Duration { return e.after }

// Unwrap returns the refusal.
func (e *tooMany) Unwrap() error { return errTooMany }

// Address returns what an address is counted as: IPv6 users own a /64, so that
// one person is not 2^64.
func Address(a netip.Addr) string {
	if a.Is6() && !a.Is4In6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.Addr().String()
		}
	}
	return a.Unmap().String()
}
