package outbox

import (
	"errors"
	"runtime"
	"sync"
	"syscall"
)

// DirectSocket is what a connection has whose socket takes the client's bytes as they are, which
// is not so behind TLS or WebSocket.
type DirectSocket interface {
	// DirectSocket returns the socket, or nil if it is not to be written to past Write.
	DirectSocket() syscall.RawConn
}

// writers passes on what waits on connections with a plain socket, without ever waiting
// for one: a message to a group of ten thousand needs a handful of goroutines then, not ten
// thousand. A connection whose socket is full is given a goroutine of its own, which waits.
//
// Its mutex is taken after a Conn's.
type writers struct {
	mu    sync.Mutex
	queue []*Conn // have something to be written
	head  int     // of them, those that were taken
	busy  int     // goroutines
}

// turn is how many connections a writer serves before it lets others have the processor.
const turn = 32

// add has a connection's outbox written.
func (w *writers) add(c *Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.head > len(w.queue)/2 && len(w.queue) == cap(w.queue) {
		n := copy(w.queue, w.queue[w.head:]) // under load it is never empty
		clear(w.queue[n:])
		w.queue, w.head = w.queue[:n], 0
	}
	w.queue = append(w.queue, c)
	if w.busy < runtime.GOMAXPROCS(0) {
		w.busy++
		go w.run()
	}
}

// takeLocked moves the next connections to into and returns how many they are.
func (w *writers) takeLocked(into *[turn]*Conn) int {
	n := copy(into[:], w.queue[w.head:])
	clear(w.queue[w.head : w.head+n]) // a connection that is over must not be kept
	if w.head += n; w.head == len(w.queue) {
		w.queue, w.head = w.queue[:0], 0
	}
	return n
}

func (w *writers) run() {
	var h Helper
	for {
		w.mu.Lock()
		n := w.takeLocked(&h.conns)
		if n == 0 {
			w.busy--
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		h.write(n)
		runtime.Gosched()
	}
}

// HelpWrite writes some of what waits if that is much. Who fills outboxes calls it, since it
// could do so faster than the writers empty them: the sessions would fall behind, and to
// catch up costs more than to write.
func (l *Limits) HelpWrite(h *Helper) {
	w := &l.writers
	w.mu.Lock()
	waiting := len(w.queue) - w.head
	w.mu.Unlock()
	for ; waiting > 2*turn; waiting -= turn {
		w.mu.Lock()
		n := w.takeLocked(&h.conns)
		w.mu.Unlock()
		h.write(n)
	}
}

// Helper is what is needed to write for some connections. It belongs to one goroutine.
type Helper struct {
	conns   [turn]*Conn
	attempt attempt
}

func (h *Helper) write(n int) {
	for i, c := range h.conns[:n] {
		c.writeNow(&h.attempt)
		h.conns[i] = nil
	}
}

// attempt is a write that does not wait.
type attempt struct {
	p   []byte
	n   int
	err error
	do  func(fd uintptr) bool // try, bound once: a closure for each write would be garbage
}

// try does one system call.
func (a *attempt) try(fd uintptr) bool {
	for {
		a.n, a.err = syscall.Write(int(fd), a.p)
		if !errors.Is(a.err, syscall.EINTR) {
			return true // whatever came of it: false would be to wait
		}
	}
}

// write returns how much of p the socket took; all of it, or it is full, or there is an
// error.
func (a *attempt) write(socket syscall.RawConn, p []byte) (n int, err error) {
	if a.do == nil {
		a.do = a.try
	}
	a.p, a.n, a.err = p, 0, nil
	err = socket.Write(a.do)
	a.p = nil
	switch {
	case err != nil:
		return 0, err
	case errors.Is(a.err, syscall.EAGAIN):
		return 0, nil
	case a.err != nil:
		return 0, a.err
	}
	return a.n, nil
}
