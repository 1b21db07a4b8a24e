package authhook_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/internal/mqttest"
)

// broker is a real Mochi server with the hook on a loopback port.
type broker struct {
	server *mqtt.Server
	hook   *authhook.Hook
	log    *logBuffer // of the hook alone
	addr   string
	events *events
}

// events is a second hook, as the broker's own is: it sees whom the first let in.
type events struct {
	mqtt.HookBase
	hook     *authhook.Hook
	policy   *authhook.Policy
	sessions chan *mqtt.Client // established
}

func (e *events) ID() string { return "events" }
func (e *events) Provides(b byte) bool {
	return b == mqtt.OnSessionEstablished || b == mqtt.OnACLCheck
}

func (e *events) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	e.sessions <- cl
}

// OnACLCheck asks the policy for Mochi, as the broker does by itself.
func (e *events) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	id := e.hook.Identity(cl)
	if id == nil {
		return false
	}
	if write {
		return e.policy.CanPublish(context.Background(), id, topic) == nil
	}
	return e.policy.CanSubscribe(context.Background(), id, topic) == nil
}

// conn is a connection that may bring a token, as a WebSocket does.
type conn struct {
	net.Conn
	token string
}

func (c conn) Token() string { return c.token }

// serve starts a broker; wrap, if not nil, wraps its connections.
func serve(t *testing.T, cfg authhook.HookConfig, wrap func(net.Conn) net.Conn) *broker {
	t.Helper()
	b := &broker{log: &logBuffer{}, events: &events{sessions: make(chan *mqtt.Client, 64)}}
	cfg.Log = b.log.logger()
	if cfg.Verifier == nil {
		cfg.Verifier = newVerifier(t, authhook.VerifierConfig{Secret: secret})
	}
	if cfg.Policy == nil {
		cfg.Policy = authhook.NewPolicy(nil)
	}
	hook, err := authhook.NewHook(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.hook = hook
	b.events.hook, b.events.policy = hook, cfg.Policy
	b.server = mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)})
	for _, h := range []mqtt.Hook{hook, b.events} {
		if err := b.server.AddHook(h, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.server.Serve(); err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr = l.Addr().String()
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if wrap != nil {
				c = wrap(c)
			}
			serving.Go(func() {
				_ = b.server.EstablishConnection("t", c) // its error is the client's end
				_ = c.Close()                            // Mochi leaves it open when CONNECT fails to parse
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close() // ends the loop above
		for _, cl := range b.server.Clients.GetAll() {
			cl.Stop(nil)
		}
		serving.Wait()
		if err := b.server.Close(); err != nil {
			t.Error(err)
		}
		if n := b.hook.Connections(); n != 0 {
			t.Errorf("%d identities are left of connections that are gone", n)
		}
	})
	return b
}

// options are those of most tests.
func options(version byte, clientID, token string) mqttest.Options {
	return mqttest.Options{Version: version, ClientID: clientID, Token: token, Keepalive: 60}
}

// connect dials, sends CONNECT and returns the CONNACK. change, if not nil, changes the
// CONNECT before.
func (b *broker) connect(tb testing.TB, version byte, clientID, token string, change func(*mqttest.Options)) (*mqttest.Client, packets.Packet) {
	tb.Helper()
	o := options(version, clientID, token)
	if change != nil {
		change(&o)
	}
	c := mqttest.Dial(tb, b.addr, o)
	return c, c.Connack
}

// connected is connect for those who are let in; it also returns the broker's
// side of it.
func (b *broker) connected(tb testing.TB, version byte, clientID, token string, change func(*mqttest.Options)) (*mqttest.Client, *mqtt.Client) {
	tb.Helper()
	c, ack := b.connect(tb, version, clientID, token, change)
	if ack.ReasonCode != 0 {
		tb.Fatalf("refused: 0x%02x %s", ack.ReasonCode, ack.Properties.ReasonString)
	}
	select {
	case cl := <-b.events.sessions:
		return c, cl
	case <-time.After(30 * time.Second):
		tb.Fatal("no session was established")
		return nil, nil
	}
}

// mustBeClosed fails unless the broker closes the connection without a further packet.
func mustBeClosed(tb testing.TB, c *mqttest.Client) {
	tb.Helper()
	if pk, err := c.Read(mqttest.Timeout); err == nil {
		tb.Fatalf("the connection goes on with %s", packets.PacketNames[pk.FixedHeader.Type])
	} else if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		tb.Fatal("the connection stays open")
	}
}

// subscribed returns the code that SUBACK has for the filter.
func subscribed(tb testing.TB, c *mqttest.Client, filter string) byte {
	tb.Helper()
	codes := c.Subscribe(1, filter)
	if len(codes) != 1 {
		tb.Fatalf("SUBACK has %v for one filter", codes)
	}
	return codes[0]
}
