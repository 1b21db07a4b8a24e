package listener

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"mynah/internal/forwarded"
	"mynah/internal/loglimit"
	"mynah/internal/origin"
)

// readBuffer is the size of Gorilla's read buffer in bytes per connection.
// Larger reads bypass it; smaller frames that came together share one system
// call.
const readBuffer = 1 << 10

// subprotocols are the supported ones, the preferred one first: mqtt is MQTT's
// own (MQTT 5, section 6), mqttv3.1 is requested by old clients.
var subprotocols = []string{"mqtt", "mqttv3.1"}

// WSConfig configures a [WebSocket] listener.
type WSConfig struct {
	Guard
	// ID names the door. "" means "ws".
	ID string
	// AllowedOrigins are the pages that may connect: scheme://host[:port],
	// scheme://*.domain for all hosts below a domain, file:// or null for what
	// has no host, or *. Pages from the host that they connect to, mini-programs
	// and clients that send no Origin, which are not in a browser, always may.
	AllowedOrigins []string
	// TrustedProxies are the addresses whose ForwardedHeader is believed.
	TrustedProxies []netip.Prefix
	// ForwardedHeader is where TrustedProxies put the client's address:
	// "X-Forwarded-For" (the default) or "Forwarded". The other one is ignored:
	// a proxy that sets one passes the client's own copy of the other on.
	ForwardedHeader string
	// PingInterval is the time between two pings of the server, which also
	// keep proxies from closing an idle connection (nginx does after 60 s). A
	// peer that has sent nothing, not even a pong, when the third ping is due
	// is disconnected. 0 means DefaultPingInterval, a negative value no pings.
	PingInterval time.Duration
	// MessageLimit is the largest WebSocket message from a client, in bytes. A
	// message may hold many packets and is never held in memory as a whole. 0
	// means DefaultMessageLimit.
	MessageLimit int64
}

// WebSocket is a listener for MQTT over WebSocket: an [http.Handler] to be mounted
// at /mqtt. The HTTP server's ReadHeaderTimeout bounds the time before the
// handler is called, and FirstPacketTimeout what follows. permessage-deflate is
// not offered: it costs memory by the connection and MQTT packets are small.
//
// http.Server.Shutdown does not know upgraded connections: Stop ends them.
type WebSocket struct {
	server   *server
	cfg      WSConfig
	origins  origin.List
	source   forwarded.Source
	upgrader websocket.Upgrader

	refusedOrigins *loglimit.Limiter
}

// Limits for the log lines about refused origins, since any page can cause
// them.
const (
	originLogBurst    = 10
	originLogInterval = time.Minute
)

// NewWebSocket returns a WebSocket listener. It fails on a malformed origin or
// header name.
func NewWebSocket(cfg WSConfig) (*WebSocket, error) {
	if cfg.ID == "" {
		cfg.ID = "ws"
	}
	if cfg.PingInterval == 0 {
		cfg.PingInterval = DefaultPingInterval
	}
	if cfg.MessageLimit == 0 {
		cfg.MessageLimit = DefaultMessageLimit
	}
	header, err := forwarded.ParseHeader(cfg.ForwardedHeader)
	if err != nil {
		return nil, fmt.Errorf("listener: %w", err)
	}
	allowed, err := origin.Parse(cfg.AllowedOrigins)
	if err != nil {
		return nil, fmt.Errorf("listener: allowed origin %w", err)
	}
	d, err := newServer(cfg.ID, cfg.Guard)
	if err != nil {
		return nil, err
	}
	return &WebSocket{
		server: d, cfg: cfg, origins: allowed, source: forwarded.Source{Header: header, Trusted: cfg.TrustedProxies},
		refusedOrigins: loglimit.New(originLogBurst, originLogInterval),
		upgrader: websocket.Upgrader{
			ReadBufferSize: readBuffer,
			// With a pool, Gorilla needs a write buffer only for data frames,
			// and wire writes those itself.
			WriteBufferPool: noBuffers{},
			Subprotocols:    subprotocols,
			CheckOrigin:     func(*http.Request) bool { return true }, // has been checked
		},
	}, nil
}

// ServeHTTP upgrades the request to a WebSocket and returns; the connection is
// served on a goroutine of its own, so that nothing of the HTTP server's (its
// buffers of 8 KiB, the request, a deep stack) lives as long as the connection.
func (s *WebSocket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	deadline := time.Now().Add(s.server.FirstPacketTimeout)
	if !websocket.IsWebSocketUpgrade(r) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		s.refuse(w, reasonUpgrade, http.StatusUpgradeRequired, "this is the door for MQTT over WebSocket: connect with an MQTT client")
		return
	}
	if !slices.ContainsFunc(websocket.Subprotocols(r), func(p string) bool { return slices.Contains(subprotocols, p) }) {
		s.refuse(w, reasonSubprotocol, http.StatusBadRequest, "the WebSocket subprotocol must be mqtt")
		return
	}
	remote := s.source.Client(r)
	if !s.originAllowed(r) {
		s.logRefusedOrigin(r, remote)
		s.refuse(w, reasonOrigin, http.StatusForbidden, "pages of this origin are not allowed to connect")
		return
	}
	if !s.server.Limiter.acquire() {
		w.Header().Set("Retry-After", "5")
		s.refuse(w, reasonFull, http.StatusServiceUnavailable, "too many connections")
		return
	}
	if !s.server.Limiter.acquireAddr(remote.Addr()) {
		s.server.Limiter.release()
		w.Header().Set("Retry-After", "5")
		s.refuse(w, reasonAddrFull, http.StatusTooManyRequests, "too many connections from this address")
		return
	}
	c := &Conn{server: s.server, remote: remote, counted: true, token: token(r)}
	if err := s.upgrade(c, w, r, deadline); err != nil {
		s.server.Limiter.releaseAddr(remote.Addr())
		s.server.Limiter.release()
		if errors.Is(err, ErrStopped) {
			s.server.meter.countRefusal(reasonStopping)
		} else {
			s.server.meter.countRefusal(reasonUpgrade)
		}
		s.server.Logger.Debug("WebSocket handshake failed", "door", s.server.id, "reason", err.Error())
		return
	}
	go s.server.serve(c, nil)
}

// upgrade makes c a tracked WebSocket. On failure, it has answered the request
// or closed the connection.
func (s *WebSocket) upgrade(c *Conn, w http.ResponseWriter, r *http.Request, deadline time.Time) error {
	if s.server.isStopping() {
		http.Error(w, "the server is stopping", http.StatusServiceUnavailable)
		return ErrStopped
	}
	lower := &wire{}
	ws, err := s.upgrader.Upgrade(&hijackWrapper{ResponseWriter: w, wire: lower}, r, nil)
	if err != nil {
		return err
	}
	ws.SetReadLimit(s.cfg.MessageLimit)
	c.stream = &stream{wire: lower, ws: ws, server: s.server}
	c.Conn, c.socket = c.stream, lower.Conn
	if t, ok := lower.Conn.(*tls.Conn); ok {
		c.socket = t.NetConn() // closing TLS would wait until the peer reads an alert
	}
	err = c.SetDeadline(deadline)
	if err == nil && s.cfg.PingInterval > 0 {
		err = lower.startPings(s.cfg.PingInterval)
	}
	if err == nil && !s.server.add(c) {
		err = ErrStopped
	}
	if err != nil {
		_ = c.socket.Close()
	}
	return err
}

func (s *WebSocket) refuse(w http.ResponseWriter, reason string, status int, text string) {
	s.server.meter.countRefusal(reason)
	http.Error(w, text, status)
}

// token returns the credential of a handshake: a browser cannot set a header, so
// the query may hold it too. The copy does not hold the whole request line.
func token(r *http.Request) string {
	if scheme, value, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.Clone(strings.TrimSpace(value))
	}
	return strings.Clone(r.URL.Query().Get("access_token"))
}

// StopAccepting answers new requests with 503 and keeps the connections.
func (s *WebSocket) StopAccepting() { s.server.stopAccepting() }

// Stop ends all connections, with close code 1001, and waits until their
// Handlers have returned. When ctx ends before, it returns an error that says
// how many have not. It is harmless to repeat.
func (s *WebSocket) Stop(ctx context.Context) error { return s.server.stop(ctx) }

// hijackWrapper puts a wire between Gorilla and the socket.
type hijackWrapper struct {
	http.ResponseWriter
	wire *wire
}

// Hijack implements http.Hijacker.
func (h *hijackWrapper) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil { // the HTTP server's
		_ = conn.Close()
		return nil, nil, err
	}
	h.wire.Conn = conn
	h.wire.tcp = tcpOf(conn)
	return h.wire, rw, nil
}

// noBuffers is an empty pool; Gorilla never takes a buffer from it.
type noBuffers struct{}

// Get implements websocket.BufferPool.
func (noBuffers) Get() any { return nil }

// Put implements websocket.BufferPool.
func (noBuffers) Put(any) {}
