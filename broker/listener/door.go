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
	// stopGrace is how long connections get to end by themselves (a WebSocket
	// says goodbye) before Stop closes their sockets.
	stopGrace = time.Second
	// maxStacks bounds the memory of which panics were logged with their stack.
	maxStacks = 64
)

// door is what the doors have in common: it knows the open connections, and
// serves each on its own goroutine.
type door struct {
	Guard
	id    string
	meter *meter

	mu     sync.Mutex // guards what follows; held for a moment only
	closed bool       // no new connection is taken
	conns  map[*Conn]struct{}
	empty  chan struct{} // closed when the door is closed and the last connection gone
	stacks map[uint64]struct{}
}

func newDoor(id string, g Guard) (*door, error) {
	if err := g.setDefaults(); err != nil {
		return nil, err
	}
	return &door{
		Guard: g, id: id, meter: g.Metrics.door(id),
		conns:  make(map[*Conn]struct{}),
		empty:  make(chan struct{}),
		stacks: make(map[uint64]struct{}),
	}, nil
}

// add begins to track c, which the caller then must serve. It is refused when
// the door is closed.
func (d *door) add(c *Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.conns[c] = struct{}{}
	d.meter.open.Inc()
	return true
}

func (d *door) remove(c *Conn) {
	if c.counted {
		d.Limiter.giveAddr(c.ClientIP())
	}
	d.Limiter.give()
	d.meter.open.Dec()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
	if d.closed && len(d.conns) == 0 {
		close(d.empty)
	}
}

// refuse makes the door take no new connection.
func (d *door) refuse() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.closed = true
	if len(d.conns) == 0 {
		close(d.empty)
	}
}

func (d *door) refusing() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

func (d *door) snapshot() []*Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	conns := make([]*Conn, 0, len(d.conns))
	for c := range d.conns {
		conns = append(conns, c)
	}
	return conns
}

// serve runs one tracked connection from its first byte to its end: prepare,
// which may be nil, does what comes before MQTT. The deadline for all of it, up
// to the end of the CONNECT, has been set already.
func (d *door) serve(c *Conn, prepare func(*Conn) error) {
	if err := d.admit(c, prepare); err != nil {
		d.meter.refuse(reasonOf(err))
		d.Logger.Debug("connection refused", "door", d.id, "remote", c.RemoteAddr().String(), "reason", err.Error())
		d.done(c)
		return
	}
	d.meter.accepted.Inc()
	err := d.handle(c, func() error { return d.Handler(d.id, c) })
	if err == nil && c.rest != nil {
		go func() {
			defer d.done(c)
			d.ended(c, d.handle(c, c.rest))
		}()
		return
	}
	d.ended(c, err)
	d.done(c)
}

// ended logs why the Handler has returned.
func (d *door) ended(c *Conn, err error) {
	if err != nil {
		d.Logger.Debug("connection ended", "door", d.id, "remote", c.RemoteAddr().String(), "reason", err.Error())
	}
}

// done closes a connection and forgets it.
func (d *door) done(c *Conn) {
	c.finish()
	d.remove(c)
}

func (d *door) admit(c *Conn, prepare func(*Conn) error) error {
	if prepare != nil {
		if err := prepare(c); err != nil {
			return err
		}
	}
	packet, level, err := readConnect(c.Conn, d.ConnectLimit)
	if err != nil {
		if errors.Is(err, ErrProtocolLevel) {
			_, _ = c.Write(unsupportedLevel) // the connection ends in any case
		}
		return err
	}
	c.replay, c.level, c.bridge = packet, level&^bridgeBit, level&bridgeBit != 0
	// From here the broker sets the deadlines, by the keep-alive.
	if err := c.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("clear the first-packet deadline: %w", err)
	}
	return nil
}

// handle runs the Handler, or the rest of it, and turns a panic in it into an error.
func (d *door) handle(c *Conn, run func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			d.panicked(c, v)
			err = errors.New("panic")
		}
	}()
	return run()
}

// panicked reports a panic while its stack is still there. A hostile client can
// repeat one as often as it can connect, so each stack is logged once; and a
// value that is not the runtime's own may hold a payload, so only its type is.
func (d *door) panicked(c *Conn, v any) {
	d.meter.panics.Inc()
	text := fmt.Sprintf("%T", v)
	if e, ok := v.(runtime.Error); ok {
		text = e.Error()
	}
	d.Logger.Error("a connection ended by a panic in its handler", d.describe(c, text)...)
}

func (d *door) describe(c *Conn, text string) []any {
	attrs := []any{"door", d.id, "remote", c.RemoteAddr().String(), "panic", text}
	if d.newStack() {
		attrs = append(attrs, "stack", string(debug.Stack()))
	}
	return attrs
}

// newStack reports whether this is the first panic with this stack.
func (d *door) newStack() bool {
	pcs := make([]uintptr, 32)
	pcs = pcs[:runtime.Callers(3, pcs)]
	h := fnv.New64a()
	for _, pc := range pcs {
		_, _ = h.Write(strconv.AppendUint(nil, uint64(pc), 16))
		_, _ = h.Write([]byte{','})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, seen := d.stacks[h.Sum64()]; seen || len(d.stacks) >= maxStacks {
		return false
	}
	d.stacks[h.Sum64()] = struct{}{}
	return true
}

// stop refuses new connections, ends those that are open and waits for their
// goroutines until ctx ends.
func (d *door) stop(ctx context.Context) error {
	d.refuse()
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	again := time.NewTicker(stopGrace / 20)
	defer again.Stop()
	for waiting := true; waiting; {
		// More than once: a connection may be on its way from one read to the next.
		for _, c := range d.snapshot() {
			c.interrupt()
		}
		select {
		case <-d.empty:
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
	case <-d.empty:
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
