package listener

import (
	"bufio"
	"fmt"
	"net"

	"github.com/pires/go-proxyproto"
)

// proxyBuffer is the size in bytes of the buffer for a PROXY header. It holds
// a whole header of version 1 (107), which must come in one piece, and one of
// version 2 without certificates.
const proxyBuffer = 512

// readProxyHeader reads the PROXY header (versions 1 and 2 of HAProxy's
// proxy-protocol.txt) that a trusted proxy must send first, and takes the
// client's address from it. A connection of the proxy's own (LOCAL, UNKNOWN:
// health checks) keeps the proxy's address and is not counted by address.
func (t *TCP) readProxyHeader(c *Conn) error {
	r := bufio.NewReaderSize(c.Conn, proxyBuffer)
	header, err := proxyproto.Read(r)
	if err != nil {
		return fmt.Errorf("%w: %w", errProxyHeader, err)
	}
	if n := r.Buffered(); n > 0 {
		rest, err := r.Peek(n)
		if err != nil {
			return fmt.Errorf("%w: %w", errProxyHeader, err)
		}
		c.Conn = &prefixedConn{Conn: c.Conn, prefix: append([]byte(nil), rest...)}
	}
	if !header.Command.IsProxy() {
		return nil
	}
	source, ok := header.SourceAddr.(*net.TCPAddr)
	if !ok {
		return fmt.Errorf("%w: source address %v is not TCP", errProxyHeader, header.SourceAddr)
	}
	c.remote = unmapped(source.AddrPort())
	if !t.server.Limiter.acquireAddr(c.remote.Addr()) {
		return errAddrFull
	}
	c.counted = true
	return nil
}
