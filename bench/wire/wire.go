// Package wire encodes and decodes the few MQTT 3.1.1 and MQTT 5 packets that
// the measuring and torturing tools exchange with a broker. It shares no code
// with the broker or with the client libraries, so that a tool does not inherit
// the mistake that it is to find. It guarantees nothing about packets that a
// broker never sends.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Packet types of MQTT 3.1.1 and 5, section 2.1.2.
const (
	CONNECT     = 1
	CONNACK     = 2
	PUBLISH     = 3
	PUBACK      = 4
	PUBREC      = 5
	PUBREL      = 6
	PUBCOMP     = 7
	SUBSCRIBE   = 8
	SUBACK      = 9
	UNSUBSCRIBE = 10
	UNSUBACK    = 11
	PINGREQ     = 12
	PINGRESP    = 13
	DISCONNECT  = 14
)

// Protocol levels of CONNECT.
const (
	V311 = 4
	V5   = 5
)

// ErrMalformed is returned when bytes from a broker are not a packet.
var ErrMalformed = errors.New("malformed MQTT packet")

// Connect is a CONNECT packet without a will.
type Connect struct {
	Version       byte
	ClientID      string
	Username      string // sent if Password is not empty
	Password      string
	Clean         bool   // clean session (3.1.1), clean start (5)
	KeepAlive     uint16 // seconds, 0 for none
	SessionExpiry uint32 // seconds, MQTT 5 only
}

// Filter is one topic filter of a SUBSCRIBE packet.
type Filter struct {
	Topic string
	QoS   byte
}

// Publish is a PUBLISH packet.
type Publish struct {
	Topic   string
	Payload []byte
	QoS     byte
	ID      uint16 // 0 for QoS 0
	Dup     bool
}

// AppendConnect appends the encoded packet to b.
func AppendConnect(b []byte, c *Connect) []byte {
	body := appendString(nil, "MQTT")
	var flags byte
	if c.Clean {
		flags |= 0x02
	}
	if c.Password != "" {
		flags |= 0xc0
	}
	body = append(body, c.Version, flags)
	body = binary.BigEndian.AppendUint16(body, c.KeepAlive)
	if c.Version == V5 {
		if c.SessionExpiry > 0 {
			body = append(body, 5, 0x11)
			body = binary.BigEndian.AppendUint32(body, c.SessionExpiry)
		} else {
			body = append(body, 0)
		}
	}
	body = appendString(body, c.ClientID)
	if c.Password != "" {
		body = appendString(body, c.Username)
		body = appendString(body, c.Password)
	}
	return appendPacket(b, CONNECT<<4, body)
}

// AppendSubscribe appends a SUBSCRIBE packet with the filters to b.
func AppendSubscribe(b []byte, version byte, id uint16, filters ...Filter) []byte {
	body := binary.BigEndian.AppendUint16(nil, id)
	if version == V5 {
		body = append(body, 0)
	}
	for _, f := range filters {
		body = appendString(body, f.Topic)
		body = append(body, f.QoS)
	}
	return appendPacket(b, SUBSCRIBE<<4|2, body)
}

// AppendPublish appends the encoded packet to b.
func AppendPublish(b []byte, version byte, p *Publish) []byte {
	n := 2 + len(p.Topic) + len(p.Payload)
	if p.QoS > 0 {
		n += 2
	}
	if version == V5 {
		n++
	}
	first := byte(PUBLISH<<4) | p.QoS<<1
	if p.Dup {
		first |= 0x08
	}
	b = appendLength(append(b, first), n)
	b = appendString(b, p.Topic)
	if p.QoS > 0 {
		b = binary.BigEndian.AppendUint16(b, p.ID)
	}
	if version == V5 {
		b = append(b, 0)
	}
	return append(b, p.Payload...)
}

// AppendAck appends a successful PUBACK, PUBREC, PUBREL or PUBCOMP to b. Its
// form is the same in 3.1.1 and 5.
func AppendAck(b []byte, kind byte, id uint16) []byte {
	first := kind << 4
	if kind == PUBREL {
		first |= 2
	}
	return append(b, first, 2, byte(id>>8), byte(id))
}

// AppendEmpty appends a PINGREQ or DISCONNECT without content to b.
func AppendEmpty(b []byte, kind byte) []byte { return append(b, kind<<4, 0) }

func appendPacket(b []byte, first byte, body []byte) []byte {
	b = appendLength(append(b, first), len(body))
	return append(b, body...)
}

func appendLength(b []byte, n int) []byte {
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s))) //nolint:gosec // the tools' topics and tokens are far shorter than 64 KiB
	return append(b, s...)
}

// Frame returns the length of the first packet in b with its header, and how
// many bytes of it are header. It returns 0 if b does not hold all of it yet.
func Frame(b []byte) (size, header int, err error) {
	n, shift := 0, 0
	for i := 1; i < len(b); i++ {
		n |= int(b[i]&0x7f) << shift
		if b[i] < 0x80 {
			if size = i + 1 + n; size > len(b) {
				return 0, 0, nil
			}
			return size, i + 1, nil
		}
		if shift += 7; shift > 21 {
			return 0, 0, fmt.Errorf("remaining length of more than four bytes: %w", ErrMalformed)
		}
	}
	return 0, 0, nil
}
