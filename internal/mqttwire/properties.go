package mqttwire

import (
	"encoding/binary"
	"fmt"
	"iter"
)

// Identifiers of the properties of MQTT 5, section 2.2.2.2.
const (
	PayloadFormatIndicator          = 0x01
	MessageExpiryInterval           = 0x02
	ContentType                     = 0x03
	ResponseTopic                   = 0x08
	CorrelationData                 = 0x09
	SubscriptionIdentifier          = 0x0b
	SessionExpiryInterval           = 0x11
	AssignedClientIdentifier        = 0x12
	ServerKeepAlive                 = 0x13
	AuthenticationMethod            = 0x15
	AuthenticationData              = 0x16
	RequestProblemInformation       = 0x17
	WillDelayInterval               = 0x18
	RequestResponseInformation      = 0x19
	ResponseInformation             = 0x1a
	ServerReference                 = 0x1c
	ReasonString                    = 0x1f
	ReceiveMaximum                  = 0x21
	TopicAliasMaximum               = 0x22
	TopicAlias                      = 0x23
	MaximumQoS                      = 0x24
	RetainAvailable                 = 0x25
	UserProperty                    = 0x26
	MaximumPacketSize               = 0x27
	WildcardSubscriptionAvailable   = 0x28
	SubscriptionIdentifierAvailable = 0x29
	SharedSubscriptionAvailable     = 0x2a
)

// encoding is how the value of a property is encoded.
type encoding byte

const (
	unknownEncoding encoding = iota
	oneByte
	twoBytes
	fourBytes
	varint
	text // a string, or binary data: both have their length before them
	pair
)

// encodings maps each property identifier to its encoding.
var encodings = [...]encoding{
	PayloadFormatIndicator:          oneByte,
	MessageExpiryInterval:           fourBytes,
	ContentType:                     text,
	ResponseTopic:                   text,
	CorrelationData:                 text,
	SubscriptionIdentifier:          varint,
	SessionExpiryInterval:           fourBytes,
	AssignedClientIdentifier:        text,
	ServerKeepAlive:                 twoBytes,
	AuthenticationMethod:            text,
	AuthenticationData:              text,
	RequestProblemInformation:       oneByte,
	WillDelayInterval:               fourBytes,
	RequestResponseInformation:      oneByte,
	ResponseInformation:             text,
	ServerReference:                 text,
	ReasonString:                    text,
	ReceiveMaximum:                  twoBytes,
	TopicAliasMaximum:               twoBytes,
	TopicAlias:                      twoBytes,
	MaximumQoS:                      oneByte,
	RetainAvailable:                 oneByte,
	UserProperty:                    pair,
	MaximumPacketSize:               fourBytes,
	WildcardSubscriptionAvailable:   oneByte,
	SubscriptionIdentifierAvailable: oneByte,
	SharedSubscriptionAvailable:     oneByte,
}

func encodingOf(id byte) encoding {
	if int(id) < len(encodings) {
		return encodings[id]
	}
	return unknownEncoding
}

// Properties are properties of MQTT 5 in their encoded form, without the length that
// stands before them in a packet. They keep their order, and the same one may be there
// twice. The zero value has none.
type Properties []byte

// Property is one of them. Which of the values is set depends on ID.
type Property struct {
	ID   byte
	Int  uint32
	Text string // of a user property, the value
	Name string // of a user property
}

// WithInt returns p with one more property, a number. It panics if id is not a property
// with a number, since that is a mistake of the test.
func (p Properties) WithInt(id byte, value uint32) Properties {
	switch encodingOf(id) {
	case oneByte:
		return append(p, id, byte(value))
	case twoBytes:
		return binary.BigEndian.AppendUint16(append(p, id), uint16(value)) //nolint:gosec // what the test says
	case fourBytes:
		return binary.BigEndian.AppendUint32(append(p, id), value)
	case varint:
		return appendLength(append(p, id), int(value))
	default:
		panic(fmt.Sprintf("property %#02x is not a number", id))
	}
}

// WithText returns p with one more property, a string or binary data. It panics if id is
// not such a property.
func (p Properties) WithText(id byte, value string) Properties {
	if encodingOf(id) != text {
		panic(fmt.Sprintf("property %#02x is not a string", id))
	}
	return AppendString(append(p, id), value)
}

// WithUser returns p with one more user property.
func (p Properties) WithUser(name, value string) Properties {
	return AppendString(AppendString(append(p, UserProperty), name), value)
}

// All returns the properties in their order. It ends at the first malformed
// one.
func (p Properties) All() iter.Seq[Property] {
	return func(yield func(Property) bool) {
		for r := (reader{b: p}); len(r.b) > 0; {
			if one := r.property(); r.short || !yield(one) {
				return
			}
		}
	}
}

// Get returns the first property of an identifier.
func (p Properties) Get(id byte) (Property, bool) {
	for one := range p.All() {
		if one.ID == id {
			return one, true
		}
	}
	return Property{}, false
}

// GetText returns the first string or binary data of an identifier, or "".
func (p Properties) GetText(id byte) string { one, _ := p.Get(id); return one.Text }

// GetInt returns the first number of an identifier, or 0.
func (p Properties) GetInt(id byte) uint32 { one, _ := p.Get(id); return one.Int }

// GetUser returns the first user property of a name, or "".
func (p Properties) GetUser(name string) string {
	for one := range p.All() {
		if one.ID == UserProperty && one.Name == name {
			return one.Text
		}
	}
	return ""
}
