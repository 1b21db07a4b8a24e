// Package proxy is a TCP proxy that injects network faults. It cuts
// connections in the middle of a packet, delays them, stalls them, or holds
// back the server's bytes. Listen opens a link; the methods of Link inject the
// faults.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Link forwards the connections of one local port to another.
type Link struct {
	Name string
	Port int

	target string
	lis    net.Listener
	done   chan struct{}

	mu     sync.Mutex // guards conns and closed
	conns  map[*conn]struct{}
	closed bool

	delay atomic.Int64 // nanoseconds by which each piece is delayed
	gates [2]gate      // by direction
	cuts  atomic.Int64
	wg    sync.WaitGroup
}

// Directions.
const (
	toServer = 0 // client to server
	toClient = 1 // server to client
)

// gate stops the pieces of one direction while it is shut. Forwarding holds the
// read lock, so nothing passes once shut has returned.
type gate struct {
	mu     sync.RWMutex
	opened chan struct{} // nil while open; closed when it opens again
}

type conn struct {
	client, server net.Conn
	closed         chan struct{}
	once           sync.Once
	cutAfter       [2]atomic.Int64 // 0, or 1 plus the number of bytes of the next piece that pass before the end
}

// Listen opens a link to a port of this machine.
func Listen(name string, target int) (*Link, error) {
	lis, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", name, err)
	}
	l := &Link{
		Name: name, Port: lis.Addr().(*net.TCPAddr).Port, target: fmt.Sprintf("127.0.0.1:%d", target),
		lis: lis, done: make(chan struct{}), conns: map[*conn]struct{}{},
	}
	l.wg.Go(l.accept)
	return l, nil
}

// Close ends the link and all its connections.
func (l *Link) Close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed = true
	close(l.done)
	l.mu.Unlock()
	_ = l.lis.Close()
	l.Reset()
	l.wg.Wait()
}

func (l *Link) accept() {
	for {
		client, err := l.lis.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // too many files, perhaps
			continue
		}
		l.wg.Go(func() { l.serve(client) })
	}
}

func (l *Link) serve(client net.Conn) {
	d := net.Dialer{Timeout: 2 * time.Second}
	server, err := d.DialContext(context.Background(), "tcp", l.target)
	if err != nil {
		reset(client) // reset, reset, as if nobody listened
		return
	}
	c := &conn{client: client, server: server, closed: make(chan struct{})}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		c.end(false)
		return
	}
	l.conns[c] = struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.conns, c)
		l.mu.Unlock()
	}()
	var pumps sync.WaitGroup
	pumps.Go(func() { l.pump(c, toServer, client, server) })
	pumps.Go(func() { l.pump(c, toClient, server, client) })
	pumps.Wait()
}

func (l *Link) pump(c *conn, dir int, from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !l.forward(c, dir, to, buf[:n]) {
			return
		}
		if err != nil {
			c.end(false)
			return
		}
	}
}

// forward forwards a piece and reports whether the connection continues.
func (l *Link) forward(c *conn, dir int, to net.Conn, b []byte) bool {
	if d := time.Duration(l.delay.Load()); d > 0 {
		if !waitOpen(c, time.After(d)) {
			return false
		}
	}
	g := &l.gates[dir]
	for {
		g.mu.RLock()
		if g.opened == nil {
			break
		}
		opened := g.opened
		g.mu.RUnlock()
		select {
		case <-opened:
		case <-c.closed:
			return false
		}
	}
	defer g.mu.RUnlock()
	select {
	case <-c.closed:
		return false // bytes that are held back when the connection ends are lost
	default:
	}
	if cut := c.cutAfter[dir].Load(); cut > 0 && int(cut)-1 < len(b) {
		_, _ = to.Write(b[:cut-1]) // the connection ends even if this write fails
		c.end(true)
		return false
	}
	// A receiver that does not read must not hold the gate's lock.
	if err := to.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return false
	}
	if _, err := to.Write(b); err != nil {
		c.end(false)
		return false
	}
	return true
}

func waitOpen(c *conn, ch <-chan time.Time) bool {
	select {
	case <-ch:
		return true
	case <-c.closed:
		return false
	}
}

// end closes both connections, with RST (hard) or with FIN.
func (c *conn) end(hard bool) {
	c.once.Do(func() {
		close(c.closed)
		if hard {
			reset(c.client)
			reset(c.server)
			return
		}
		_ = c.client.Close()
		_ = c.server.Close()
	})
}

func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// Cut ends about the given share of the connections, each in the middle of its
// next piece, or after half a second. It returns how many.
func (l *Link) Cut(rnd *rand.Rand, share float64) int {
	n := 0
	for _, c := range l.snapshot() {
		if rnd.Float64() >= share {
			continue
		}
		n++
		// 0 to 60 bytes, since packets here have 4 to some hundred bytes.
		c.cutAfter[rnd.IntN(2)].Store(int64(rnd.IntN(60)) + 1)
		hard := rnd.IntN(2) == 0
		time.AfterFunc(500*time.Millisecond, func() { c.end(hard) })
	}
	l.cuts.Add(int64(n))
	return n
}

// Reset ends all connections at once and returns how many there were.
func (l *Link) Reset() int {
	all := l.snapshot()
	for _, c := range all {
		c.end(true)
	}
	return len(all)
}

func (l *Link) snapshot() []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		all = append(all, c)
	}
	return all
}

// Cuts returns how many connections Cut has ended.
func (l *Link) Cuts() int { return int(l.cuts.Load()) }

// Delay delays every piece by d. 0 ends the delay.
func (l *Link) Delay(d time.Duration) { l.delay.Store(int64(d)) }

// Stall lets nothing pass in either direction until release is called.
func (l *Link) Stall() (release func()) {
	a, b := l.gates[toServer].shut(), l.gates[toClient].shut()
	return func() { a(); b() }
}

// HoldReplies holds back the server's bytes until release is called. When it returns,
// every earlier byte has been written to the client. Bytes that are held back when a
// connection ends are lost.
func (l *Link) HoldReplies() (release func()) { return l.gates[toClient].shut() }

func (g *gate) shut() (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil {
		return func() {} // another caller has it shut, and opens it
	}
	opened := make(chan struct{})
	g.opened = opened
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.opened = nil
		close(opened)
	}
}
