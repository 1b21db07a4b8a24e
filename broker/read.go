package broker

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/broker/listener"
	"mynah/broker/packet"
)

// read takes packets from a client until the connection ends.
func (e *endpoint) read(c *conn) error {
	for {
		// Not for each packet of a batch, since it looks at the clock; but a client
		// that sends without a pause never has nothing buffered.
		if c.in.came() || !c.in.buffered() {
			c.extendDeadline(e.log)
		}
		head, body, err := c.in.next()
		if err == nil {
			err = e.handle(c, head, body)
		}
		if c.client.Closed() || errors.Is(err, errDisconnected) {
			return nil // we have ended it ourselves, or the client has
		}
		if err != nil {
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded):
				err = errors.Join(packets.ErrKeepAliveTimeout, err) // [MQTT-3.1.2-22]
			case errors.Is(err, listener.ErrMalformed):
				err = errors.Join(packets.ErrMalformedVariableByteInteger, err)
			}
			var code packets.Code
			if errors.As(err, &code) && c.v5.Load() && code.Code >= packets.ErrUnspecifiedError.Code {
				_ = e.mochi.DisconnectClient(c.client, code) // [MQTT-4.13.1-1]
			}
			return err
		}
	}
}

// handle deals with one packet. An error ends the connection [MQTT-4.13.1-1].
func (e *endpoint) handle(c *conn, head byte, body []byte) error {
	if err := packet.CheckFirstByte(head); err != nil {
		return err
	}
	switch head >> 4 {
	case packets.Publish:
		return e.handlePublish(c, head, body)
	case packets.Puback, packets.Pubrec, packets.Pubcomp:
		return e.handleAck(c, head, body)
	case packets.Pubrel:
		return e.handlePubrel(c, body)
	case packets.Pingreq:
		if len(body) != 0 {
			return packets.ErrMalformedPacket
		}
		_, err := c.Write([]byte{packets.Pingresp << 4, 0})
		return err
	case packets.Subscribe, packets.Unsubscribe, packets.Disconnect, packets.Auth:
		return e.handleRare(c, head, bytes.Clone(body))
	case packets.Connect:
		return packets.ErrProtocolViolationSecondConnect // [MQTT-3.1.0-2]
	}
	return packets.ErrProtocolViolation // only a server sends these
}

// handlePublish decodes a PUBLISH (MQTT 5, 3.3).
func (e *endpoint) handlePublish(c *conn, head byte, body []byte) error {
	p := published{qos: head >> 1 & 3, dup: head&0x08 != 0, retain: head&0x01 != 0}
	if p.qos == 3 || p.qos == 0 && p.dup {
		return packets.ErrMalformedFlags // [MQTT-3.3.1-4], [MQTT-3.3.1-2]
	}
	if len(body) < 2 || len(body) < 2+int(body[0])<<8+int(body[1]) {
		return packets.ErrMalformedTopic
	}
	n := 2 + int(body[0])<<8 + int(body[1])
	// A client publishes to the same topic again and again.
	if name := body[2:n]; string(name) == c.lastTopic {
		p.topic = c.lastTopic
	} else {
		if n > 2 && !packet.ValidTopic(name) {
			return packets.ErrMalformedTopic // [MQTT-1.5.4-1], [MQTT-1.5.4-2], [MQTT-3.3.2-2]
		}
		p.topic = string(name)
		c.lastTopic = p.topic
	}
	body = body[n:]
	if p.qos > 0 {
		var err error
		if p.id, body, err = packet.CutPacketID(body); err != nil {
			return err
		}
	}
	if c.v5.Load() {
		if len(body) == 0 {
			return packets.ErrMalformedProperties
		}
		if body[0] == 0 {
			body = body[1:]
		} else {
			size, err := p.properties(body)
			if err != nil {
				return err
			}
			body = body[size:]
		}
	}
	if p.topic == "" {
		return packets.ErrProtocolViolationNoTopic // we announce no topic aliases
	}
	if p.qos == 2 && !p.dup && c.v5.Load() && e.devices.exchanges(c.session.Key)+c.session.Inbound.Exchanges() >= maxQueuedPerConn {
		return packets.ErrReceiveMaximum // 3.3.4: CONNACK has told how many
	}
	p.payload = body
	e.system.received.Add(1)
	e.publisher.publish(c, &p)
	return nil
}

// properties decodes the properties of a PUBLISH and returns their size.
func (p *published) properties(body []byte) (int, error) {
	props, rest, err := packet.CutProperties(packet.Publish, body)
	if err != nil {
		return 0, err
	}
	p.expiresAtOnce = packet.ExpiresAtOnce(props)
	size := len(body) - len(rest)
	// They are kept, if the message is. The payload is not to be kept with them.
	if _, err := p.props.Decode(packets.Publish, bytes.NewBuffer(bytes.Clone(body[:size]))); err != nil {
		return 0, packets.ErrMalformedProperties
	}
	if p.props.TopicAliasFlag {
		return 0, packets.ErrTopicAliasInvalid // [MQTT-3.2.2-18]: our Topic Alias Maximum is 0
	}
	if len(p.props.SubscriptionIdentifier) > 0 {
		return 0, packets.ErrProtocolViolationSurplusSubID // [MQTT-3.3.4-6]
	}
	return size, nil
}

// errWrongAck ends the connection of a client whose acknowledgement is no step of an exchange
// that is open (MQTT 5, 4.3).
var errWrongAck = packets.Code{
	Code: packets.ErrProtocolViolation.Code, Reason: "protocol violation: the exchange has no such acknowledgement",
}

// handleAck takes in an acknowledgement of a message to the client.
func (e *endpoint) handleAck(c *conn, head byte, body []byte) error {
	id, failed, err := packet.ParseAck(packet.Type(head>>4), body, c.v5.Load())
	if err != nil {
		return err
	}
	if !c.session.Acknowledged(c.Conn, packet.Type(head>>4), id, failed) {
		return errWrongAck
	}
	return nil
}

// handlePubrel finishes a QoS 2 publish of the client.
func (e *endpoint) handlePubrel(c *conn, body []byte) error {
	id, _, err := packet.ParseAck(packet.Pubrel, body, c.v5.Load())
	if err != nil {
		return err
	}
	e.devices.closed(c.session.Key, id)
	c.session.Inbound.Release(id, c.hasSession)
	_, err = c.Write([]byte{packets.Pubcomp << 4, 2, byte(id >> 8), byte(id)})
	return err
}

// handleRare deals with a packet that is rare. It does so on another goroutine, since
// that needs a stack that the connection's would then keep for good. A panic in Mochi's
// codec (MOCHI.md: a truncated SUBSCRIBE) is passed on to the listener, which recovers.
func (e *endpoint) handleRare(c *conn, head byte, body []byte) error {
	type result struct {
		err      error
		panicked any
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			r.panicked = recover()
			done <- r
		}()
		r.err = e.decode(c, head, body)
	}()
	r := <-done
	if r.panicked != nil {
		panic(r.panicked)
	}
	return r.err
}

// decode decodes a packet with Mochi's codec and has it dealt with.
func (e *endpoint) decode(c *conn, head byte, body []byte) error {
	pk := packets.Packet{ProtocolVersion: c.client.Properties.ProtocolVersion}
	if err := pk.FixedHeader.Decode(head); err != nil {
		return err
	}
	pk.FixedHeader.Remaining = len(body)
	var err error
	switch pk.FixedHeader.Type {
	case packets.Subscribe:
		if err = packet.CheckSubscribe(body, c.v5.Load()); err == nil {
			err = pk.SubscribeDecode(body)
		}
		if err == nil {
			return e.subscriber.subscribe(c, pk)
		}
	case packets.Unsubscribe:
		if err = packet.CheckUnsubscribe(body, c.v5.Load()); err == nil {
			err = pk.UnsubscribeDecode(body)
		}
		if err == nil {
			return e.subscriber.unsubscribe(c, pk)
		}
	case packets.Disconnect:
		var reason byte
		if reason, err = packet.CheckDisconnect(body, c.v5.Load()); err == nil && len(body) > 1 {
			err = pk.DisconnectDecode(body)
		}
		if err == nil {
			pk.ReasonCode = reason // Mochi overlooks it without properties (3.14.2.2.1)
			return c.disconnected(pk)
		}
	default:
		// AUTH is for those who have named an authentication method, which is
		// refused in CONNECT; 3.1.1 does not have it [MQTT-4.12.0-6].
		err = packets.ErrProtocolViolation
	}
	return fmt.Errorf("decode packet of type %d: %w", pk.FixedHeader.Type, err)
}

// errDisconnected ends a connection that the client has ended.
var errDisconnected = errors.New("disconnected")

// disconnected deals with a DISCONNECT (MQTT 5, 3.14). What it says of the session is for
// the end of the connection, which is to come before the client sees that.
func (c *conn) disconnected(pk packets.Packet) error {
	session := &c.client.Properties.Props
	if said := pk.Properties; said.SessionExpiryIntervalFlag {
		if said.SessionExpiryInterval > 0 && session.SessionExpiryInterval == 0 {
			return packets.ErrProtocolViolationZeroNonZeroExpiry // 3.14.2.2.2
		}
		session.SessionExpiryInterval, session.SessionExpiryIntervalFlag = said.SessionExpiryInterval, true
	}
	c.graceful.Store(pk.ReasonCode == packets.CodeDisconnect.Code) // [MQTT-3.14.4-3]
	return errDisconnected
}
