package authhook

import (
	"hash/maphash"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"mynah/chat"
)

// LimiterConfig bounds how much one client may ask for. Zero means the default.
type LimiterConfig struct {
	// PublishRate is how many messages a subject may publish per second, over
	// all of its connections and on average; default 0, which is no limit. Who
	// publishes faster is slowed down: see Limiter.Publish.
	PublishRate float64
	// PublishBurst is how many it may publish at once; default twice the
	// rate, at least 1.
	PublishBurst int
	// FailureRate is how many refused CONNECTs per second an address may
	// cause for long; default DefaultFailureRate, negative is no limit.
	// FailureBurst is how many at once, default DefaultFailureBurst. That is far above what a broken device or
	// an office behind one address does, and far below what would cost us.
	FailureRate  float64
	FailureBurst int
	// Entries is how many subjects and how many addresses are remembered at
	// most, default 65,536 each. What has its whole burst again is forgotten.
	Entries int
	// Now is the clock, default time.Now.
	Now func() time.Time
}

// Defaults of LimiterConfig.
const (
	DefaultFailureRate  = 10
	DefaultFailureBurst = 200
)

// Limiter holds clients to their rates. It is safe for concurrent use; a nil
// *Limiter limits nothing.
type Limiter struct {
	publish  *buckets // nil for no limit
	failures *buckets // nil for no limit
}

// NewLimiter returns a limiter for the configuration.
func NewLimiter(cfg LimiterConfig) *Limiter {
	if cfg.PublishBurst <= 0 {
		cfg.PublishBurst = max(1, int(2*cfg.PublishRate))
	}
	if cfg.FailureRate == 0 {
		cfg.FailureRate = DefaultFailureRate
	}
	if cfg.FailureBurst <= 0 {
		cfg.FailureBurst = DefaultFailureBurst
	}
	if cfg.Entries <= 0 {
		cfg.Entries = 1 << 16
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l := &Limiter{}
	if cfg.PublishRate > 0 {
		l.publish = newBuckets(cfg.PublishRate, cfg.PublishBurst, cfg.Entries, cfg.Now)
	}
	if cfg.FailureRate > 0 {
		l.failures = newBuckets(cfg.FailureRate, cfg.FailureBurst, cfg.Entries, cfg.Now)
	}
	return l
}

var refusedPublishRate = chat.Refuse(chat.CodeRateLimited, "you are sending too fast; wait a moment")

// maxPublishWait is how long a publish may have to wait for its turn. A single
// connection, which has one publish waiting at most, is never refused at a rate of one
// message in that time, or more.
const maxPublishWait = 5 * time.Second

// Publish counts one publish of the identity's subject. It returns how long the
// publish has to wait so that the subject keeps to its rate: 0 mostly. If that is longer
// than 5 s, since many of the subject's connections wait already or since the rate is
// very low, it counts nothing and returns a *chat.Error with CodeRateLimited. Roles that
// speak for the server (service, archiver, admin) are not limited.
func (l *Limiter) Publish(id *Identity) (wait time.Duration, err error) {
	if l == nil || l.publish == nil || id == nil {
		return 0, nil
	}
	if r := id.rights(); r != nil && r.unlimited {
		return 0, nil
	}
	wait, ok := l.publish.reserve(id.Subject, maxPublishWait)
	if !ok {
		return 0, refusedPublishRate
	}
	return wait, nil
}

// AllowConnect reports whether the remote address ("ip:port" or "ip") may try a
// token. It counts nothing.
//
// Loopback is exempt: whoever sits there is the operator or a proxy that did not
// pass the client's address on, and then one client's failures would be
// everybody's.
func (l *Limiter) AllowConnect(remote string) bool {
	if l == nil || l.failures == nil {
		return true
	}
	key, exempt := addressKey(remote)
	return exempt || l.failures.peek(key)
}

// Failed counts a failed attempt of the remote address and reports whether it
// was the one that used up its burst.
func (l *Limiter) Failed(remote string) (exhausted bool) {
	if l == nil || l.failures == nil {
		return false
	}
	key, exempt := addressKey(remote)
	if exempt {
		return false
	}
	return l.failures.take(key) && !l.failures.peek(key)
}

// addressKey returns what an address is counted under: an IPv4 address, or the
// /64 that one IPv6 host commonly has to itself.
func addressKey(remote string) (key string, exempt bool) {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host, false
	}
	ip = ip.Unmap().WithZone("")
	if ip.IsLoopback() {
		return "", true
	}
	if ip.Is6() {
		if net64, err := ip.Prefix(64); err == nil {
			return net64.Addr().String(), false
		}
	}
	return ip.String(), false
}

// bucketShards spreads the keys so that publishers do not queue for one lock.
const bucketShards = 16

// buckets is a bounded map of token buckets. A bucket that is full again is as
// good as none, so forgetting it changes nothing.
type buckets struct {
	rate   rate.Limit
	burst  int
	now    func() time.Time
	seed   maphash.Seed
	shards [bucketShards]bucketShard
}

type bucketShard struct {
	mu        sync.Mutex // guards what follows
	held      map[string]*rate.Limiter
	limit     int       // most entries
	nextSweep time.Time // not to look for full ones before
}

func newBuckets(perSecond float64, burst, entries int, now func() time.Time) *buckets {
	b := &buckets{rate: rate.Limit(perSecond), burst: burst, now: now, seed: maphash.MakeSeed()}
	for i := range b.shards {
		b.shards[i].held = make(map[string]*rate.Limiter)
		b.shards[i].limit = max(1, entries/bucketShards)
	}
	return b
}

func (b *buckets) shard(key string) *bucketShard {
	return &b.shards[maphash.String(b.seed, key)%bucketShards]
}

// take takes one from the key's bucket and reports whether there was one.
func (b *buckets) take(key string) bool {
	_, ok := b.reserve(key, 0)
	return ok
}

// reserve takes one from the key's bucket that is there or will be within patience. It
// returns when, and false if it has taken none.
func (b *buckets) reserve(key string, patience time.Duration) (wait time.Duration, ok bool) {
	s, now := b.shard(key), b.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.held[key]
	if !ok {
		s.makeRoom(now, b.burst)
		l = rate.NewLimiter(b.rate, b.burst)
		s.held[key] = l
	}
	r := l.ReserveN(now, 1)
	if wait = r.DelayFrom(now); wait > patience {
		r.CancelAt(now)
		return 0, false
	}
	return wait, true
}

// peek reports whether there is one in the key's bucket.
func (b *buckets) peek(key string) bool {
	s, now := b.shard(key), b.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.held[key]
	return !ok || l.TokensAt(now) >= 1
}

// makeRoom keeps the shard below its limit: it forgets full buckets, at most
// once a second since that looks at all of them, and otherwise any one. s.mu is
// held.
func (s *bucketShard) makeRoom(now time.Time, burst int) {
	if len(s.held) < s.limit {
		return
	}
	if !now.Before(s.nextSweep) {
		s.nextSweep = now.Add(time.Second)
		for key, l := range s.held {
			if l.TokensAt(now) >= float64(burst) {
				delete(s.held, key)
			}
		}
	}
	for key := range s.held {
		if len(s.held) < s.limit {
			return
		}
		delete(s.held, key)
	}
}
