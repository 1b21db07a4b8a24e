// Package mqttest is an MQTT client for tests that send and check single packets. It
// acknowledges nothing by itself, and has no session state. Connect with Dial; every
// method fails the test if the expected packet does not come within Timeout.
package mqttest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/internal/mqttwire"
)

// Timeout is how long a client waits for an expected packet. It is long, since a wait
// costs nothing when the packet comes, and a busy machine must not fail a test.
const Timeout = 30 * time.Second

// Options of Dial. The zero value is a 3.1.1 client with a clean session.
type Options struct {
	Version     byte // 3, 4 or 5; default 4
	ClientID    string
	Token       string // sent as the password
	KeepSession bool   // no clean session
	Keepalive   uint16
	Will        *packets.Packet // topic, payload, QoS and MQTT 5 properties of a will
	WillDelay   uint32
	Properties  packets.Properties // of CONNECT, MQTT 5
}

// Client is a connection.
type Client struct {
	tb      testing.TB
	Conn    net.Conn
	r       *bufio.Reader
	version byte
	// Connack is the answer to CONNECT.
	Connack packets.Packet
	lastID  uint16
	queued  []packets.Packet // PUBLISHes that came before the expected packet, for Receive
}

// Dial connects to addr and reads the CONNACK, which may be a refusal.
func Dial(tb testing.TB, addr string, o Options) *Client {
	tb.Helper()
	c, err := TryDial(tb, addr, o)
	if err != nil {
		tb.Fatalf("connect %s: %v", o.ClientID, err)
	}
	return c
}

// TryDial is like Dial, but returns an error if the connection ends before a
// CONNACK.
func TryDial(tb testing.TB, addr string, o Options) (*Client, error) {
	tb.Helper()
	d := net.Dialer{Timeout: Timeout}
	conn, err := d.DialContext(tb.Context(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return Handshake(tb, conn, o)
}

// Handshake sends CONNECT on a connection and reads the CONNACK.
func Handshake(tb testing.TB, conn net.Conn, o Options) (*Client, error) {
	tb.Helper()
	if o.Version == 0 {
		o.Version = 4
	}
	c := &Client{tb: tb, Conn: conn, r: bufio.NewReader(conn), version: o.Version}
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect},
		Properties:  o.Properties,
		Connect: packets.ConnectParams{
			Clean: !o.KeepSession, ClientIdentifier: o.ClientID, Keepalive: o.Keepalive,
			UsernameFlag: true, Username: []byte("test"), PasswordFlag: o.Token != "", Password: []byte(o.Token),
		},
	}
	if o.Will != nil {
		pk.Connect.WillFlag = true
		pk.Connect.WillTopic, pk.Connect.WillPayload = o.Will.TopicName, o.Will.Payload
		pk.Connect.WillQos, pk.Connect.WillRetain = o.Will.FixedHeader.Qos, o.Will.FixedHeader.Retain
		pk.Connect.WillProperties = o.Will.Properties
		pk.Connect.WillProperties.WillDelayInterval = o.WillDelay
	}
	c.Send(pk)
	ack, err := c.Read(Timeout)
	if err != nil {
		return nil, err
	}
	if ack.FixedHeader.Type != packets.Connack {
		return nil, errors.New("the first packet is not CONNACK")
	}
	c.Connack = ack
	return c, nil
}

// Send writes a packet.
func (c *Client) Send(pk packets.Packet) {
	c.tb.Helper()
	c.SendBytes(encode(c.version, &pk))
}

// SendBytes writes raw bytes. A closed connection is no error here; the next read
// reports it.
func (c *Client) SendBytes(b []byte) {
	c.tb.Helper()
	_ = c.Conn.SetWriteDeadline(time.Now().Add(Timeout))
	var netErr net.Error
	if _, err := c.Conn.Write(b); errors.As(err, &netErr) && netErr.Timeout() {
		c.tb.Fatalf("write: %v", err)
	}
}

// Read returns the next packet, or an error when the connection ends or nothing comes in
// time.
func (c *Client) Read(within time.Duration) (packets.Packet, error) {
	_ = c.Conn.SetReadDeadline(time.Now().Add(within))
	frame, err := mqttwire.ReadFrame(c.r)
	if err != nil {
		return packets.Packet{}, err
	}
	return decode(frame, c.version)
}

// Next returns the next packet and fails the test if none comes.
func (c *Client) Next() packets.Packet {
	c.tb.Helper()
	pk, err := c.Read(Timeout)
	if err != nil {
		c.tb.Fatalf("read: %v", err)
	}
	return pk
}

// Expect returns the next packet, which must be of the type. A PUBLISH may come at any
// time before it, and is kept for Receive.
func (c *Client) Expect(packetType byte) packets.Packet {
	c.tb.Helper()
	for {
		pk := c.Next()
		if pk.FixedHeader.Type == packetType {
			return pk
		}
		if pk.FixedHeader.Type != packets.Publish {
			c.tb.Fatalf("got %s, want %s", describe(pk), packets.PacketNames[packetType])
		}
		c.queued = append(c.queued, pk)
	}
}

// describe formats a packet for the failure message.
func describe(pk packets.Packet) string {
	return fmt.Sprintf("%s id %d qos %d dup %v reason %#x topic %q payload %q", packets.PacketNames[pk.FixedHeader.Type],
		pk.PacketID, pk.FixedHeader.Qos, pk.FixedHeader.Dup, pk.ReasonCode, pk.TopicName, pk.Payload)
}

// Subscribe subscribes to filters at a QoS and returns the reason codes.
func (c *Client) Subscribe(qos byte, filters ...string) []byte {
	c.tb.Helper()
	subs := make(packets.Subscriptions, len(filters))
	for i, f := range filters {
		subs[i] = packets.Subscription{Filter: f, Qos: qos}
	}
	return c.SubscribeWith(packets.Properties{}, subs...)
}

// SubscribeWith subscribes with MQTT 5 options.
func (c *Client) SubscribeWith(props packets.Properties, subs ...packets.Subscription) []byte {
	c.tb.Helper()
	c.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: c.ID(), Filters: subs, Properties: props,
	})
	return c.Expect(packets.Suback).ReasonCodes
}

// ID returns a fresh packet id.
func (c *Client) ID() uint16 {
	c.lastID++
	return c.lastID
}

// Publish sends a PUBLISH and returns its packet id, 0 for QoS 0.
func (c *Client) Publish(topic string, qos byte, payload string) uint16 {
	c.tb.Helper()
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, TopicName: topic, Payload: []byte(payload),
	}
	if qos > 0 {
		pk.PacketID = c.ID()
	}
	c.Send(pk)
	return pk.PacketID
}

// Ack sends an acknowledgement of a type.
func (c *Client) Ack(packetType byte, id uint16) {
	c.tb.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packetType}, PacketID: id}
	if packetType == packets.Pubrel {
		pk.FixedHeader.Qos = 1
	}
	c.Send(pk)
}

// PublishAcked publishes at QoS 1 or 2 and finishes the exchange. It returns the PUBACK or
// PUBREC.
func (c *Client) PublishAcked(topic string, qos byte, payload string) packets.Packet {
	c.tb.Helper()
	id := c.Publish(topic, qos, payload)
	if qos == 1 {
		return c.Expect(packets.Puback)
	}
	rec := c.Expect(packets.Pubrec)
	if rec.ReasonCode < 0x80 {
		c.Ack(packets.Pubrel, id)
		c.Expect(packets.Pubcomp)
	}
	return rec
}

// Message is a delivered message.
type Message struct {
	packets.Packet
	Seq, Prev uint64
	From, To  string
	TS        int64
	Type      string
	Mid       string
	Body      any // a number as json.Number, with its published text
}

// ReceivePlain returns the next PUBLISH, not acknowledged, and fails the test if something
// else comes.
func (c *Client) ReceivePlain() packets.Packet {
	c.tb.Helper()
	var pk packets.Packet
	if len(c.queued) > 0 {
		pk, c.queued = c.queued[0], c.queued[1:]
	} else if pk = c.Next(); pk.FixedHeader.Type != packets.Publish {
		c.tb.Fatalf("got %s, want PUBLISH", describe(pk))
	}
	return pk
}

// Receive is like ReceivePlain, for chat messages: it also parses the payload.
func (c *Client) Receive() Message {
	c.tb.Helper()
	pk := c.ReceivePlain()
	m := Message{Packet: pk}
	if err := json.Unmarshal(pk.Payload, &m); err != nil {
		c.tb.Fatalf("payload %q: %v", pk.Payload, err)
	}
	if _, is := m.Body.(float64); is && m.Type == "data" {
		var number struct{ Body json.Number }
		if err := json.Unmarshal(pk.Payload, &number); err != nil {
			c.tb.Fatalf("payload %q: %v", pk.Payload, err)
		}
		m.Body = number.Body.String()
	}
	return m
}

// ReceiveAcked returns the next message and acknowledges it.
func (c *Client) ReceiveAcked() Message {
	c.tb.Helper()
	m := c.Receive()
	switch m.FixedHeader.Qos {
	case 1:
		c.Ack(packets.Puback, m.PacketID)
	case 2:
		c.Ack(packets.Pubrec, m.PacketID)
		if rel := c.Expect(packets.Pubrel); rel.PacketID != m.PacketID {
			c.tb.Fatalf("got %s, want id %d", describe(rel), m.PacketID)
		}
		c.Ack(packets.Pubcomp, m.PacketID)
	}
	return m
}

// ExpectNothing sends a PINGREQ, and fails the test if another packet comes before the
// PINGRESP. The broker writes in order, so a packet that was due would have come first.
func (c *Client) ExpectNothing() {
	c.tb.Helper()
	if len(c.queued) > 0 {
		c.tb.Fatalf("got %s, want nothing", describe(c.queued[0]))
	}
	c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	if pk := c.Next(); pk.FixedHeader.Type != packets.Pingresp {
		c.tb.Fatalf("got %s, want nothing", describe(pk))
	}
}

// Sync waits until the broker has handled every packet that the client has sent. Messages
// that come meanwhile are kept for Receive.
func (c *Client) Sync() {
	c.tb.Helper()
	c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
	c.Expect(packets.Pingresp)
}

// ExpectEnd fails the test unless the broker ends the connection. It returns the
// DISCONNECT that came before, if there was one.
func (c *Client) ExpectEnd() packets.Packet {
	c.tb.Helper()
	var last packets.Packet
	for {
		pk, err := c.Read(Timeout)
		var netErr net.Error
		if errors.As(err, &netErr) && netErr.Timeout() {
			c.tb.Fatal("the connection did not end")
		}
		if err != nil {
			return last
		}
		if pk.FixedHeader.Type == packets.Disconnect {
			last = pk
		}
	}
}

// CloseAbruptly closes the connection without a DISCONNECT.
func (c *Client) CloseAbruptly() { _ = c.Conn.Close() }

// Disconnect sends DISCONNECT, and waits until the broker has closed the connection.
func (c *Client) Disconnect() {
	c.tb.Helper()
	c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
	c.ExpectEnd()
	_ = c.Conn.Close()
}
