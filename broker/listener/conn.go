package listener

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// Conn is a connection that has passed a door's guard: a byte stream of MQTT
// that begins with a whole CONNECT. It is read by one goroutine; Write, Close
// and the deadlines may be called from others. Write blocks as the socket does;
// over WebSocket it sends p as binary messages of at most 65,535 bytes, so many
// packets belong into one call.
type Conn struct {
	// Conn is the stream behind the guard: TCP, TLS or WebSocket.
	net.Conn

	door   *door
	socket net.Conn // the TCP connection at the bottom, to be closed without ceremony
	stream *stream  // the WebSocket, or nil

	replay []byte // the rest of the CONNECT that the guard has read; nil soon after
	frames framer
	failed bool // a malformed length was met: only the reader knows

	level   byte
	bridge  bool
	counted bool           // counted by address in the Limiter
	remote  netip.AddrPort // the client, as far as it is known to be trusted
	token   string

	rest func() error // see Continue
}

// Continue tells the door how to go on with the connection once the Handler has
// returned nil: rest is run, as a part of the Handler, on a goroutine of its own. The
// stack that the Handler needed is given back then, and that of a connection which
// mostly waits stays small. Only the Handler's goroutine may call Continue.
func (c *Conn) Continue(rest func() error) { c.rest = rest }

// Read reads the client's stream. It returns ErrMalformed, after the packets
// before it, at a remaining length of more than four bytes.
func (c *Conn) Read(p []byte) (int, error) {
	if c.replay != nil {
		n := copy(p, c.replay)
		if c.replay = c.replay[n:]; len(c.replay) == 0 {
			c.replay = nil // free the CONNECT with its token
		}
		return n, nil
	}
	if c.failed {
		return 0, errFraming
	}
	n, err := c.Conn.Read(p)
	if whole, ok := c.frames.scan(p[:n]); !ok {
		c.failed = true
		c.door.meter.framing.Inc()
		if whole == 0 {
			return 0, errFraming
		}
		return whole, nil
	}
	return n, err
}

var errFraming = fmt.Errorf("%w: remaining length of more than four bytes", ErrMalformed)

// RemoteAddr returns the client's address: what a trusted proxy said it is, else
// the peer's. The port is 0 where a proxy did not tell it.
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
// Mosquitto's bridges do with MQTT 3.1 and 3.1.1: what it publishes is not to come
// back to it. The bit is there in the CONNECT that is read, too.
func (c *Conn) Bridge() bool { return c.bridge }

// WebSocket reports whether the client speaks MQTT over WebSocket.
func (c *Conn) WebSocket() bool { return c.stream != nil }

// Token returns the credential of a WebSocket handshake, from "Authorization:
// Bearer" or else from the query parameter access_token, or "".
func (c *Conn) Token() string { return c.token }

// ForgetToken lets go of the token when it has been used, so that a connection
// of many hours does not hold it. Only the Handler's goroutine may call Token
// and ForgetToken.
func (c *Conn) ForgetToken() { c.token = "" }

// DirectSocket returns the TCP socket of a connection whose client gets what Write is given as it
// is, for writes that must not wait, or nil if TLS or WebSocket stand between.
func (c *Conn) DirectSocket() syscall.RawConn {
	conn := c.Conn
	if p, ok := conn.(*prefixed); ok {
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

// prefixed is a connection whose first bytes have been read already.
type prefixed struct {
	net.Conn
	prefix []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		n := copy(b, p.prefix)
		if p.prefix = p.prefix[n:]; len(p.prefix) == 0 {
			p.prefix = nil
		}
		return n, nil
	}
	return p.Conn.Read(b)
}
