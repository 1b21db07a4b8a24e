package client

import (
	"fmt"
	"time"

	"mynah/internal/mqttwire"
)

// retryAfter is how long a refused message waits before it is published again.
const retryAfter = 300 * time.Millisecond

// handle takes one packet. It is called with the lock held.
func (c *Client) handle(p *mqttwire.Packet) error {
	if p.Type != mqttwire.PINGRESP {
		c.lastHeard = time.Now()
	}
	switch p.Type {
	case mqttwire.PUBLISH:
		return c.publish(p)
	case mqttwire.PUBREL:
		delete(c.received, p.ID)
		c.write(mqttwire.AppendAck(nil, mqttwire.PUBCOMP, p.ID))
	case mqttwire.PUBACK, mqttwire.PUBREC:
		c.acknowledge(p)
	case mqttwire.PUBCOMP:
		o := c.find(p.ID)
		switch {
		case o == nil:
			c.cfg.Odd(fmt.Sprintf("PUBCOMP for packet id %d, which is not in use", p.ID))
		case !o.released:
			c.cfg.Odd(fmt.Sprintf("PUBCOMP for packet id %d before PUBREC", p.ID))
		default:
			c.remove(o)
		}
	case mqttwire.SUBACK:
		for _, code := range p.Codes {
			if code > 2 {
				c.cfg.Odd(fmt.Sprintf("SUBSCRIBE refused: % x", p.Codes))
				return nil
			}
		}
		c.subscribed = true
		if c.cfg.Subscribed != nil {
			c.cfg.Subscribed()
		}
	case mqttwire.PINGRESP:
	case mqttwire.DISCONNECT:
		return fmt.Errorf("DISCONNECT 0x%02x %s", p.Reason, p.Properties.GetText(mqttwire.ReasonString))
	default:
		c.cfg.Odd(fmt.Sprintf("unexpected packet of type %d", p.Type))
	}
	return nil
}

// publish takes a delivery, MQTT 5, section 4.3, as the receiver (method A of
// QoS 2: the packet id is kept from PUBLISH to PUBREL).
func (c *Client) publish(p *mqttwire.Packet) error {
	switch p.QoS {
	case 0:
	case 1:
		defer c.write(mqttwire.AppendAck(nil, mqttwire.PUBACK, p.ID))
	case 2:
		defer c.write(mqttwire.AppendAck(nil, mqttwire.PUBREC, p.ID))
		if c.received[p.ID] {
			if !p.Dup {
				c.cfg.Odd(fmt.Sprintf("packet id %d used anew before its PUBREL", p.ID))
			}
			return nil
		}
		c.received[p.ID] = true
	default:
		c.cfg.Odd("PUBLISH with QoS 3")
		return mqttwire.ErrMalformed
	}
	if p.QoS > 0 && p.ID == 0 {
		c.cfg.Odd("PUBLISH with packet id 0")
	}
	c.cfg.Received(&Delivery{Topic: p.Topic, Payload: p.Payload, QoS: p.QoS, Dup: p.Dup, Conn: c.conns})
	return nil
}

// acknowledge takes PUBACK and PUBREC.
func (c *Client) acknowledge(p *mqttwire.Packet) {
	name, qos := "PUBACK", byte(1)
	if p.Type == mqttwire.PUBREC {
		name, qos = "PUBREC", 2
	}
	o := c.find(p.ID)
	if o == nil || o.m.QoS != qos {
		c.cfg.Odd(fmt.Sprintf("%s for packet id %d, which is not in use with QoS %d", name, p.ID, qos))
		return
	}
	if p.Reason >= 0x80 {
		// Refused: the packet id is free, the message is still to be said.
		c.remove(o)
		c.cfg.Again(o.m, fmt.Sprintf("%s 0x%02x %s", name, p.Reason, p.Properties.GetText(mqttwire.ReasonString)))
		c.delayed++
		time.AfterFunc(retryAfter, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.delayed--
			c.add(o.m)
		})
		return
	}
	if qos == 1 {
		c.remove(o)
		c.cfg.Acknowledged(o.m)
		return
	}
	if !o.released {
		o.released = true
		c.cfg.Acknowledged(o.m)
	}
	c.send(o)
}
