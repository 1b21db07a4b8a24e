package delivery

import (
	"errors"
	"runtime"
	"sync"
	"syscall"
)

// Plain is what a connection has whose socket takes the client's bytes as they are, which
// is not so behind TLS or WebSocket.
type Plain interface {
	// Plain returns the socket, or nil if it is not to be written to past Write.
	Plain() syscall.RawConn
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
	w.queue = append(w.queue, c)
	if w.busy < runtime.GOMAXPROCS(0) {
		w.busy++
		go w.run()
	}
}

// take returns the next connections, none if the writer is to end.
func (w *writers) take(into []*Conn) []*Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := copy(into[:turn], w.queue[w.head:])
	clear(w.queue[w.head : w.head+n]) // a connection that is over must not be kept
	switch w.head += n; {
	case n == 0:
		w.busy--
		fallthrough
	case w.head == len(w.queue):
		w.queue, w.head = w.queue[:0], 0
	}
	return into[:n]
}

func (w *writers) run() {
	batch := make([]*Conn, turn)
	a := newAttempt()
	for {
		conns := w.take(batch)
		if len(conns) == 0 {
			return
		}
		for _, c := range conns {
			c.writeNow(a)
		}
		runtime.Gosched()
	}
}

// attempt is a write that does not wait.
type attempt struct {
	p   []byte
	n   int
	err error
	do  func(fd uintptr) bool // made once: a closure for each write would be garbage
}

func newAttempt() *attempt {
	a := &attempt{}
	a.do = func(fd uintptr) bool {
		for {
			a.n, a.err = syscall.Write(int(fd), a.p)
			if !errors.Is(a.err, syscall.EINTR) {
				return true // whatever came of it: false would be to wait
			}
		}
	}
	return a
}

// write returns how much of p the socket took; all of it, or it is full, or there is an
// error.
func (a *attempt) write(socket syscall.RawConn, p []byte) (n int, err error) {
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
