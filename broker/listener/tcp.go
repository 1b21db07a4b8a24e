package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	acceptBackoffMin = 5 * time.Millisecond
	acceptBackoffMax = time.Second
	// acceptLogInterval is how often a lasting failure to accept is logged.
	acceptLogInterval = 10 * time.Second
)

// keepAlive finds a peer whose machine is gone within two minutes, independent
// of the keep-alive in its CONNECT.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}

// TCPConfig configures a [TCP] listener.
type TCPConfig struct {
	Guard
	// ID names the door. "" means "mqtt", or "mqtts" with TLS.
	ID string
	// Addr is where to listen, as in net.Listen: ":1883".
	Addr string
	// Listener, if not nil, is served instead of one on Addr (socket
	// activation). The listener closes it.
	Listener net.Listener
	// Descriptors bounds the connections of this listener and others together. nil
	// means no bound.
	Descriptors *Descriptors
	// TLS, if not nil, makes the listener speak TLS. See [CertReloader].
	TLS *tls.Config
	// ProxyProtocol expects a PROXY header, version 1 or 2, on every connection
	// from TrustedProxies, and takes the client's address from it. From any
	// other address a header is refused, since it is not a CONNECT.
	ProxyProtocol bool
	// TrustedProxies are the addresses that ProxyProtocol believes.
	TrustedProxies []netip.Prefix
}

// TCP is a listener for MQTT over TCP or TLS. TCP_NODELAY and keep-alive are on.
type TCP struct {
	server *server
	cfg    TCPConfig

	startMu    sync.Mutex // guards ln, and Start against Stop
	ln         net.Listener
	stopping   chan struct{} // closed by StopAccepting
	acceptDone chan struct{} // closed when the accept loop has ended
}

// NewTCP returns a TCP listener, not yet listening. It fails on a contradictory
// configuration.
func NewTCP(cfg TCPConfig) (*TCP, error) {
	if cfg.ProxyProtocol && len(cfg.TrustedProxies) == 0 {
		return nil, errors.New("listener: the PROXY protocol needs the addresses of the proxies to trust")
	}
	if cfg.ID == "" {
		cfg.ID = "mqtt"
		if cfg.TLS != nil {
			cfg.ID = "mqtts"
		}
	}
	d, err := newServer(cfg.ID, cfg.Guard)
	if err != nil {
		return nil, err
	}
	return &TCP{server: d, cfg: cfg, stopping: make(chan struct{}), acceptDone: make(chan struct{})}, nil
}

// Start listens and begins to serve. ctx bounds the listening call only. A
// second Start does nothing; a Start after Stop returns ErrStopped.
func (t *TCP) Start(ctx context.Context) error {
	t.startMu.Lock()
	defer t.startMu.Unlock()
	if t.server.isStopping() {
		return ErrStopped
	}
	if t.ln != nil {
		return nil
	}
	ln := t.cfg.Listener
	if ln == nil {
		lc := net.ListenConfig{KeepAliveConfig: keepAlive}
		var err error
		if ln, err = lc.Listen(ctx, "tcp", t.cfg.Addr); err != nil {
			return fmt.Errorf("listen for %s on %s: %w", t.server.id, t.cfg.Addr, err)
		}
	}
	t.ln = t.cfg.Descriptors.Listener(ln, t.server.id, 0)
	go t.acceptLoop(t.ln)
	return nil
}

// Addr returns the address that the listener listens on, or nil before Start.
func (t *TCP) Addr() net.Addr {
	t.startMu.Lock()
	defer t.startMu.Unlock()
	if t.ln == nil {
		return nil
	}
	return t.ln.Addr()
}

// StopAccepting closes the listening socket and keeps the connections, for a
// stop in which clients first get a DISCONNECT.
func (t *TCP) StopAccepting() {
	t.startMu.Lock()
	defer t.startMu.Unlock()
	if t.server.isStopping() {
		return
	}
	t.server.stopAccepting()
	close(t.stopping)
	if t.ln != nil {
		_ = t.ln.Close()
	}
}

// Stop closes the listener and all its connections, and waits until their Handlers
// have returned. When ctx ends before, it returns an error that says what it gave
// up on: how many have not. A second Stop waits again.
func (t *TCP) Stop(ctx context.Context) error {
	t.StopAccepting()
	var err error
	if t.Addr() != nil {
		select {
		case <-t.acceptDone:
		case <-ctx.Done():
			err = fmt.Errorf("stop %s: gave up on waiting until it accepts nothing more: %w", t.cfg.ID, ctx.Err())
		}
	}
	return errors.Join(err, t.server.stop(ctx)) // connections are closed in any case
}

// acceptLoop accepts connections until StopAccepting. No error ends it: too many
// open files, a connection that was reset in the queue, or a kernel out of
// memory are temporary. A listener that closed then would need an operator.
func (t *TCP) acceptLoop(ln net.Listener) {
	defer close(t.acceptDone)
	var (
		backoff time.Duration
		logged  time.Time
	)
	for {
		conn, err := ln.Accept()
		if err == nil {
			backoff = 0
			t.serveOrRefuse(conn)
			continue
		}
		select {
		case <-t.stopping:
			return
		default:
		}
		t.server.meter.accept.Inc()
		backoff = min(max(2*backoff, acceptBackoffMin), acceptBackoffMax)
		if now := time.Now(); now.Sub(logged) >= acceptLogInterval {
			logged = now
			t.server.Logger.Warn("cannot accept a connection, will retry", "door", t.server.id, "error", err.Error(), "retry_in", backoff)
		}
		timer := time.NewTimer(backoff)
		select {
		case <-timer.C:
		case <-t.stopping:
			timer.Stop()
			return
		}
	}
}

// serveOrRefuse starts a goroutine that serves conn, or closes conn at once
// when there are too many.
func (t *TCP) serveOrRefuse(conn net.Conn) {
	deadline := time.Now().Add(t.server.FirstPacketTimeout)
	c := &Conn{Conn: conn, server: t.server, socket: conn}
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		c.remote = unmapped(a.AddrPort())
	}
	proxied := t.cfg.ProxyProtocol && containsAddr(t.cfg.TrustedProxies, c.remote.Addr())
	reason := ""
	switch {
	case !t.server.Limiter.acquire():
		reason = reasonFull
	case !proxied && !t.server.Limiter.acquireAddr(c.remote.Addr()):
		t.server.Limiter.release()
		reason = reasonAddrFull
	default:
		c.counted = !proxied
		if !t.server.add(c) {
			if c.counted {
				t.server.Limiter.releaseAddr(c.remote.Addr())
			}
			t.server.Limiter.release()
			reason = reasonStopping
		}
	}
	if reason != "" {
		t.server.meter.countRefusal(reason)
		resetConn(conn)
		return
	}
	_ = conn.SetDeadline(deadline) // fails only on a closed connection, which the first read reports
	var prepare func(*Conn) error
	if proxied || t.cfg.TLS != nil {
		prepare = func(c *Conn) error { return t.prepare(c, proxied) }
	}
	go t.server.serve(c, prepare)
}

// prepare handles what precedes MQTT: the PROXY header and the TLS handshake.
func (t *TCP) prepare(c *Conn, proxied bool) error {
	if proxied {
		if err := t.readProxyHeader(c); err != nil {
			return err
		}
	}
	if t.cfg.TLS != nil {
		conn := tls.Server(c.Conn, t.cfg.TLS)
		c.Conn = conn
		// The socket's deadline bounds it. A context that can end would cost a
		// goroutine for each handshake.
		if err := conn.HandshakeContext(context.Background()); err != nil {
			return fmt.Errorf("%w: %w", errHandshake, err)
		}
	}
	return nil
}

func containsAddr(prefixes []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
