package authhook

import (
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
)

const (
	// longestTimer bounds a timer's sleep, since a timer does not see the
	// wall clock being set, by which tokens expire.
	longestTimer = time.Hour
	// closedFor is how long a client is closed before a sweep forgets it. Its
	// will may still be sent in its name.
	closedFor = time.Minute
	// leastSweep is the least number of connects between two sweeps.
	leastSweep = 1024
)

// live is the identity behind one connection.
type live struct {
	cl *mqtt.Client
	id atomic.Pointer[Identity]

	mu    sync.Mutex // guards what follows
	timer *time.Timer
	ended bool // forgotten or being ended: the timer stays quiet
}

// registry knows the identity of every connected client and tells when one's
// token expires.
type registry struct {
	now     func() time.Time
	expired func(*live)

	clients    sync.Map // *mqtt.Client → *live
	count      atomic.Int64
	untilSweep atomic.Int64
}

// get returns the client's entry, or nil.
func (r *registry) get(cl *mqtt.Client) *live {
	v, _ := r.clients.Load(cl)
	return asLive(v)
}

// asLive is the type of all that the map holds; nil stays nil.
func asLive(v any) *live {
	l, _ := v.(*live)
	return l
}

// set gives the client an identity, in place of the one that it has if any, and
// returns its entry.
func (r *registry) set(cl *mqtt.Client, id *Identity) *live {
	l := r.get(cl)
	if l == nil {
		fresh := &live{cl: cl}
		fresh.id.Store(id)
		stored, loaded := r.clients.LoadOrStore(cl, fresh)
		l = asLive(stored)
		if !loaded {
			r.count.Add(1)
			if r.untilSweep.Add(-1) < 0 {
				r.sweep()
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id.Store(id)
	switch {
	case l.ended:
	case l.timer == nil:
		l.timer = time.AfterFunc(r.sleep(id), func() { r.wake(l) })
	default:
		l.timer.Reset(r.sleep(id))
	}
	return l
}

func (r *registry) sleep(id *Identity) time.Duration {
	return min(max(id.Expires.Sub(r.now()), 0), longestTimer)
}

// wake runs when the timer has: it reports the expiry, or sleeps on if the token
// was renewed or is valid for longer than a timer sleeps.
func (r *registry) wake(l *live) {
	l.mu.Lock()
	id := l.id.Load()
	if l.ended {
		l.mu.Unlock()
		return
	}
	if left := r.sleep(id); left > 0 {
		l.timer.Reset(left)
		l.mu.Unlock()
		return
	}
	l.ended = true
	l.mu.Unlock()
	r.expired(l)
}

// forget drops the client. It is harmless to repeat.
func (r *registry) forget(cl *mqtt.Client) {
	v, ok := r.clients.LoadAndDelete(cl)
	if !ok {
		return
	}
	r.count.Add(-1)
	asLive(v).quiet()
}

// quiet stops the timer for good.
func (l *live) quiet() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if l.timer != nil {
		l.timer.Stop()
	}
}

// sweep forgets clients that were closed without OnDisconnect: when CONNACK
// could not be written, when another hook refused them, when a packet of theirs
// made Mochi panic. It runs once in as many connects as there are clients.
func (r *registry) sweep() {
	now := r.now()
	r.each(func(l *live) {
		if l.cl.Closed() && now.Sub(time.Unix(l.cl.StopTime(), 0)) > closedFor {
			r.forget(l.cl)
		}
	})
	r.untilSweep.Store(max(leastSweep, r.count.Load()))
}

// each calls fn for every client.
func (r *registry) each(fn func(*live)) {
	r.clients.Range(func(_, v any) bool {
		fn(asLive(v))
		return true
	})
}
