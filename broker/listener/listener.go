// Package listener holds Mynah's own doors for MQTT: TCP, TLS and WebSocket.
// A door hands a guarded connection to a [Handler], which runs Mochi's
// EstablishConnection on it.
//
// It guarantees, for every connection and before the Handler sees a byte:
//
//   - The first packet is a whole CONNECT of a bounded size and a known
//     protocol. It came within one deadline that covers the PROXY header, the
//     TLS handshake and the packet itself, however slowly they were sent.
//   - Memory grows with what really arrived, not with what a length announced.
//   - The remote address is the client's, and only a trusted proxy may say so.
//
// And while the Handler runs:
//
//   - A packet whose remaining length is encoded in more than four bytes ends
//     its connection (Mochi accepts any number of them).
//   - A panic in the Handler ends its connection only.
//   - One goroutine serves a connection, over WebSocket too.
//
// All doors together, an HTTP server's too, leave the process file descriptors for
// what cannot go on without: see [Descriptors]. A failing Accept (too many open
// files) is retried for ever all the same. Stop leaves no connection and no
// goroutine behind.
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

// Guard is what every door asks of a connection and where it hands it. One
// Guard value may be copied into several doors, which then share its Limiter
// and its Metrics.
type Guard struct {
	// Handler serves the connection. Required. After a panic in it the
	// connection is closed; whatever else there is to clean up it defers.
	Handler Handler
	// FirstPacketTimeout is how long a connection may take, from being accepted,
	// to have sent the whole of its CONNECT. 0 means DefaultFirstPacketTimeout.
	FirstPacketTimeout time.Duration
	// ConnectLimit is the largest remaining length of a CONNECT, in bytes. 0
	// means DefaultConnectLimit: a will's payload may take the 64 KiB of the
	// message limit (and no more than 65,535 bytes by its format), which leaves
	// as much again for the token, will topic, client id and MQTT 5 properties.
	ConnectLimit int
	// Limiter bounds the open connections. nil means no bound.
	Limiter *Limiter
	// Metrics counts. nil means nobody looks.
	Metrics *Metrics
	// Logger gets refusals at debug level, since a hostile peer decides how many
	// there are, and failures of ours at warn and error. nil means silence.
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
