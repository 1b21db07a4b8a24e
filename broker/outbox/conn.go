package outbox

import (
	"cmp"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ErrSlowConsumer ends a connection whose outbox cannot even take the control
// packets that the protocol demands.
var ErrSlowConsumer = errors.New("the client reads too slowly")

// Defaults of Limits.
const (
	DefaultPerConn = 256 << 10
	DefaultTotal   = 1 << 30
)

// Limits bounds what waits to be written to clients. One value is shared by
// all connections of a broker.
type Limits struct {
	PerConn int           // bytes that may wait on one connection; default 256 KiB
	Total   int64         // bytes that may wait on all together; default 1 GiB
	Timeout time.Duration // how long one write may take before the connection is given up; default 60 s

	held    atomic.Int64 // bytes of buffers in use
	writers writers
}

func (l *Limits) SetDefaults() {
	l.PerConn = cmp.Or(l.PerConn, DefaultPerConn)
	l.Total = cmp.Or(l.Total, DefaultTotal)
	l.Timeout = cmp.Or(l.Timeout, time.Minute)
}

// Held returns the bytes of all outbox buffers in use.
func (l *Limits) Held() int64 { return l.held.Load() }

// controlReserve is what Mochi's own packets may use beyond PerConn, so that a
// PINGRESP or SUBACK still gets through to a client that is behind on messages.
const controlReserve = 64 << 10

// closeLinger bounds how long Close waits for the last packets, such as a
// DISCONNECT with its reason, to leave.
const closeLinger = 2 * time.Second

// Conn is the connection that Mochi is handed. Writing to it never blocks: bytes
// go to a bounded outbox, and writers that exist only while there is something to
// write pass them on, as many as there are in each system call.
type Conn struct {
	net.Conn
	limits *Limits
	direct syscall.RawConn // nil unless the socket can be written to directly

	// OnDrain is called, without any lock, when an outbox that has refused
	// frames has room again. It is set before frames are offered; nil for nobody.
	OnDrain func()

	// Attachment is when the connection was attached to its session, in the order of
	// all attachments. It is set once, by whoever attaches it; 0 before.
	Attachment uint64

	readDeadline int64 // unix nanoseconds last set; used by the reading goroutine only

	mu            sync.Mutex
	buf           *Buffer   // frames that wait; nil if none
	flight        int       // bytes handed to the socket and not yet taken by it
	writing       bool      // a writer has it, or will
	starved       bool      // frames were refused since the last OnDrain
	writeDeadline time.Time // as it was last set
	closing       bool      // Close was called: write what is there, take nothing more
	written       sync.Cond // writing has become false; on mu
	err           error     // why the connection is broken
}

// NewConn wraps a client's connection.
func NewConn(raw net.Conn, limits *Limits) *Conn {
	c := &Conn{Conn: raw, limits: limits}
	c.written.L = &c.mu
	if p, ok := raw.(DirectSocket); ok {
		c.direct = p.DirectSocket()
	}
	return c
}

// Write takes one or more whole packets from Mochi. A QoS 0 PUBLISH is dropped when
// the outbox is full; when any other packet does not fit either, the connection
// ends, since the protocol has no way to leave it out.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.stateLocked(); err != nil {
		return 0, err
	}
	if c.waitingLocked()+len(p) > c.limits.PerConn+controlReserve && c.waitingLocked() > 0 {
		if len(p) > 0 && p[0]&0xF6 == 0x30 { // PUBLISH, QoS 0
			return len(p), nil
		}
		c.failLocked(ErrSlowConsumer)
		return 0, ErrSlowConsumer
	}
	c.appendLocked(p)
	return len(p), nil
}

// Send appends packets that must not be dropped, such as acknowledgements.
func (c *Conn) Send(p []byte) { _, _ = c.Write(p) }

// Offer appends frames if they fit. It reports false, and remembers to call
// OnDrain, if they do not or if the connection is over.
func (c *Conn) Offer(frames []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.roomLocked(len(frames)) {
		return false
	}
	c.appendLocked(frames)
	return true
}

// OfferNumbered is Offer for frames with packet ids to be filled in: the i-th at
// offsets[i], counting on from first.
func (c *Conn) OfferNumbered(frames []byte, offsets []int32, first uint16) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.roomLocked(len(frames)) {
		return false
	}
	FillPacketIDs(c.appendLocked(frames), offsets, first)
	return true
}

// OfferSignal appends a frame that nobody will miss, if the outbox is less than
// half full.
func (c *Conn) OfferSignal(frame []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stateLocked() != nil || c.waitingLocked()+len(frame) > c.limits.PerConn/2 {
		return false
	}
	c.appendLocked(frame)
	return true
}

// Force appends frames whether they fit or not; room has been asked before. It
// reports false if the connection is over.
func (c *Conn) Force(frames []byte, offsets []int32, first uint16) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stateLocked() != nil {
		return false
	}
	if len(frames) == 0 {
		return true
	}
	FillPacketIDs(c.appendLocked(frames), offsets, first)
	return true
}

// Room returns how many bytes of messages the outbox takes. An empty one takes a message
// of any size, but no more than that when all outboxes together are over their limit.
func (c *Conn) Room() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waitingLocked()
	switch {
	case c.stateLocked() != nil:
		return 0
	case c.limits.held.Load() > c.limits.Total:
		if w == 0 {
			return 1
		}
		return 0
	}
	return max(c.limits.PerConn-w, 0)
}

// HasRoom reports whether the outbox is at most half full. If it is not, OnDrain will
// be called when it is.
func (c *Conn) HasRoom() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waitingLocked()
	if w == 0 || w <= c.limits.PerConn/2 && c.limits.held.Load() <= c.limits.Total {
		return c.stateLocked() == nil
	}
	c.starved = true
	return false
}

// Idle reports whether nothing waits to be written.
func (c *Conn) Idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.writing
}

func (c *Conn) stateLocked() error {
	if c.err != nil {
		return c.err
	}
	if c.closing {
		return net.ErrClosed
	}
	return nil
}

func (c *Conn) waitingLocked() int {
	n := c.flight
	if c.buf != nil {
		n += len(c.buf.B)
	}
	return n
}

// roomLocked reports whether n more bytes of messages may wait. An empty outbox takes
// one message of any size.
func (c *Conn) roomLocked(n int) bool {
	if c.stateLocked() != nil {
		return false
	}
	w := c.waitingLocked()
	if w > 0 && (w+n > c.limits.PerConn || c.limits.held.Load() > c.limits.Total) {
		c.starved = true
		return false
	}
	return true
}

// appendLocked copies p behind what waits, starts the writer and returns where the
// copy is.
func (c *Conn) appendLocked(p []byte) []byte {
	if c.buf == nil {
		c.buf = c.limits.Buffer(len(p))
	} else {
		c.buf = c.limits.Grow(c.buf, len(p))
	}
	at := len(c.buf.B)
	c.buf.B = append(c.buf.B, p...)
	if !c.writing {
		c.writing = true
		if c.direct != nil {
			c.limits.writers.add(c)
		} else {
			go c.writeOut(nil, 0)
		}
	}
	return c.buf.B[at:]
}

// bound sets the deadline of the next write. Setting one costs as much as a small write,
// so one that has three quarters of its time left will do. c.mu is held, so that Close
// cannot be followed by a longer one.
func (c *Conn) bound() {
	now := time.Now()
	timeout := c.limits.Timeout
	if c.closing {
		timeout = closeLinger
	} else if c.writeDeadline.Sub(now) > timeout*3/4 {
		return
	}
	c.writeDeadline = now.Add(timeout)
	_ = c.SetWriteDeadline(c.writeDeadline)
}

// writeOut passes on what waits until nothing is left, and waits for the socket to take
// it. It begins with the rest of out, of which the first n bytes have been written, unless
// that is nil.
func (c *Conn) writeOut(out *Buffer, n int) {
	c.mu.Lock()
	for {
		if out == nil {
			if out, n = c.nextLocked(), 0; out == nil {
				break
			}
		}
		c.bound()
		c.mu.Unlock()
		_, err := c.Conn.Write(out.B[n:])
		c.limits.Release(out)
		out = nil
		c.wroteAndLock(err)
	}
	if c.direct != nil && !c.closing {
		// writeNow sets none, and would fail by this one when its time has come.
		c.writeDeadline = time.Time{}
		_ = c.SetWriteDeadline(c.writeDeadline)
	}
	c.idleLocked()
	c.mu.Unlock()
}

// writeNow passes on what waits, as far as the socket takes it at once. What it does not
// take is left to writeOut.
func (c *Conn) writeNow(a *attempt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.nextLocked()
	if out == nil {
		c.idleLocked()
		return
	}
	c.mu.Unlock()
	n, err := a.write(c.direct, out.B)
	if err == nil && n < len(out.B) {
		go c.writeOut(out, n)
		c.mu.Lock()
		return
	}
	c.limits.Release(out)
	c.wroteAndLock(err)
	if c.buf != nil {
		c.limits.writers.add(c) // again, but after the others
		return
	}
	c.idleLocked()
}

// nextLocked takes what waits, to write it, nil if that is nothing.
func (c *Conn) nextLocked() *Buffer {
	out := c.buf
	if out != nil {
		c.buf, c.flight = nil, len(out.B)
	}
	return out
}

// wroteAndLock notes that what was to be written has been, or not, and calls OnDrain if it
// is due. It takes c.mu.
func (c *Conn) wroteAndLock(err error) {
	c.mu.Lock()
	c.flight = 0
	if err != nil {
		c.failLocked(err)
		return
	}
	if c.starved && c.waitingLocked() <= c.limits.PerConn/2 {
		c.starved = false
		if drained := c.OnDrain; drained != nil {
			c.mu.Unlock()
			drained()
			c.mu.Lock()
		}
	}
}

// idleLocked notes that the writer has nothing left to do.
func (c *Conn) idleLocked() {
	if c.closing {
		_ = c.Conn.Close()
	}
	c.writing = false
	c.written.Broadcast()
}

// Flush closes the connection and waits until what was waiting has been written or
// given up. Whoever owns the connection calls it before letting go of it: a CONNACK
// that refuses, or a DISCONNECT, is still on its way when Mochi is done with a client.
func (c *Conn) Flush() {
	_ = c.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.writing {
		c.written.Wait()
	}
}

// failLocked ends the connection at once.
func (c *Conn) failLocked(err error) {
	if c.err == nil {
		c.err = err
	}
	c.closing = true
	if c.buf != nil {
		c.limits.Release(c.buf)
		c.buf = nil
	}
	_ = c.Conn.Close()
}

// Close ends the connection after what waits has been written, or after a short
// while. It does not block; reads end at once.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return nil
	}
	c.closing = true
	if !c.writing {
		return c.Conn.Close()
	}
	now := time.Now()
	if c.flight > 0 {
		// The writer may be stuck in a write that has a minute to go. One that has
		// not come to us yet, since there are many, has its time then.
		c.writeDeadline = now.Add(closeLinger)
		_ = c.SetWriteDeadline(c.writeDeadline)
	}
	return c.SetReadDeadline(now)
}

// SetDeadline sets the read deadline only: writes have their own. Mochi calls it for
// every packet; a deadline that hardly moves is left alone, since setting one is
// dearer than reading a small packet.
func (c *Conn) SetDeadline(t time.Time) error {
	if t.IsZero() {
		if c.readDeadline == 0 {
			return nil
		}
		c.readDeadline = 0
		return c.SetReadDeadline(t)
	}
	now := time.Now().UnixNano()
	next := t.UnixNano()
	if moved := next - c.readDeadline; moved >= 0 && moved < (next-now)/32 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return net.ErrClosed
	}
	c.readDeadline = next
	return c.SetReadDeadline(t)
}

// After reports whether c was attached to its session after other was to the same, or to
// one before it that a clean start has ended. Both have been attached.
func (c *Conn) After(other *Conn) bool { return c.Attachment > other.Attachment }
