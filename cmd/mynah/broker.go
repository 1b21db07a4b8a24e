package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"time"

	"mynah/authhook"
	"mynah/broker"
	"mynah/broker/msglog"
	"mynah/chat"
)

// brokerFolder is the broker's part of the data directory.
const brokerFolder = "broker"

// brokerStopTimeout is how long the broker may take to commit what has arrived, to send
// DISCONNECT to its clients, and to close the log.
const brokerStopTimeout = 10 * time.Second

// startBroker opens the message log and then the listeners for MQTT.
func (s *server) startBroker(ctx context.Context) error {
	proxies, err := s.cfg.proxies()
	if err != nil {
		return err
	}
	tcp, tls := s.cfg.MQTTAddr, ""
	if tcp == off {
		tcp = ""
	}
	if s.cfg.TLSCert != "" && s.cfg.MQTTSAddr != off {
		tls = s.cfg.MQTTSAddr
	}
	var rights authhook.Directory // nil without a database
	if s.directory != nil {
		rights = s.directory
	}
	cfg := broker.Config{
		Version:         version,
		Directory:       rights,
		DataDir:         filepath.Join(s.cfg.DataDir, brokerFolder),
		MQTTAddr:        tcp,
		MQTTSAddr:       tls,
		TLSCert:         s.cfg.TLSCert,
		TLSKey:          s.cfg.TLSKey,
		Verifier:        s.verifier,
		Limiter:         s.cfg.limiter(s.cfg.PublishRate),
		ProxyProtocol:   s.cfg.ProxyProtocol,
		TrustedProxies:  proxies,
		ForwardedHeader: s.cfg.Forwarded,
		AllowedOrigins:  s.cfg.AllowOrigin,
		MaxConns:        s.cfg.MaxConnections,
		MaxConnsPerAddr: s.cfg.AddressMax,
		Descriptors:     s.files.shared,
		Log:             msglog.Options{OpenFiles: s.files.forLog()},
		NoArchive:       s.cfg.NoArchive,
		Limits:          chat.Limits{Payload: int(s.cfg.MaxPayload), Depth: s.cfg.MaxDepth, Rendered: int(s.cfg.MaxMessage)},
		Retention:       msglog.Retention{MaxAge: s.cfg.RetainAge, MaxBytes: uint64(max(s.cfg.RetainSize, 0))},
		SessionExpiry:   s.cfg.SessionExpiry,
		Logger:          s.log.With("part", "broker"),
		Registry:        s.registry,
	}
	s.cfg.setLimits(&cfg)
	b, err := s.openBroker(ctx, cfg)
	if err != nil {
		return s.brokerError(err)
	}
	s.shutdown.pushSlow("broker", brokerStopTimeout, func(ctx context.Context) error {
		err := b.Stop(ctx)
		if s.failed && errors.Is(err, msglog.ErrFailed) {
			return nil // wait has told
		}
		return err
	})
	if err := b.Start(ctx); err != nil {
		return s.brokerError(err)
	}
	s.broker = b
	s.health.add(check{name: "broker", fails: func(context.Context) error { return b.Ready() }})
	return nil
}

// errStopped ends a start that was still waiting when a stop was asked for.
var errStopped = errors.New("stopped before the broker had been started")

// openBroker opens the message log. On a disk that is full it waits for room, however
// long that takes: to end would only mean to be started again, and to be given up by a
// supervisor that has seen it end a few times.
func (s *server) openBroker(ctx context.Context, cfg broker.Config) (*broker.Broker, error) {
	told := false
	for {
		b, err := broker.New(cfg)
		if !errors.Is(err, msglog.ErrFull) {
			return b, err
		}
		if !told {
			s.log.Error("--data-dir: the disk is full; the broker starts when there is room", "err", err)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, errStopped
		case <-time.After(diskFullPause):
		}
	}
}

// brokerError names the flag that is to blame.
func (s *server) brokerError(err error) error {
	var listen *net.OpError
	switch {
	case errors.Is(err, msglog.ErrInUse):
		return refuse("data-dir", "%s is in use by another mynah; stop it or give another directory", s.cfg.DataDir)
	case errors.Is(err, msglog.ErrNewer):
		return refuse("data-dir", "%s: %w; start that version or a newer one", s.cfg.DataDir, err)
	case errors.As(err, &listen) && listen.Op == "listen":
		flag, addr := "mqtt-addr", s.cfg.MQTTAddr
		if listen.Addr != nil && s.cfg.MQTTSAddr != "" && samePort(listen.Addr.String(), s.cfg.MQTTSAddr) {
			flag, addr = "mqtts-addr", s.cfg.MQTTSAddr
		}
		return listenError(flag, addr, err)
	case errors.Is(err, fs.ErrPermission):
		return s.noPermission(err)
	}
	return fmt.Errorf("start the broker: %w", err)
}

// noPermission says whose the data directory should be.
func (s *server) noPermission(err error) error {
	return refuse("data-dir", "%s may not be made or written to by this user; make it and give it to the user, or name another (%w)", s.cfg.DataDir, err)
}

func samePort(a, b string) bool {
	_, portA, errA := net.SplitHostPort(a)
	_, portB, errB := net.SplitHostPort(b)
	return errA == nil && errB == nil && portA == portB
}

// internalBrokerURL returns the address at which parts in this process reach the broker. It
// is the public listener if that is usable. If there is none, or if it expects a load
// balancer's header, it is a WebSocket on a free port of the loopback interface.
func (s *server) internalBrokerURL(ctx context.Context) (string, error) {
	if s.cfg.MQTTAddr != off && !s.cfg.ProxyProtocol {
		return "tcp://" + loopback(s.broker.MQTTAddr()), nil
	}
	door, err := s.listenWeb(ctx, "own", "mqtt-addr", "127.0.0.1:0", operatorsExtra)
	if err != nil {
		return "", err
	}
	s.shutdown.push("own door", door.stop)
	door.serve(s.broker.WebSocketHandler())
	return "ws://" + door.listener.Addr().String() + "/mqtt", nil
}

// loopback returns an address that a listener answers on from this machine.
func loopback(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

func addrString(addr net.Addr) string {
	if addr == nil {
		return ""
	}
	return addr.String()
}
