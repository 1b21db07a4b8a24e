// Package listener implements the MQTT listeners: TCP, TLS and WebSocket. A
// listener checks each new connection and passes it to a [Handler]. Make one
// with [NewTCP] or [NewWebSocket]; all configurations contain a [Guard].
//
// Before the Handler gets a byte, it guarantees for every connection:
//
//   - The first packet is a whole CONNECT of a bounded size and a known
//     protocol. It came within one deadline that covers the PROXY header, the
//     TLS handshake and the packet itself, however slowly they were sent.
//   - Memory grows with the received bytes, not with an announced length.
//   - The remote address is the client's, and only a trusted proxy may set it.
//
// And while the Handler runs:
//
//   - A packet whose remaining length is encoded in more than four bytes ends
//     its connection (Mochi accepts any number of them).
//   - A panic in the Handler ends its connection only.
//   - One goroutine serves a connection, over WebSocket too.
//
// All listeners together, HTTP included, leave file descriptors for the message log:
// see [Descriptors]. A failing Accept (too many open files) is retried forever. Stop
// leaves no connection and no goroutine behind.
package listener

import (
	"errors"
	"log/slog"
	"time"
)

// Defaults of [Guard] and [WSConfig].
const (
	DefaultFirstPacketTimeout = 10 * time.Second
	DefaultConnectLimit       = 128 << 10
	DefaultPingInterval       = 30 * time.Second
	DefaultMessageLimit       = 1 << 20
)

// Handler serves one connection on the calling goroutine until it ends. id
// names the door: "mqtt", "mqtts" or "ws". The connection is closed when the
// Handler returns; its error is logged at debug level only.
type Handler func(id string, c *Conn) error

// Guard is the common configuration of all listeners: the limits for a new
// connection, and the Handler that gets it. Several listeners may copy one
// Guard; they then share its Limiter and its Metrics.
type Guard struct {
	// Handler serves the connection. Required. After a panic in it the
	// connection is closed; the Handler must defer any other clean-up.
	Handler Handler
	// FirstPacketTimeout is how long a connection may take from Accept to the
	// end of its CONNECT. 0 means DefaultFirstPacketTimeout.
	FirstPacketTimeout time.Duration
	// ConnectLimit is the largest remaining length of a CONNECT, in bytes. 0
	// means DefaultConnectLimit: a will's payload has at most 65,535 bytes by
	// its format, and the rest is for the token, will topic, client id and MQTT
	// 5 properties.
	ConnectLimit int
	// Limiter bounds the open connections. nil means no bound.
	Limiter *Limiter
	// Metrics counts connections. nil means no metrics.
	Metrics *Metrics
	// Logger gets refusals at debug level, since a hostile peer decides their
	// number, and our own failures at warn and error. nil means no logging.
	Logger *slog.Logger
}

func (g *Guard) setDefaults() error {
	if g.Handler == nil {
		return errors.New("listener: a Guard needs a Handler")
	}
	if g.FirstPacketTimeout < 0 || g.ConnectLimit < 0 || g.ConnectLimit > maxRemaining {
		return errors.New("listener: FirstPacketTimeout and ConnectLimit must not be negative, nor ConnectLimit beyond MQTT's 268,435,455")
	}
	if g.FirstPacketTimeout == 0 {
		g.FirstPacketTimeout = DefaultFirstPacketTimeout
	}
	if g.ConnectLimit == 0 {
		g.ConnectLimit = DefaultConnectLimit
	}
	if g.Metrics == nil {
		g.Metrics = NewMetrics()
	}
	if g.Logger == nil {
		g.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}
