package listener

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"time"
)

const (
	// stopGrace is how long connections may take to end by themselves (a
	// WebSocket sends a close frame) before Stop closes their sockets.
	stopGrace = time.Second
	// maxLoggedStacks bounds the number of stacks that are remembered as
	// logged.
	maxLoggedStacks = 64
)

// server is the common part of all listeners. It tracks the open connections, and
// serves each on its own goroutine.
type server struct {
	Guard
	id    string
	meter *meter

	mu           sync.Mutex // guards what follows; held for a moment only
	closed       bool       // no new connection is accepted
	conns        map[*Conn]struct{}
	allClosed    chan struct{} // closed when the listener is closed and the last connection has ended
	loggedStacks map[uint64]struct{}
}

func newServer(id string, g Guard) (*server, error) {
	if err := g.setDefaults(); err != nil {
		return nil, err
	}
	return &server{
		Guard: g, id: id, meter: g.Metrics.meterFor(id),
		conns:        make(map[*Conn]struct{}),
		allClosed:    make(chan struct{}),
		loggedStacks: make(map[uint64]struct{}),
	}, nil
}

// add tracks c, which the caller must then serve. It returns false if the
// listener is closed.
func (d *server) add(c *Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.conns[c] = struct{}{}
	d.meter.open.Inc()
	return true
}

func (d *server) remove(c *Conn) {
	if c.counted {
		d.Limiter.releaseAddr(c.ClientIP())
	}
	d.Limiter.release()
	d.meter.open.Dec()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
	if d.closed && len(d.conns) == 0 {
		close(d.allClosed)
	}
}

// stopAccepting makes the listener refuse new connections.
func (d *server) stopAccepting() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.closed = true
	if len(d.conns) == 0 {
		close(d.allClosed)
	}
}

func (d *server) isStopping() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

func (d *server) snapshot() []*Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	conns := make([]*Conn, 0, len(d.conns))
	for c := range d.conns {
		conns = append(conns, c)
	}
	return conns
}

// serve serves one tracked connection from its first byte to its end. prepare,
// which may be nil, does what precedes MQTT. The caller has set the deadline
// for everything up to the end of the CONNECT.
func (d *server) serve(c *Conn, prepare func(*Conn) error) {
	if err := d.readFirstPacket(c, prepare); err != nil {
		d.meter.countRefusal(reasonOf(err))
		d.Logger.Debug("connection refused", "door", d.id, "remote", c.RemoteAddr().String(), "reason", err.Error())
		d.closeConn(c)
		return
	}
	d.meter.accepted.Inc()
	err := d.runHandler(c, func() error { return d.Handler(d.id, c) })
	if err == nil && c.continuation != nil {
		go func() {
			defer d.closeConn(c)
			d.logEnd(c, d.runHandler(c, c.continuation))
		}()
		return
	}
	d.logEnd(c, err)
	d.closeConn(c)
}

// logEnd logs why the Handler has returned.
func (d *server) logEnd(c *Conn, err error) {
	if err != nil {
		d.Logger.Debug("connection ended", "door", d.id, "remote", c.RemoteAddr().String(), "reason", err.Error())
	}
}

// closeConn closes a connection and stops tracking it.
func (d *server) closeConn(c *Conn) {
	c.finish()
	d.remove(c)
}

func (d *server) readFirstPacket(c *Conn, prepare func(*Conn) error) error {
	if prepare != nil {
		if err := prepare(c); err != nil {
			return err
		}
	}
	packet, level, err := readConnect(c.Conn, d.ConnectLimit)
	if err != nil {
		if errors.Is(err, ErrProtocolLevel) {
			_, _ = c.Write(connackUnsupportedLevel) // the connection ends in any case
		}
		return err
	}
	c.replay, c.level, c.bridge = packet, level&^bridgeBit, level&bridgeBit != 0
	// From here on the broker sets the deadlines, from the keep-alive.
	if err := c.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("clear the first-packet deadline: %w", err)
	}
	return nil
}

// runHandler runs the Handler, or its continuation, and returns a panic as an error.
func (d *server) runHandler(c *Conn, run func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			d.logPanic(c, v)
			err = errors.New("panic")
		}
	}()
	return run()
}

// logPanic logs a panic with its stack. A hostile client can repeat a panic at
// will, so each stack is logged once. A value that is not a runtime error may
// contain a payload, so only its type is logged.
func (d *server) logPanic(c *Conn, v any) {
	d.meter.panics.Inc()
	text := fmt.Sprintf("%T", v)
	if e, ok := v.(runtime.Error); ok {
		text = e.Error()
	}
	d.Logger.Error("a connection ended by a panic in its handler", d.logAttrs(c, text)...)
}

func (d *server) logAttrs(c *Conn, text string) []any {
	attrs := []any{"door", d.id, "remote", c.RemoteAddr().String(), "panic", text}
	if d.isNewStack() {
		attrs = append(attrs, "stack", string(debug.Stack()))
	}
	return attrs
}

// isNewStack reports whether this is the first panic with this stack.
func (d *server) isNewStack() bool {
	pcs := make([]uintptr, 32)
	pcs = pcs[:runtime.Callers(3, pcs)]
	h := fnv.New64a()
	for _, pc := range pcs {
		_, _ = h.Write(strconv.AppendUint(nil, uint64(pc), 16))
		_, _ = h.Write([]byte{','})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, seen := d.loggedStacks[h.Sum64()]; seen || len(d.loggedStacks) >= maxLoggedStacks {
		return false
	}
	d.loggedStacks[h.Sum64()] = struct{}{}
	return true
}

// stop refuses new connections, ends the open ones and waits for their
// goroutines until ctx ends.
func (d *server) stop(ctx context.Context) error {
	d.stopAccepting()
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	again := time.NewTicker(stopGrace / 20)
	defer again.Stop()
	for waiting := true; waiting; {
		// Repeatedly, since a connection may be between two reads.
		for _, c := range d.snapshot() {
			c.interrupt()
		}
		select {
		case <-d.allClosed:
			return nil
		case <-again.C:
		case <-grace.C:
			waiting = false
		case <-ctx.Done():
			waiting = false
		}
	}
	for _, c := range d.snapshot() {
		_ = c.socket.Close()
	}
	select {
	case <-d.allClosed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop listener %s: %d connections are still being served: %w", d.id, len(d.snapshot()), ctx.Err())
	}
}

// interrupt makes the Handler's next read fail, without ever blocking.
func (c *Conn) interrupt() {
	if c.stream != nil {
		c.stream.interrupt()
		return
	}
	_ = c.socket.Close()
}

// finish closes the connection for good, on its own goroutine.
func (c *Conn) finish() {
	_ = c.Close()
	if c.stream != nil {
		c.stream.linger()
		_ = c.socket.Close()
	}
}
