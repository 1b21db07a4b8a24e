// Package load is a load generator for MQTT brokers on raw sockets. It runs on
// the same machine as the broker, so it must use little processor time. It has
// one thread, one epoll and one read buffer for all connections. Frames are
// encoded once and patched for each message. All acknowledgements of a read go
// out in one write. Nothing is allocated for a message. It checks every
// delivery for loss, repetition and order, and for Mynah that prev is the seq
// before. Make a Loop, connect clients with DialPublisher, DialSubscriber and
// DialIdle, start the publishers, and call RunUntil or RunFor.
//
// A Loop, its publishers and its subscribers are used by one goroutine.
package load

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"mynah/internal/mqttwire"
)

// readSize is the size of one read in bytes. It is large enough that a busy
// connection needs few system calls, and small enough that the buffer stays in
// the processor's cache.
const readSize = 128 << 10

// Loop is the event loop that reads from and writes to all connections.
type Loop struct {
	epfd    int
	timerfd int
	conns   []*conn
	buf     []byte // first the rest of the connection's last read, then the new bytes
	acks    []byte
	events  [256]unix.EpollEvent
	atRate  []*Publisher
	err     error
}

// conn is one MQTT connection. Either sub or pub is set, or neither for an idle
// connection.
type conn struct {
	fd             int
	index          int32
	state          state
	subscribeFrame []byte // SUBSCRIBE, sent after CONNACK; nil for none
	partial        []byte // the beginning of a packet that is not complete yet
	out            []byte // bytes that wait because the socket was full
	wantsWritable  bool   // epoll reports when the socket is writable
	readPaused     bool   // StopReading was called
	sub            *Subscriber
	pub            *Publisher
}

type state byte

const (
	connecting state = iota
	subscribing
	ready
	closed
)

// timerIndex marks the timer among the epoll events.
const timerIndex = -1

// NewLoop returns a Loop without connections.
func NewLoop() (*Loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	timerfd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("timer: %w", err), unix.Close(epfd))
	}
	l := &Loop{epfd: epfd, timerfd: timerfd, buf: make([]byte, 2*readSize)}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: timerIndex}
	if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, timerfd, &ev); err != nil {
		l.Close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return l, nil
}

// Close closes all connections, without DISCONNECT.
func (l *Loop) Close() {
	for _, c := range l.conns {
		l.closeConn(c)
	}
	l.conns = nil
	_ = unix.Close(l.timerfd)
	_ = unix.Close(l.epfd)
}

// DialSpec says how to connect a client.
type DialSpec struct {
	Port       int // of 127.0.0.1
	Connect    mqttwire.Connect
	Filters    []mqttwire.Filter
	RecvBuffer int // bytes of the socket's receive buffer, 0 for the system's choice
}

func (l *Loop) dial(d *DialSpec) (*conn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	c := &conn{fd: fd, index: int32(len(l.conns))} //nolint:gosec // at most as many as descriptors
	if err := l.open(c, d); err != nil {
		return nil, errors.Join(fmt.Errorf("connect %s: %w", d.Connect.ClientID, err), unix.Close(fd))
	}
	l.conns = append(l.conns, c)
	return c, nil
}

func (l *Loop) open(c *conn, d *DialSpec) error {
	if d.RecvBuffer > 0 {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, d.RecvBuffer); err != nil {
			return err
		}
	}
	if err := unix.SetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	if err := unix.Connect(c.fd, &unix.SockaddrInet4{Port: d.Port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.SetNonblock(c.fd, true); err != nil {
		return err
	}
	d.Connect.Version = mqttwire.V311
	if len(d.Filters) > 0 {
		subscribe := mqttwire.Packet{Type: mqttwire.SUBSCRIBE, ID: 1, Filters: d.Filters}
		c.subscribeFrame = subscribe.Append(nil, mqttwire.V311)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: c.index}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, c.fd, &ev); err != nil {
		return err
	}
	return l.send(c, d.Connect.Append(nil))
}

// DialIdle connects a client that subscribes and then does nothing.
func (l *Loop) DialIdle(d *DialSpec) error {
	_, err := l.dial(d)
	return err
}

// Ready reports whether all connections are accepted and subscribed.
func (l *Loop) Ready() bool {
	for _, c := range l.conns {
		if c.state != ready {
			return false
		}
	}
	return true
}

// RunUntil runs until done returns true. done is called after every round of
// events, and at least every 10 ms. RunUntil returns an error after timeout, or
// if a connection breaks.
func (l *Loop) RunUntil(done func() bool, timeout time.Duration, what string) error {
	deadline := time.Now().Add(timeout)
	for !done() {
		if err := l.poll(10); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %s", what, timeout)
		}
	}
	return nil
}

// RunFor runs for the duration d.
func (l *Loop) RunFor(d time.Duration) error {
	end := time.Now().Add(d)
	for {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		if err := l.poll(min(10, int(left/time.Millisecond)+1)); err != nil {
			return err
		}
	}
}

func (l *Loop) poll(timeoutMS int) error {
	n, err := unix.EpollWait(l.epfd, l.events[:], timeoutMS)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("epoll: %w", err)
	}
	for i := range max(n, 0) {
		ev := &l.events[i]
		if ev.Fd == timerIndex {
			var b [8]byte
			_, _ = unix.Read(l.timerfd, b[:])
			continue
		}
		c := l.conns[ev.Fd]
		if ev.Events&unix.EPOLLOUT != 0 && c.state != closed {
			l.flush(c)
		}
		if ev.Events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 && c.state != closed && !c.readPaused {
			l.read(c)
		}
	}
	if len(l.atRate) > 0 {
		l.publishDue()
	}
	return l.err
}

func (l *Loop) fail(c *conn, err error) {
	if l.err == nil {
		l.err = err
	}
	l.closeConn(c)
}

func (l *Loop) closeConn(c *conn) {
	if c.state != closed {
		c.state = closed
		_ = unix.Close(c.fd)
	}
}

func (c *conn) String() string {
	switch {
	case c.sub != nil:
		return "subscriber " + c.sub.Name
	case c.pub != nil:
		return fmt.Sprintf("publisher %d", c.pub.Number)
	}
	return "idle connection"
}

func (l *Loop) read(c *conn) {
	have := copy(l.buf, c.partial)
	c.partial = c.partial[:0]
	n, err := unix.Read(c.fd, l.buf[have:have+readSize])
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		n = 0
	case err != nil:
		l.fail(c, fmt.Errorf("%s: read: %w", c, err))
		return
	case n == 0:
		l.fail(c, fmt.Errorf("%s: the broker closed the connection", c))
		return
	}
	b := l.buf[:have+n]
	now := time.Now().UnixNano()
	l.acks = l.acks[:0]
	rest := b
	for len(rest) >= 2 {
		size, header := int(rest[1])+2, 2
		if rest[1] >= 0x80 {
			var err error
			if size, header, err = mqttwire.FrameSize(rest); err != nil {
				l.fail(c, fmt.Errorf("%s: %w", c, err))
				return
			}
		}
		if size == 0 || size > len(rest) {
			break
		}
		l.handle(c, rest[:size], header, now)
		if c.state == closed {
			return
		}
		rest = rest[size:]
	}
	if len(rest) > readSize {
		l.fail(c, fmt.Errorf("%s: a packet of more than %d bytes", c, readSize))
		return
	}
	c.partial = append(c.partial, rest...)
	if c.pub != nil && c.pub.rate == 0 && c.state == ready {
		l.fillWindow(c.pub)
	}
	if len(l.acks) > 0 {
		if err := l.send(c, l.acks); err != nil {
			l.fail(c, err)
		}
	}
}

func (l *Loop) handle(c *conn, frame []byte, header int, now int64) {
	switch frame[0] >> 4 {
	case mqttwire.PUBLISH:
		if c.sub == nil {
			l.fail(c, fmt.Errorf("%s: got a message", c))
			return
		}
		if id := c.sub.deliver(frame, header, now); id != 0 {
			l.acks = append(l.acks, mqttwire.PUBACK<<4, 2, byte(id>>8), byte(id))
		}
	case mqttwire.PUBACK:
		if c.pub == nil || len(frame) < 4 {
			l.fail(c, fmt.Errorf("%s: an acknowledgement out of place", c))
			return
		}
		c.pub.acknowledged(uint16(frame[2])<<8|uint16(frame[3]), now)
	case mqttwire.CONNACK:
		if len(frame) < 4 || frame[3] != 0 {
			l.fail(c, fmt.Errorf("%s: CONNECT refused: % x", c, frame))
			return
		}
		if c.subscribeFrame == nil {
			c.state = ready
			return
		}
		c.state = subscribing
		if err := l.send(c, c.subscribeFrame); err != nil {
			l.fail(c, err)
		}
	case mqttwire.SUBACK:
		for _, code := range frame[header+2:] {
			if code > 2 {
				l.fail(c, fmt.Errorf("%s: SUBSCRIBE refused: % x", c, frame))
				return
			}
		}
		c.state = ready
	case mqttwire.PINGRESP:
	default:
		l.fail(c, fmt.Errorf("%s: unexpected packet % x", c, frame[:min(len(frame), 16)]))
	}
}

// send writes b after the bytes that still wait. Bytes that do not fit into
// the socket are kept and written when it is writable.
func (l *Loop) send(c *conn, b []byte) error {
	if len(c.out) == 0 {
		n, err := unix.Write(c.fd, b)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("%s: write: %w", c, err)
		}
		b = b[max(n, 0):]
		if len(b) == 0 {
			return nil
		}
	}
	c.out = append(c.out, b...)
	return l.watchWritable(c, true)
}

func (l *Loop) flush(c *conn) {
	n, err := unix.Write(c.fd, c.out)
	if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
		l.fail(c, fmt.Errorf("%s: write: %w", c, err))
		return
	}
	c.out = c.out[:copy(c.out, c.out[max(n, 0):])]
	if len(c.out) == 0 {
		if err := l.watchWritable(c, false); err != nil {
			l.fail(c, err)
		}
	}
}

func (l *Loop) watchWritable(c *conn, on bool) error {
	c.wantsWritable = on
	ev := unix.EpollEvent{Fd: c.index}
	if !c.readPaused {
		ev.Events |= unix.EPOLLIN
	}
	if on {
		ev.Events |= unix.EPOLLOUT
	}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_MOD, c.fd, &ev); err != nil {
		return fmt.Errorf("%s: epoll: %w", c, err)
	}
	return nil
}
