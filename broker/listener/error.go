package listener

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

var (
	// ErrNotConnect is returned when a connection does not begin with a CONNECT
	// packet (MQTT 3.1.1 and 5, section 3.1: [MQTT-3.1.0-1]).
	ErrNotConnect = errors.New("the first packet is not CONNECT")
	// ErrMalformed is returned when a remaining length is encoded in more than
	// four bytes, or a CONNECT is too short to be one.
	ErrMalformed = errors.New("malformed packet")
	// ErrConnectTooLarge is returned when a CONNECT announces more than
	// Guard.ConnectLimit bytes.
	ErrConnectTooLarge = errors.New("CONNECT is over the limit")
	// ErrProtocolName is returned when a CONNECT's protocol name is neither
	// MQTT nor MQIsdp.
	ErrProtocolName = errors.New("unknown protocol name")
	// ErrProtocolLevel is returned when a CONNECT asks for a version of MQTT
	// other than 3.1, 3.1.1 and 5. The client has got a CONNACK with that
	// reason.
	ErrProtocolLevel = errors.New("unsupported protocol level")
	// ErrTextMessage is returned when a WebSocket client sends a text message;
	// MQTT requires binary messages (MQTT 5, section 6).
	ErrTextMessage = errors.New("a WebSocket text message, where MQTT is binary")
	// ErrNoPong is returned when a WebSocket peer sent nothing, not even the
	// answers to two pings.
	ErrNoPong = errors.New("two WebSocket pings without an answer")
	// ErrStopped is returned by Start after Stop.
	ErrStopped = errors.New("the listener was stopped")

	errProxyHeader = errors.New("PROXY header")
	errHandshake   = errors.New("TLS handshake")
	errAddrFull    = errors.New("too many connections from this address")
)

// Reasons for which a connection is refused: the values of the metric's label.
const (
	reasonFull        = "full"         // Limiter: connections overall
	reasonAddrFull    = "address_full" // Limiter: connections of one address
	reasonStopping    = "stopping"     // the listener is stopping
	reasonProxyHeader = "proxy_header" // a trusted proxy's PROXY header is missing or wrong
	reasonTLS         = "tls"          // the handshake failed
	reasonTimeout     = "timeout"      // no whole CONNECT in time
	reasonClosed      = "closed"       // the peer left before its CONNECT was complete
	reasonNotConnect  = "not_connect"
	reasonMalformed   = "malformed"
	reasonTooLarge    = "too_large"
	reasonProtocol    = "protocol"    // name or level of the protocol
	reasonUpgrade     = "upgrade"     // not a WebSocket handshake
	reasonSubprotocol = "subprotocol" // a WebSocket without the mqtt subprotocol
	reasonOrigin      = "origin"      // a page that is not on the allow-list
	reasonText        = "text"        // a WebSocket text message
)

var reasons = []struct {
	err    error
	reason string
}{
	// Checked first: a timeout or a close during a handshake counts as timeout
	// or closed.
	{os.ErrDeadlineExceeded, reasonTimeout},
	{io.EOF, reasonClosed},
	{io.ErrUnexpectedEOF, reasonClosed},
	{net.ErrClosed, reasonClosed},
	{syscall.ECONNRESET, reasonClosed},
	{errProxyHeader, reasonProxyHeader},
	{errHandshake, reasonTLS},
	{errAddrFull, reasonAddrFull},
	{ErrNotConnect, reasonNotConnect},
	{ErrMalformed, reasonMalformed},
	{ErrConnectTooLarge, reasonTooLarge},
	{ErrProtocolName, reasonProtocol},
	{ErrProtocolLevel, reasonProtocol},
	{ErrTextMessage, reasonText},
}

func reasonOf(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return reasonMalformed
}
