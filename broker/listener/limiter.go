package listener

import (
	"net/netip"
	"sync"
)

// Limiter bounds the number of open connections, in total and from one remote
// address. Listeners with the same Limiter share its bounds. An IPv6 client
// counts by its /64, since one host has all of it.
type Limiter struct {
	max     int
	perAddr int

	mu    sync.Mutex // guards what follows
	open  int
	addrs map[netip.Addr]int // connections by address; empty without perAddr
}

// NewLimiter returns a Limiter that allows maxConns connections overall and
// maxPerAddr from one address. 0 means no bound.
func NewLimiter(maxConns, maxPerAddr int) *Limiter {
	return &Limiter{max: maxConns, perAddr: maxPerAddr, addrs: make(map[netip.Addr]int)}
}

// acquire counts one more connection, unless there are too many.
func (l *Limiter) acquire() bool {
	if l == nil || l.max <= 0 {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.max {
		return false
	}
	l.open++
	return true
}

// release undoes one acquire.
func (l *Limiter) release() {
	if l == nil || l.max <= 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
}

// acquireAddr counts one more connection from a, unless there are too many. An
// unknown address (a Unix socket) is not counted.
func (l *Limiter) acquireAddr(a netip.Addr) bool {
	if l == nil || l.perAddr <= 0 || !a.IsValid() {
		return true
	}
	key := addrKey(a)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.addrs[key] >= l.perAddr {
		return false
	}
	l.addrs[key]++
	return true
}

// releaseAddr undoes one acquireAddr.
func (l *Limiter) releaseAddr(a netip.Addr) {
	if l == nil || l.perAddr <= 0 || !a.IsValid() {
		return
	}
	key := addrKey(a)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.addrs[key]--; l.addrs[key] <= 0 {
		delete(l.addrs, key)
	}
}

func addrKey(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}
