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

// readBuffer is Gorilla's read buffer, in bytes a connection. Larger reads pass
// it by; smaller frames that came together share one system call.
const readBuffer = 1 << 10

// subprotocols that we speak, the preferred one first: mqtt is MQTT's own (MQTT
// 5, section 6), mqttv3.1 is what clients of that time ask for.
var subprotocols = []string{"mqtt", "mqttv3.1"}

// WSConfig configures a [WebSocket] door.
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
	// "X-Forwarded-For" (the default) or "Forwarded". The other one is ignored,
	// as a proxy that sets one lets a client's own other one pass.
	ForwardedHeader string
	// PingInterval is how often the server pings, also to keep proxies from
	// closing an idle connection (nginx does after 60 s). A peer that has sent
	// nothing, not even a pong, when the third is due is disconnected. 0 means
	// DefaultPingInterval, a negative value no pings.
	PingInterval time.Duration
	// MessageLimit is the largest WebSocket message from a client, in bytes. A
	// message may hold many packets and is never held in memory as a whole. 0
	// means DefaultMessageLimit.
	MessageLimit int64
}

// WebSocket is a door for MQTT over WebSocket: an [http.Handler] to be mounted
// at /mqtt. The HTTP server's ReadHeaderTimeout bounds the time before the
// handler is called, and FirstPacketTimeout what follows. permessage-deflate is
// not offered: it costs memory by the connection and MQTT packets are small.
//
// http.Server.Shutdown does not know upgraded connections: Stop ends them.
type WebSocket struct {
	door     *door
	cfg      WSConfig
	origins  origin.List
	source   forwarded.Source
	upgrader websocket.Upgrader

	refusedOrigins *loglimit.Limiter
}

// How many refused origins are logged: any page can cause as many as it likes.
const (
	originsAtOnce = 10
	originsEvery  = time.Minute
)

// NewWebSocket returns a WebSocket door. It fails on a malformed origin or
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
	d, err := newDoor(cfg.ID, cfg.Guard)
	if err != nil {
		return nil, err
	}
	return &WebSocket{
		door: d, cfg: cfg, origins: allowed, source: forwarded.Source{Header: header, Trusted: cfg.TrustedProxies},
		refusedOrigins: loglimit.New(originsAtOnce, originsEvery),
		upgrader: websocket.Upgrader{
			ReadBufferSize: readBuffer,
			// With a pool Gorilla takes a write buffer only for data frames,
			// and those are written past it: see wire.
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
	deadline := time.Now().Add(s.door.FirstPacketTimeout)
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
	if !s.mayCome(r) {
		s.logRefusedOrigin(r, remote)
		s.refuse(w, reasonOrigin, http.StatusForbidden, "pages of this origin are not allowed to connect")
		return
	}
	if !s.door.Limiter.take() {
		w.Header().Set("Retry-After", "5")
		s.refuse(w, reasonFull, http.StatusServiceUnavailable, "too many connections")
		return
	}
	if !s.door.Limiter.takeAddr(remote.Addr()) {
		s.door.Limiter.give()
		w.Header().Set("Retry-After", "5")
		s.refuse(w, reasonAddrFull, http.StatusTooManyRequests, "too many connections from this address")
		return
	}
	c := &Conn{door: s.door, remote: remote, counted: true, token: token(r)}
	if err := s.upgrade(c, w, r, deadline); err != nil {
		s.door.Limiter.giveAddr(remote.Addr())
		s.door.Limiter.give()
		if errors.Is(err, ErrStopped) {
			s.door.meter.refuse(reasonStopping)
		} else {
			s.door.meter.refuse(reasonUpgrade)
		}
		s.door.Logger.Debug("WebSocket handshake failed", "door", s.door.id, "reason", err.Error())
		return
	}
	go s.door.serve(c, nil)
}

// upgrade makes c a tracked WebSocket. When it fails, the answer has been given
// or the connection closed.
func (s *WebSocket) upgrade(c *Conn, w http.ResponseWriter, r *http.Request, deadline time.Time) error {
	if s.door.refusing() {
		http.Error(w, "the server is stopping", http.StatusServiceUnavailable)
		return ErrStopped
	}
	lower := &wire{}
	ws, err := s.upgrader.Upgrade(&hijacker{ResponseWriter: w, wire: lower}, r, nil)
	if err != nil {
		return err
	}
	ws.SetReadLimit(s.cfg.MessageLimit)
	c.stream = &stream{wire: lower, ws: ws, door: s.door}
	c.Conn, c.socket = c.stream, lower.Conn
	if t, ok := lower.Conn.(*tls.Conn); ok {
		c.socket = t.NetConn() // closing TLS waits for the peer to take an alert
	}
	err = c.SetDeadline(deadline)
	if err == nil && s.cfg.PingInterval > 0 {
		err = lower.startPings(s.cfg.PingInterval)
	}
	if err == nil && !s.door.add(c) {
		err = ErrStopped
	}
	if err != nil {
		_ = c.socket.Close()
	}
	return err
}

func (s *WebSocket) refuse(w http.ResponseWriter, reason string, status int, text string) {
	s.door.meter.refuse(reason)
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

// StopAccepting answers new requests with 503 and leaves the connections alone.
func (s *WebSocket) StopAccepting() { s.door.refuse() }

// Stop ends all connections, with close code 1001, and waits until their
// Handlers have returned. When ctx ends before, it returns an error that says
// how many have not. It is harmless to repeat.
func (s *WebSocket) Stop(ctx context.Context) error { return s.door.stop(ctx) }

// hijacker puts the wire between Gorilla and the socket.
type hijacker struct {
	http.ResponseWriter
	wire *wire
}

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
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

// noBuffers is a pool that keeps nothing, as nothing is ever taken.
type noBuffers struct{}

// Get implements websocket.BufferPool.
func (noBuffers) Get() any { return nil }

// Put implements websocket.BufferPool.
func (noBuffers) Put(any) {}
