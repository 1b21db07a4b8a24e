package wire

import (
	"encoding/binary"
	"fmt"
)

// Packet is a packet from a broker. Which fields are set depends on Type.
type Packet struct {
	Type           byte
	Dup            bool
	QoS            byte
	ID             uint16
	Topic          string
	Payload        []byte // shares the frame's memory
	Reason         byte   // CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, DISCONNECT
	ReasonString   string // MQTT 5
	SessionPresent bool   // CONNACK
	ReceiveMaximum uint16 // CONNACK, MQTT 5; 0 if absent
	Codes          []byte // SUBACK, UNSUBACK; shares the frame's memory
}

// Decode decodes one whole packet, as cut out by Frame.
func Decode(frame []byte, version byte) (*Packet, error) {
	size, header, err := Frame(frame)
	if err != nil {
		return nil, err
	}
	if size != len(frame) || size == 0 {
		return nil, fmt.Errorf("frame of %d bytes: %w", len(frame), ErrMalformed)
	}
	p := &Packet{Type: frame[0] >> 4}
	r := reader{b: frame[header:]}
	switch p.Type {
	case CONNACK:
		p.SessionPresent = r.byte()&1 == 1
		p.Reason = r.byte()
		if version == V5 {
			r.properties(p)
		}
	case PUBLISH:
		p.Dup = frame[0]&0x08 != 0
		p.QoS = frame[0] >> 1 & 3
		p.Topic = string(r.take(int(r.uint16())))
		if p.QoS > 0 {
			p.ID = r.uint16()
		}
		if version == V5 {
			r.properties(p)
		}
		p.Payload = r.b
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		p.ID = r.uint16()
		if version == V5 && len(r.b) > 0 {
			p.Reason = r.byte()
			if len(r.b) > 0 {
				r.properties(p)
			}
		}
	case SUBACK, UNSUBACK:
		p.ID = r.uint16()
		if version == V5 {
			r.properties(p)
		}
		p.Codes = r.b
	case PINGRESP:
	case DISCONNECT:
		if version == V5 && len(r.b) > 0 {
			p.Reason = r.byte()
			if len(r.b) > 0 {
				r.properties(p)
			}
		}
	default:
		return nil, fmt.Errorf("packet type %d: %w", p.Type, ErrMalformed)
	}
	if r.short {
		return nil, fmt.Errorf("packet type %d is cut off: %w", p.Type, ErrMalformed)
	}
	return p, nil
}

// reader takes bytes off the front and remembers whether there were too few.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.short, r.b = true, nil
		return nil
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) varint() int {
	n, shift := 0, 0
	for {
		c := r.byte()
		n |= int(c&0x7f) << shift
		if shift += 7; c < 0x80 || shift > 21 {
			return n
		}
	}
}

// properties reads the properties of MQTT 5, section 2.2.2, and keeps those that
// the tools look at.
func (r *reader) properties(p *Packet) {
	props := reader{b: r.take(r.varint())}
	for len(props.b) > 0 && !props.short {
		switch id := props.byte(); id {
		case 0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2a: // one byte
			props.take(1)
		case 0x21: // Receive Maximum
			p.ReceiveMaximum = props.uint16()
		case 0x13, 0x22, 0x23: // two bytes
			props.take(2)
		case 0x02, 0x11, 0x18, 0x27: // four bytes
			props.take(4)
		case 0x0b: // Subscription Identifier
			props.varint()
		case 0x1f: // Reason String
			p.ReasonString = string(props.take(int(props.uint16())))
		case 0x03, 0x08, 0x09, 0x12, 0x15, 0x16, 0x1a, 0x1c: // a string or bytes
			props.take(int(props.uint16()))
		case 0x26: // User Property
			props.take(int(props.uint16()))
			props.take(int(props.uint16()))
		default:
			props.short = true
		}
	}
	r.short = r.short || props.short
}
