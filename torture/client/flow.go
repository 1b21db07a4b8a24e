package client

import (
	"fmt"
	"time"

	"mynah/internal/mqttwire"
)

// retryAfter is the pause before a refused message is published again.
const retryAfter = 300 * time.Millisecond

// handlePacket handles one packet. c.mu is held.
func (c *Client) handlePacket(p *mqttwire.Packet) error {
	if p.Type != mqttwire.PINGRESP {
		c.lastHeard = time.Now()
	}
	switch p.Type {
	case mqttwire.PUBLISH:
		return c.handlePublish(p)
	case mqttwire.PUBREL:
		delete(c.received, p.ID)
		c.write(mqttwire.AppendAck(nil, mqttwire.PUBCOMP, p.ID))
	case mqttwire.PUBACK, mqttwire.PUBREC:
		c.handleAck(p)
	case mqttwire.PUBCOMP:
		o := c.find(p.ID)
		switch {
		case o == nil:
			c.cfg.OnViolation(fmt.Sprintf("PUBCOMP for packet id %d, which is not in use", p.ID))
		case !o.gotPubrec:
			c.cfg.OnViolation(fmt.Sprintf("PUBCOMP for packet id %d before PUBREC", p.ID))
		default:
			c.remove(o)
		}
	case mqttwire.SUBACK:
		for _, code := range p.Codes {
			if code > 2 {
				c.cfg.OnViolation(fmt.Sprintf("SUBSCRIBE refused: % x", p.Codes))
				return nil
			}
		}
		c.subscribed = true
		if c.cfg.OnSubscribed != nil {
			c.cfg.OnSubscribed()
		}
	case mqttwire.PINGRESP:
	case mqttwire.DISCONNECT:
		return fmt.Errorf("DISCONNECT 0x%02x %s", p.Reason, p.Properties.GetText(mqttwire.ReasonString))
	default:
		c.cfg.OnViolation(fmt.Sprintf("unexpected packet of type %d", p.Type))
	}
	return nil
}

// handlePublish handles a delivery as the receiver (MQTT 5, section 4.3; method A
// of QoS 2: the packet id is kept from PUBLISH to PUBREL).
func (c *Client) handlePublish(p *mqttwire.Packet) error {
	switch p.QoS {
	case 0:
	case 1:
		defer c.write(mqttwire.AppendAck(nil, mqttwire.PUBACK, p.ID))
	case 2:
		defer c.write(mqttwire.AppendAck(nil, mqttwire.PUBREC, p.ID))
		if c.received[p.ID] {
			if !p.Dup {
				c.cfg.OnViolation(fmt.Sprintf("packet id %d used anew before its PUBREL", p.ID))
			}
			return nil
		}
		c.received[p.ID] = true
	default:
		c.cfg.OnViolation("PUBLISH with QoS 3")
		return mqttwire.ErrMalformed
	}
	if p.QoS > 0 && p.ID == 0 {
		c.cfg.OnViolation("PUBLISH with packet id 0")
	}
	c.cfg.OnReceived(&Delivery{Topic: p.Topic, Payload: p.Payload, QoS: p.QoS, Dup: p.Dup, Conn: c.conns})
	return nil
}

// handleAck handles PUBACK and PUBREC.
func (c *Client) handleAck(p *mqttwire.Packet) {
	name, qos := "PUBACK", byte(1)
	if p.Type == mqttwire.PUBREC {
		name, qos = "PUBREC", 2
	}
	o := c.find(p.ID)
	if o == nil || o.message.QoS != qos {
		c.cfg.OnViolation(fmt.Sprintf("%s for packet id %d, which is not in use with QoS %d", name, p.ID, qos))
		return
	}
	if p.Reason >= 0x80 {
		// Refused: the packet id is free, and the message has to be published
		// again.
		c.remove(o)
		c.cfg.OnRepublish(o.message, fmt.Sprintf("%s 0x%02x %s", name, p.Reason, p.Properties.GetText(mqttwire.ReasonString)))
		c.delayed++
		time.AfterFunc(retryAfter, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.delayed--
			c.add(o.message)
		})
		return
	}
	if qos == 1 {
		c.remove(o)
		c.cfg.OnAcknowledged(o.message)
		return
	}
	if !o.gotPubrec {
		o.gotPubrec = true
		c.cfg.OnAcknowledged(o.message)
	}
	c.send(o)
}
