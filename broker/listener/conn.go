package listener

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// Conn is a connection that has passed a listener's guard: a byte stream of MQTT
// that begins with a whole CONNECT. One goroutine reads it; others may call
// Write, Close and the deadline methods. Write blocks as the socket does; over
// WebSocket it sends p as binary messages of at most 65,535 bytes, so many
// packets belong into one call.
type Conn struct {
	// Conn is the stream behind the guard: TCP, TLS or WebSocket.
	net.Conn

	server *server
	socket net.Conn // the underlying TCP connection, to be closed without a TLS or WebSocket close
	stream *stream  // the WebSocket, or nil

	replay []byte // the CONNECT that the guard has read, until Read has returned it
	frames framer
	failed bool // a malformed length was found; used by the reading goroutine only

	level   byte
	bridge  bool
	counted bool           // counted by address in the Limiter
	remote  netip.AddrPort // the client's address, if a trusted source gives it
	token   string

	continuation func() error // see Continue
}

// Continue makes the listener run rest on a new goroutine once the Handler has
// returned nil. rest counts as a part of the Handler. The Handler's large stack is
// freed then, and a connection that mostly waits has a small one. Only the Handler's
// goroutine may call Continue.
func (c *Conn) Continue(rest func() error) { c.continuation = rest }

// Read reads the client's stream. It returns ErrMalformed, after the packets
// before it, at a remaining length of more than four bytes.
func (c *Conn) Read(p []byte) (int, error) {
	if c.replay != nil {
		n := copy(p, c.replay)
		if c.replay = c.replay[n:]; len(c.replay) == 0 {
			c.replay = nil // frees the CONNECT with its token
		}
		return n, nil
	}
	if c.failed {
		return 0, errFraming
	}
	n, err := c.Conn.Read(p)
	if whole, ok := c.frames.scan(p[:n]); !ok {
		c.failed = true
		c.server.meter.framing.Inc()
		if whole == 0 {
			return 0, errFraming
		}
		return whole, nil
	}
	return n, err
}

var errFraming = fmt.Errorf("%w: remaining length of more than four bytes", ErrMalformed)

// RemoteAddr returns the client's address: the one that a trusted proxy has
// sent, else the peer's. The port is 0 if the proxy did not send it.
func (c *Conn) RemoteAddr() net.Addr {
	if c.remote.IsValid() {
		return net.TCPAddrFromAddrPort(c.remote)
	}
	return c.Conn.RemoteAddr()
}

// ClientIP returns the address of RemoteAddr alone, or the zero Addr for a peer
// that has none (a Unix socket).
func (c *Conn) ClientIP() netip.Addr { return c.remote.Addr() }

// ProtocolLevel returns the protocol level of the CONNECT: 3 for MQTT 3.1, 4 for
// 3.1.1, 5 for 5.
func (c *Conn) ProtocolLevel() byte { return c.level }

// Bridge reports whether the client has set bit 7 of the protocol level, as
// Mosquitto's bridges do with MQTT 3.1 and 3.1.1. Such a client must not receive
// its own messages. The CONNECT that Read returns has the bit too.
func (c *Conn) Bridge() bool { return c.bridge }

// WebSocket reports whether the client speaks MQTT over WebSocket.
func (c *Conn) WebSocket() bool { return c.stream != nil }

// Token returns the credential of a WebSocket handshake, from "Authorization:
// Bearer" or else from the query parameter access_token, or "".
func (c *Conn) Token() string { return c.token }

// ForgetToken drops the token after its use, so that a long connection does
// not keep it in memory. Only the Handler's goroutine may call Token and
// ForgetToken.
func (c *Conn) ForgetToken() { c.token = "" }

// DirectSocket returns the TCP socket if Write's bytes go to the client unchanged, for writes
// that must not block. It returns nil with TLS or WebSocket.
func (c *Conn) DirectSocket() syscall.RawConn {
	conn := c.Conn
	if p, ok := conn.(*prefixedConn); ok {
		conn = p.Conn
	}
	if conn != c.socket {
		return nil
	}
	tcp, ok := c.socket.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil // it is closed
	}
	return raw
}

// prefixedConn is a connection whose first bytes have been read already.
type prefixedConn struct {
	net.Conn
	prefix []byte
}

func (p *prefixedConn) Read(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		n := copy(b, p.prefix)
		if p.prefix = p.prefix[n:]; len(p.prefix) == 0 {
			p.prefix = nil
		}
		return n, nil
	}
	return p.Conn.Read(b)
}
