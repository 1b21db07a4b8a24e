package authhook_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
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
	sessions chan *mqtt.Client // established
}

func (e *events) ID() string           { return "events" }
func (e *events) Provides(b byte) bool { return b == mqtt.OnSessionEstablished }
func (e *events) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	e.sessions <- cl
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
		cfg.Verifier = newVerifier(t, authhook.VerifierConfig{Secret: secret, Revoked: cfg.Revoked})
	}
	hook, err := authhook.NewHook(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.hook = hook
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

// client is a plain MQTT client that says what it is told to.
type client struct {
	t       testing.TB
	c       net.Conn
	r       *bufio.Reader
	version byte
}

// dial opens a connection to the broker.
func (b *broker) dial(tb testing.TB, version byte) *client {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", b.addr)
	if err != nil {
		tb.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() }) // also closed by tests
	return &client{t: tb, c: c, r: bufio.NewReader(c), version: version}
}

// connect dials, sends CONNECT and returns the CONNACK.
func (b *broker) connect(tb testing.TB, version byte, clientID, token string, change func(*packets.Packet)) (*client, packets.Packet) {
	tb.Helper()
	c := b.dial(tb, version)
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: packets.Connect},
		ProtocolVersion: version,
		Connect: packets.ConnectParams{
			ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: clientID, Keepalive: 60,
			UsernameFlag: true, Username: []byte("anybody"), PasswordFlag: token != "", Password: []byte(token),
		},
	}
	if version == 3 {
		pk.Connect.ProtocolName = []byte("MQIsdp")
	}
	if change != nil {
		change(&pk)
	}
	c.send(pk)
	return c, c.read()
}

// connected is connect for those who are let in; it also returns the broker's
// side of it.
func (b *broker) connected(tb testing.TB, version byte, clientID, token string, change func(*packets.Packet)) (*client, *mqtt.Client) {
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

func (c *client) send(pk packets.Packet) {
	c.t.Helper()
	pk.ProtocolVersion = c.version
	var buf bytes.Buffer
	encode := map[byte]func(*bytes.Buffer) error{
		packets.Connect: pk.ConnectEncode, packets.Subscribe: pk.SubscribeEncode, packets.Publish: pk.PublishEncode, packets.Disconnect: pk.DisconnectEncode,
	}[pk.FixedHeader.Type]
	if err := encode(&buf); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.c.Write(buf.Bytes()); err != nil {
		c.t.Fatal(err)
	}
}

// read returns the next packet.
func (c *client) read() packets.Packet {
	c.t.Helper()
	pk, err := c.next()
	if err != nil {
		c.t.Fatalf("read packet: %v", err)
	}
	return pk
}

func (c *client) next() (packets.Packet, error) {
	pk := packets.Packet{ProtocolVersion: c.version}
	first, err := c.r.ReadByte()
	if err != nil {
		return pk, err
	}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return pk, err
	}
	n, _, err := packets.DecodeLength(c.r)
	if err != nil {
		return pk, err
	}
	pk.FixedHeader.Remaining = n
	body := make([]byte, n)
	if _, err := io.ReadFull(c.r, body); err != nil {
		return pk, err
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	default:
		err = errors.New("unexpected packet " + packets.PacketNames[pk.FixedHeader.Type])
	}
	return pk, err
}

// closed fails unless the broker has closed the connection.
func (c *client) closed() {
	c.t.Helper()
	if pk, err := c.next(); err == nil {
		c.t.Fatalf("the connection goes on with %s", packets.PacketNames[pk.FixedHeader.Type])
	} else if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		c.t.Fatal("the connection stays open")
	}
}

// subscribe returns the code that SUBACK has for the filter.
func (c *client) subscribe(filter string) byte {
	c.t.Helper()
	c.send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1,
		Filters: packets.Subscriptions{{Filter: filter, Qos: 1}},
	})
	pk := c.read()
	if pk.FixedHeader.Type != packets.Suback || len(pk.ReasonCodes) != 1 {
		c.t.Fatalf("got %s with %v for SUBACK", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCodes)
	}
	return pk.ReasonCodes[0]
}

// publish sends a QoS 0 message.
func (c *client) publish(topic, payload string) {
	c.t.Helper()
	c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: topic, Payload: []byte(payload)})
}
