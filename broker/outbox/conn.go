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

// ErrSlowConsumer is the reason for the end of a connection whose outbox has
// no room even for the control packets that the protocol requires.
var ErrSlowConsumer = errors.New("the client reads too slowly")

// Defaults of Limits.
const (
	DefaultPerConn = 256 << 10
	DefaultTotal   = 1 << 30
)

// Limits bounds what waits to be written to clients. One value is shared by
// all connections of a broker.
type Limits struct {
	PerConn int           // bytes that may wait for one connection; default 256 KiB
	Total   int64         // bytes that may wait for all connections together; default 1 GiB
	Timeout time.Duration // how long one write may take before the connection is closed; default 60 s

	held    atomic.Int64 // bytes of buffers in use
	writers writers
}

// SetDefaults fills in the fields that are 0.
func (l *Limits) SetDefaults() {
	l.PerConn = cmp.Or(l.PerConn, DefaultPerConn)
	l.Total = cmp.Or(l.Total, DefaultTotal)
	l.Timeout = cmp.Or(l.Timeout, time.Minute)
}

// Held returns the bytes of all outbox buffers in use.
func (l *Limits) Held() int64 { return l.held.Load() }

// controlReserve is the number of bytes above PerConn that control packets may
// use, so that a client that is behind on messages still gets a PINGRESP or
// SUBACK.
const controlReserve = 64 << 10

// closeLinger bounds how long the last packets, such as a DISCONNECT with its
// reason, may take to be written after Close.
const closeLinger = 2 * time.Second

// Conn is the connection that Mochi uses. A write to it never blocks: the bytes
// go to a bounded outbox. Writers, which exist only while bytes wait, pass them
// to the socket, as many as possible in each system call.
type Conn struct {
	net.Conn
	limits *Limits
	direct syscall.RawConn // nil unless the socket can be written to directly

	// OnDrain is called, without any lock, when an outbox that has refused frames
	// has room again. It must be set before frames are offered. nil means no
	// call.
	OnDrain func()

	// Attachment is when the connection was attached to its session, in the order of
	// all attachments. It is set once, by whoever attaches it; 0 before.
	Attachment uint64

	readDeadline int64 // unix nanoseconds last set; used by the reading goroutine only

	mu            sync.Mutex
	buf           *Buffer   // frames that wait; nil if none
	inFlight      int       // bytes handed to the socket and not yet taken by it
	writing       bool      // a writer has this connection or will get it
	refusedFrames bool      // frames were refused since the last OnDrain
	writeDeadline time.Time // as it was last set
	closing       bool      // Close was called: write what is there, take nothing more
	writerIdle    sync.Cond // writing has become false; on mu
	err           error     // why the connection is broken
}

// NewConn wraps a client's connection.
func NewConn(raw net.Conn, limits *Limits) *Conn {
	c := &Conn{Conn: raw, limits: limits}
	c.writerIdle.L = &c.mu
	if p, ok := raw.(DirectSocket); ok {
		c.direct = p.DirectSocket()
	}
	return c
}

// Write appends one or more whole packets of Mochi. A QoS 0 PUBLISH is dropped when
// the outbox is full. If any other packet does not fit, the connection ends, since
// the protocol does not allow to omit it.
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

// OfferSignal appends a frame that may be lost, such as a signal, if the outbox
// is less than half full.
func (c *Conn) OfferSignal(frame []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stateLocked() != nil || c.waitingLocked()+len(frame) > c.limits.PerConn/2 {
		return false
	}
	c.appendLocked(frame)
	return true
}

// Force appends frames even if they do not fit; the caller has checked Room.
// It returns false if the connection has ended.
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

// Room returns how many bytes of messages fit into the outbox. An empty outbox accepts
// one message of any size, and no more than that when all outboxes together are over
// their limit.
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
	c.refusedFrames = true
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
	n := c.inFlight
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
		c.refusedFrames = true
		return false
	}
	return true
}

// appendLocked appends a copy of p to the outbox, starts a writer and returns the
// copy.
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
			c.limits.writers.enqueue(c)
		} else {
			go c.writeBlocking(nil, 0)
		}
	}
	return c.buf.B[at:]
}

// setWriteDeadlineLocked sets the deadline of the next write. That costs as much as a
// small write, so a deadline with three quarters of its time left is kept. c.mu is held,
// so that no longer deadline is set after Close.
func (c *Conn) setWriteDeadlineLocked() {
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

// writeBlocking writes the outbox until it is empty, and blocks while the socket is full.
// It begins with the rest of out, of which the first n bytes have been written, unless out
// is nil.
func (c *Conn) writeBlocking(out *Buffer, n int) {
	c.mu.Lock()
	for {
		if out == nil {
			if out, n = c.nextLocked(), 0; out == nil {
				break
			}
		}
		c.setWriteDeadlineLocked()
		c.mu.Unlock()
		_, err := c.Conn.Write(out.B[n:])
		c.limits.Release(out)
		out = nil
		c.wroteAndLock(err)
	}
	if c.direct != nil && !c.closing {
		// writeNow sets no deadline, so an old one would make it fail later.
		c.writeDeadline = time.Time{}
		_ = c.SetWriteDeadline(c.writeDeadline)
	}
	c.writerDoneLocked()
	c.mu.Unlock()
}

// writeNow writes as much of the outbox as the socket takes without blocking. The rest
// is left to writeBlocking.
func (c *Conn) writeNow(a *writeAttempt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.nextLocked()
	if out == nil {
		c.writerDoneLocked()
		return
	}
	c.mu.Unlock()
	n, err := a.write(c.direct, out.B)
	if err == nil && n < len(out.B) {
		go c.writeBlocking(out, n)
		c.mu.Lock()
		return
	}
	c.limits.Release(out)
	c.wroteAndLock(err)
	if c.buf != nil {
		c.limits.writers.enqueue(c) // to the end of the queue, after other connections
		return
	}
	c.writerDoneLocked()
}

// nextLocked takes the waiting bytes out of the outbox to write them, nil if
// there are none.
func (c *Conn) nextLocked() *Buffer {
	out := c.buf
	if out != nil {
		c.buf, c.inFlight = nil, len(out.B)
	}
	return out
}

// wroteAndLock records the result of a write, and calls OnDrain if it is due. It locks
// c.mu.
func (c *Conn) wroteAndLock(err error) {
	c.mu.Lock()
	c.inFlight = 0
	if err != nil {
		c.failLocked(err)
		return
	}
	if c.refusedFrames && c.waitingLocked() <= c.limits.PerConn/2 {
		c.refusedFrames = false
		if drained := c.OnDrain; drained != nil {
			c.mu.Unlock()
			drained()
			c.mu.Lock()
		}
	}
}

// writerDoneLocked records that no writer works for this connection.
func (c *Conn) writerDoneLocked() {
	if c.closing {
		_ = c.Conn.Close()
	}
	c.writing = false
	c.writerIdle.Broadcast()
}

// Flush closes the connection and waits until the outbox has been written or given up.
// The owner calls it at the end of the connection: a refusing CONNACK or a DISCONNECT
// may still be in the outbox when Mochi has finished with a client.
func (c *Conn) Flush() {
	_ = c.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.writing {
		c.writerIdle.Wait()
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

// Close ends the connection when the outbox has been written, or after
// closeLinger. It does not block. Reads end at once.
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
	if c.inFlight > 0 {
		// The writer may be in a write with a minute left, so its deadline is
		// shortened. A writer that has not reached this connection yet sets the
		// deadline itself.
		c.writeDeadline = now.Add(closeLinger)
		_ = c.SetWriteDeadline(c.writeDeadline)
	}
	return c.SetReadDeadline(now)
}

// SetDeadline sets the read deadline only: writes have their own. Mochi calls it for
// every packet. A deadline that hardly changes is not set again, since that costs
// more than to read a small packet.
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

// AttachedAfter reports whether c was attached after other to the same session, or to an
// earlier session of the same key that a clean start has ended. Both have been attached.
func (c *Conn) AttachedAfter(other *Conn) bool { return c.Attachment > other.Attachment }
