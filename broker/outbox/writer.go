package outbox

import (
	"errors"
	"runtime"
	"sync"
	"syscall"
)

// DirectSocket is implemented by a connection that can be written to through its socket, which
// is not possible with TLS or WebSocket.
type DirectSocket interface {
	// DirectSocket returns the socket, or nil if only Write may be used.
	DirectSocket() syscall.RawConn
}

// writers writes the outboxes of connections with a plain socket, without ever blocking on
// one. So a message to a group of ten thousand needs a few goroutines, not ten thousand. A
// connection whose socket is full gets a goroutine of its own, which blocks.
//
// Its mutex is taken after a Conn's.
type writers struct {
	mu      sync.Mutex
	queue   []*Conn // connections with waiting bytes
	head    int     // index of the first connection that was not taken yet
	running int     // goroutines
}

// writerTurn is the number of connections that a writer serves before it yields the
// processor.
const writerTurn = 32

// enqueue queues a connection for the writers.
func (w *writers) enqueue(c *Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.head > len(w.queue)/2 && len(w.queue) == cap(w.queue) {
		n := copy(w.queue, w.queue[w.head:]) // under load it is never empty
		clear(w.queue[n:])
		w.queue, w.head = w.queue[:n], 0
	}
	w.queue = append(w.queue, c)
	if w.running < runtime.GOMAXPROCS(0) {
		w.running++
		go w.run()
	}
}

// takeLocked moves the next connections to into and returns how many they are.
func (w *writers) takeLocked(into *[writerTurn]*Conn) int {
	n := copy(into[:], w.queue[w.head:])
	clear(w.queue[w.head : w.head+n]) // do not keep an ended connection in memory
	if w.head += n; w.head == len(w.queue) {
		w.queue, w.head = w.queue[:0], 0
	}
	return n
}

func (w *writers) run() {
	var h WriteHelper
	for {
		w.mu.Lock()
		n := w.takeLocked(&h.conns)
		if n == 0 {
			w.running--
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		h.write(n)
		runtime.Gosched()
	}
}

// WriteSome writes for some connections if many are queued. Code that fills outboxes calls
// it, since it can be faster than the writers. Otherwise sessions would fall behind, and to
// catch up costs more than to write.
func (l *Limits) WriteSome(h *WriteHelper) {
	w := &l.writers
	w.mu.Lock()
	waiting := len(w.queue) - w.head
	w.mu.Unlock()
	for ; waiting > 2*writerTurn; waiting -= writerTurn {
		w.mu.Lock()
		n := w.takeLocked(&h.conns)
		w.mu.Unlock()
		h.write(n)
	}
}

// WriteHelper is the buffer for WriteSome. It belongs to one goroutine.
type WriteHelper struct {
	conns   [writerTurn]*Conn
	attempt writeAttempt
}

func (h *WriteHelper) write(n int) {
	for i, c := range h.conns[:n] {
		c.writeNow(&h.attempt)
		h.conns[i] = nil
	}
}

// writeAttempt is a write that does not block.
type writeAttempt struct {
	p       []byte
	n       int
	err     error
	tryFunc func(fd uintptr) bool // try, bound once: a closure for each write would be garbage
}

// try does one system call.
func (a *writeAttempt) try(fd uintptr) bool {
	for {
		a.n, a.err = syscall.Write(int(fd), a.p)
		if !errors.Is(a.err, syscall.EINTR) {
			return true // true in any case: with false, RawConn would block
		}
	}
}

// write returns how many bytes of p the socket took. If not all, the socket is full or
// there is an error.
func (a *writeAttempt) write(socket syscall.RawConn, p []byte) (n int, err error) {
	if a.tryFunc == nil {
		a.tryFunc = a.try
	}
	a.p, a.n, a.err = p, 0, nil
	err = socket.Write(a.tryFunc)
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
