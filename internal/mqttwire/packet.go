package mqttwire

import (
	"encoding/binary"
	"fmt"
)

// Packet is a packet of any type. Type decides which fields are used. Fields that the
// version does not have are not encoded.
type Packet struct {
	Type           byte
	Dup            bool
	QoS            byte // PUBLISH
	Retain         bool
	ID             uint16
	Topic          string
	Payload        []byte   // PUBLISH; decoded, it shares the frame's memory
	Reason         byte     // CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, DISCONNECT, AUTH
	SessionPresent bool     // CONNACK
	Codes          []byte   // SUBACK, UNSUBACK; decoded, they share the frame's memory
	Filters        []Filter // SUBSCRIBE, UNSUBSCRIBE
	Connect        *Connect // CONNECT
	Properties     Properties
}

// Filter is one topic filter of SUBSCRIBE or UNSUBSCRIBE. The latter has only Topic.
type Filter struct {
	Topic             string
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte
}

// Connect is the content of a CONNECT.
type Connect struct {
	Version    byte
	ClientID   string
	Username   string // sent if it or Password is not empty
	Password   string // sent if not empty
	Clean      bool   // clean session (3.1.1), clean start (5)
	KeepAlive  uint16 // seconds, 0 for none
	Will       *Will
	Properties Properties
}

// Will is the will in a CONNECT.
type Will struct {
	Topic      string
	Payload    []byte
	QoS        byte
	Retain     bool
	Properties Properties
}

// Append appends the encoded packet to b.
func (c *Connect) Append(b []byte) []byte {
	name := "MQTT"
	if c.Version == V31 {
		name = "MQIsdp"
	}
	var flags byte
	if c.Clean {
		flags |= 0x02
	}
	if c.Will != nil {
		flags |= 0x04 | c.Will.QoS<<3
		if c.Will.Retain {
			flags |= 0x20
		}
	}
	if c.Password != "" {
		flags |= 0x40
	}
	if c.Username != "" || c.Password != "" {
		flags |= 0x80
	}
	body := append(AppendString(nil, name), c.Version, flags)
	body = binary.BigEndian.AppendUint16(body, c.KeepAlive)
	body = appendProperties(body, c.Version, c.Properties)
	body = AppendString(body, c.ClientID)
	if w := c.Will; w != nil {
		body = appendProperties(body, c.Version, w.Properties)
		body = AppendString(body, w.Topic)
		body = AppendString(body, string(w.Payload))
	}
	if c.Username != "" || c.Password != "" {
		body = AppendString(body, c.Username)
	}
	if c.Password != "" {
		body = AppendString(body, c.Password)
	}
	return AppendFrame(b, CONNECT<<4, body)
}

// Append appends the packet, encoded for a version, to b.
func (p *Packet) Append(b []byte, version byte) []byte {
	if p.Type == PUBLISH {
		return p.appendPublish(b, version)
	}
	var body []byte
	first := p.Type << 4
	switch p.Type {
	case CONNECT:
		return p.Connect.Append(b)
	case CONNACK:
		body = appendProperties(append(body, bit(p.SessionPresent), p.Reason), version, p.Properties)
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		if p.Type == PUBREL {
			first |= 2
		}
		body = appendReason(binary.BigEndian.AppendUint16(body, p.ID), version, p)
	case SUBSCRIBE, UNSUBSCRIBE:
		first |= 2
		body = appendProperties(binary.BigEndian.AppendUint16(body, p.ID), version, p.Properties)
		for _, f := range p.Filters {
			body = AppendString(body, f.Topic)
			if p.Type == SUBSCRIBE {
				body = append(body, f.QoS|bit(f.NoLocal)<<2|bit(f.RetainAsPublished)<<3|f.RetainHandling<<4)
			}
		}
	case SUBACK, UNSUBACK:
		body = appendProperties(binary.BigEndian.AppendUint16(body, p.ID), version, p.Properties)
		if p.Type == SUBACK || version == V5 {
			body = append(body, p.Codes...)
		}
	case DISCONNECT, AUTH:
		body = appendReason(body, version, p)
	}
	return AppendFrame(b, first, body)
}

// appendPublish allocates nothing if b has room: the load generator sends through it.
func (p *Packet) appendPublish(b []byte, version byte) []byte {
	n := 2 + len(p.Topic) + len(p.Payload)
	if p.QoS > 0 {
		n += 2
	}
	if version == V5 {
		n += len(p.Properties) + lengthSize(len(p.Properties))
	}
	b = appendLength(append(b, PUBLISH<<4|bit(p.Dup)<<3|p.QoS<<1|bit(p.Retain)), n)
	b = AppendString(b, p.Topic)
	if p.QoS > 0 {
		b = binary.BigEndian.AppendUint16(b, p.ID)
	}
	return append(appendProperties(b, version, p.Properties), p.Payload...)
}

// appendReason appends the reason code and the properties, which MQTT 5 allows
// to omit if they are 0 and empty.
func appendReason(b []byte, version byte, p *Packet) []byte {
	if version != V5 || p.Reason == 0 && len(p.Properties) == 0 {
		return b
	}
	b = append(b, p.Reason)
	if len(p.Properties) > 0 {
		b = appendProperties(b, version, p.Properties)
	}
	return b
}

func appendProperties(b []byte, version byte, p Properties) []byte {
	if version != V5 {
		return b
	}
	return append(appendLength(b, len(p)), p...)
}

func lengthSize(n int) int {
	size := 1
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}

func bit(set bool) byte {
	if set {
		return 1
	}
	return 0
}

// Decode decodes one whole packet, as returned by ReadFrame.
func Decode(frame []byte, version byte) (*Packet, error) {
	size, header, err := FrameSize(frame)
	if err != nil {
		return nil, err
	}
	if size != len(frame) || size == 0 {
		return nil, fmt.Errorf("frame of %d bytes: %w", len(frame), ErrMalformed)
	}
	p := &Packet{Type: frame[0] >> 4}
	r := reader{b: frame[header:]}
	switch p.Type {
	case CONNECT:
		p.Connect = r.connect()
	case CONNACK:
		p.SessionPresent = r.byte()&1 == 1
		p.Reason = r.byte()
		p.Properties = r.properties(version)
	case PUBLISH:
		p.Dup, p.QoS, p.Retain = frame[0]&0x08 != 0, frame[0]>>1&3, frame[0]&1 != 0
		p.Topic = r.string()
		if p.QoS > 0 {
			p.ID = r.uint16()
		}
		p.Properties = r.properties(version)
		p.Payload = r.take(len(r.b))
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		p.ID = r.uint16()
		r.reason(p, version)
	case SUBSCRIBE, UNSUBSCRIBE:
		p.ID = r.uint16()
		p.Properties = r.properties(version)
		for len(r.b) > 0 {
			f := Filter{Topic: r.string()}
			if p.Type == SUBSCRIBE {
				o := r.byte()
				f.QoS, f.NoLocal, f.RetainAsPublished, f.RetainHandling = o&3, o&4 != 0, o&8 != 0, o>>4&3
			}
			p.Filters = append(p.Filters, f)
		}
	case SUBACK, UNSUBACK:
		p.ID = r.uint16()
		p.Properties = r.properties(version)
		p.Codes = r.take(len(r.b))
	case PINGREQ, PINGRESP:
	case DISCONNECT, AUTH:
		r.reason(p, version)
	default:
		return nil, fmt.Errorf("packet type %d: %w", p.Type, ErrMalformed)
	}
	if r.short {
		return nil, fmt.Errorf("%s is cut off: %w", Name(p.Type), ErrMalformed)
	}
	if len(r.b) > 0 {
		return nil, fmt.Errorf("%s has %d bytes too many: %w", Name(p.Type), len(r.b), ErrMalformed)
	}
	return p, nil
}

// reader reads from the front of b. short is set when there were too few
// bytes.
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

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) string() string { return string(r.take(int(r.uint16()))) }

func (r *reader) varint() int {
	n := 0
	for shift := 0; shift <= 21; shift += 7 {
		c := r.byte()
		n |= int(c&0x7f) << shift
		if c < 0x80 {
			return n
		}
	}
	r.short = true // more than four bytes
	return 0
}

// reason reads the reason code and the properties, both of which may be left out.
func (r *reader) reason(p *Packet, version byte) {
	if version != V5 || len(r.b) == 0 {
		return
	}
	p.Reason = r.byte()
	if len(r.b) > 0 {
		p.Properties = r.properties(version)
	}
}

// properties reads the properties of MQTT 5. They share the frame's memory.
func (r *reader) properties(version byte) Properties {
	if version != V5 {
		return nil
	}
	p := r.take(r.varint())
	check := reader{b: p}
	for len(check.b) > 0 {
		check.skip()
	}
	r.short = r.short || check.short
	return Properties(p)
}

// skip reads a property without allocating a string.
func (r *reader) skip() {
	switch encodingOf(r.byte()) {
	case oneByte:
		r.take(1)
	case twoBytes:
		r.take(2)
	case fourBytes:
		r.take(4)
	case varint:
		r.varint()
	case text:
		r.take(int(r.uint16()))
	case pair:
		r.take(int(r.uint16()))
		r.take(int(r.uint16()))
	default:
		r.short, r.b = true, nil
	}
}

func (r *reader) property() Property {
	p := Property{ID: r.byte()}
	switch encodingOf(p.ID) {
	case oneByte:
		p.Int = uint32(r.byte())
	case twoBytes:
		p.Int = uint32(r.uint16())
	case fourBytes:
		p.Int = r.uint32()
	case varint:
		p.Int = uint32(r.varint()) //nolint:gosec // of four bytes
	case text:
		p.Text = r.string()
	case pair:
		p.Name = r.string()
		p.Text = r.string()
	default:
		r.short, r.b = true, nil
	}
	return p
}

func (r *reader) connect() *Connect {
	r.string() // the protocol's name follows from the version
	c := &Connect{Version: r.byte()}
	flags := r.byte()
	c.Clean = flags&0x02 != 0
	c.KeepAlive = r.uint16()
	c.Properties = r.properties(c.Version)
	c.ClientID = r.string()
	if flags&0x04 != 0 {
		w := &Will{QoS: flags >> 3 & 3, Retain: flags&0x20 != 0, Properties: r.properties(c.Version)}
		w.Topic = r.string()
		w.Payload = r.take(int(r.uint16()))
		c.Will = w
	}
	if flags&0x80 != 0 {
		c.Username = r.string()
	}
	if flags&0x40 != 0 {
		c.Password = r.string()
	}
	return c
}
