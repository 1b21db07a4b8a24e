package authhook

import (
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
)

const (
	// maxTimer bounds the duration of a timer. Tokens expire by the wall
	// clock, and a timer does not notice when that is set.
	maxTimer = time.Hour
	// sweepAfterClose is how long a client is closed before a sweep forgets it.
	// Until then its will may still be sent.
	sweepAfterClose = time.Minute
	// minConnectsPerSweep is the smallest number of connects between two
	// sweeps.
	minConnectsPerSweep = 1024
)

// liveClient is one connected client with its identity.
type liveClient struct {
	cl *mqtt.Client
	id atomic.Pointer[Identity]

	mu    sync.Mutex // guards what follows
	timer *time.Timer
	ended bool // forgotten or being ended: the timer stays quiet
}

// registry holds the identity of every connected client, and calls expired
// when its token expires.
type registry struct {
	now     func() time.Time
	expired func(*liveClient)

	clients    sync.Map // *mqtt.Client → *live
	count      atomic.Int64
	untilSweep atomic.Int64
}

// get returns the client's entry, or nil.
func (r *registry) get(cl *mqtt.Client) *liveClient {
	v, _ := r.clients.Load(cl)
	return asLiveClient(v)
}

// asLiveClient is the type of all that the map holds; nil stays nil.
func asLiveClient(v any) *liveClient {
	l, _ := v.(*liveClient)
	return l
}

// set gives the client an identity, in place of the one that it has if any, and
// returns its entry.
func (r *registry) set(cl *mqtt.Client, id *Identity) *liveClient {
	l := r.get(cl)
	if l == nil {
		fresh := &liveClient{cl: cl}
		fresh.id.Store(id)
		stored, loaded := r.clients.LoadOrStore(cl, fresh)
		l = asLiveClient(stored)
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
		l.timer = time.AfterFunc(r.timerDelay(id), func() { r.onTimer(l) })
	default:
		l.timer.Reset(r.timerDelay(id))
	}
	return l
}

func (r *registry) timerDelay(id *Identity) time.Duration {
	return min(max(id.Expires.Sub(r.now()), 0), maxTimer)
}

// onTimer runs when the timer fires. It reports the expiry, or sets the timer again
// if the token was renewed or is valid for longer than maxTimer.
func (r *registry) onTimer(l *liveClient) {
	l.mu.Lock()
	id := l.id.Load()
	if l.ended {
		l.mu.Unlock()
		return
	}
	if left := r.timerDelay(id); left > 0 {
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
	asLiveClient(v).stopTimer()
}

// stopTimer stops the timer for good.
func (l *liveClient) stopTimer() {
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
	r.each(func(l *liveClient) {
		if l.cl.Closed() && now.Sub(time.Unix(l.cl.StopTime(), 0)) > sweepAfterClose {
			r.forget(l.cl)
		}
	})
	r.untilSweep.Store(max(minConnectsPerSweep, r.count.Load()))
}

// each calls fn for every client.
func (r *registry) each(fn func(*liveClient)) {
	r.clients.Range(func(_, v any) bool {
		fn(asLiveClient(v))
		return true
	})
}
