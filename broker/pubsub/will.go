package pubsub

import (
	"sync"
	"time"

	"mynah/broker/outbox"
	"mynah/broker/session"
)

// Wills holds the wills that wait for their delay (MQTT 5, 3.1.3.2.2), by session. The zero
// value is empty. It is safe for concurrent use.
type Wills struct {
	mu      sync.Mutex
	waiting map[session.Key]*Will
}

// Will is a will that waits.
type Will struct {
	conn  *outbox.Conn // whose it is
	timer *time.Timer
	fire  func()
}

// Wait calls fire after a delay, unless the session's client is back by then. It returns nil
// if the client has been back already, so that the will of a later connection waits.
func (w *Wills) Wait(k session.Key, conn *outbox.Conn, delay time.Duration, fire func()) *Will {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = map[session.Key]*Will{}
	}
	if other := w.waiting[k]; other != nil && other.conn.AttachedAfter(conn) {
		return nil
	}
	next := &Will{conn: conn, fire: fire}
	next.timer = time.AfterFunc(delay, func() {
		if w.Cancel(k, next) {
			fire()
		}
	})
	w.waiting[k] = next
	return next
}

// Cancel takes a will out, which is not fired then. It reports false if it does not wait any
// more.
func (w *Wills) Cancel(k session.Key, is *Will) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if is.timer.Stop(); w.waiting[k] != is {
		return false
	}
	delete(w.waiting, k)
	return true
}

// ClientReturned says that a session's client is back: a will that waits is not sent, or is
// sent at once if the client is back with another session.
func (w *Wills) ClientReturned(k session.Key, resumed bool) {
	w.mu.Lock()
	next := w.waiting[k]
	delete(w.waiting, k)
	w.mu.Unlock()
	if next == nil {
		return
	}
	next.timer.Stop()
	if !resumed {
		next.fire()
	}
}

// SessionEnded sends the will of a session that has ended: there is nobody to wait for, and
// a client that makes session after session is not to leave a will in memory for each. It may
// be called with the locks of the session held.
func (w *Wills) SessionEnded(k session.Key) {
	w.mu.Lock()
	next := w.waiting[k]
	delete(w.waiting, k)
	w.mu.Unlock()
	if next != nil {
		next.timer.Stop()
		go next.fire() // without those locks
	}
}

// FireAll sends all that wait.
func (w *Wills) FireAll() {
	w.mu.Lock()
	waiting := w.waiting
	w.waiting = nil
	w.mu.Unlock()
	for _, next := range waiting {
		next.timer.Stop()
		next.fire()
	}
}
