package broker

import (
	"bytes"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/broker/packet"
	"mynah/broker/pubsub"
)

// newPlain returns a message of a client.
func newPlain(topic string, payload []byte, qos byte, retain bool, props *packets.Properties, expiresAtOnce bool) *pubsub.Message {
	return &pubsub.Message{
		Topic: topic, Payload: payload, QoS: qos, Retain: retain,
		Props: appendForwarded(nil, props), Expires: expiry(0, props.MessageExpiryInterval, expiresAtOnce),
	}
}

// appendForwarded appends the properties of a PUBLISH that belong to the message and are
// passed on as they are (MQTT 5, 3.3.2.3).
func appendForwarded(dst []byte, p *packets.Properties) []byte {
	if p.PayloadFormatFlag {
		dst = append(dst, packet.PayloadFormat, p.PayloadFormat)
	}
	if p.ContentType != "" {
		dst = appendString(append(dst, packet.ContentType), p.ContentType)
	}
	if p.ResponseTopic != "" {
		dst = appendString(append(dst, packet.ResponseTopic), p.ResponseTopic)
	}
	if len(p.CorrelationData) > 0 {
		dst = appendString(append(dst, packet.CorrelationData), string(p.CorrelationData))
	}
	for _, u := range p.User { // in their order [MQTT-3.3.2-18]
		dst = appendString(appendString(append(dst, packet.User), u.Key), u.Val)
	}
	return dst
}

// publishPlain passes on a PUBLISH to a topic outside the chat and then has it acknowledged,
// behind what the client has published before.
func (pub *publisher) publishPlain(p publication, m *published) {
	c := p.c
	var exchange uint16
	if m.qos == 2 {
		exchange = m.id
	}
	current := c.session.Inbound.Publish(exchange, c.hasSession, func() {
		msg := newPlain(m.topic, bytes.Clone(m.payload), m.qos, m.retain, &m.props, m.expiresAtOnce)
		msg.From = c.session.Key
		p.nobody = !pub.topics.Publish(msg)
	})
	if current && m.qos > 0 {
		pub.queue.put(p)
	}
}
