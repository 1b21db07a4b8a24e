package packet

import (
	"bytes"
	"encoding/binary"

	"github.com/mochi-mqtt/server/v2/packets"
)

// The properties of MQTT 5 (2.2.2.2).
const (
	PayloadFormat         = 0x01
	MessageExpiry         = 0x02
	ContentType           = 0x03
	ResponseTopic         = 0x08
	CorrelationData       = 0x09
	SubscriptionID        = 0x0B
	SessionExpiry         = 0x11
	AssignedClientID      = 0x12
	ServerKeepAlive       = 0x13
	AuthMethod            = 0x15
	AuthData              = 0x16
	RequestProblemInfo    = 0x17
	WillDelay             = 0x18
	RequestResponseInfo   = 0x19
	ResponseInfo          = 0x1A
	ServerReference       = 0x1C
	ReasonString          = 0x1F
	ReceiveMaximum        = 0x21
	TopicAliasMaximum     = 0x22
	TopicAlias            = 0x23
	MaximumQoS            = 0x24
	RetainAvailable       = 0x25
	User                  = 0x26
	MaximumPacketSize     = 0x27
	WildcardSubAvailable  = 0x28
	SubscriptionIDAvail   = 0x29
	SharedSubAvailable    = 0x2A
	propertyCount         = 0x2B
	maxUint16, maxUint32  = 1<<16 - 1, 1<<32 - 1
	maxVariableByteLength = 4 // bytes of a Variable Byte Integer (1.5.5)
)

// valueKind is how a property's value is encoded (MQTT 5, 1.5).
type valueKind uint8

const (
	unknown  valueKind = iota
	number             // of size bytes
	variable           // Variable Byte Integer
	text               // UTF-8 Encoded String
	name               // the same, which names something: see ValidName
	binaryData
	pair // UTF-8 String Pair
)

// property says which values a property may have. A property that comes twice is a
// Protocol Error, except a pair.
type property struct {
	kind     valueKind
	size     int    // bytes of a number
	min, max uint32 // of a number
}

var properties = [propertyCount]property{
	PayloadFormat:        {number, 1, 0, 1},
	MessageExpiry:        {number, 4, 0, maxUint32},
	ContentType:          {kind: text},
	ResponseTopic:        {kind: name},
	CorrelationData:      {kind: binaryData},
	SubscriptionID:       {kind: variable},
	SessionExpiry:        {number, 4, 0, maxUint32},
	AssignedClientID:     {kind: text},
	ServerKeepAlive:      {number, 2, 0, maxUint16},
	AuthMethod:           {kind: text},
	AuthData:             {kind: binaryData},
	RequestProblemInfo:   {number, 1, 0, 1},
	WillDelay:            {number, 4, 0, maxUint32},
	RequestResponseInfo:  {number, 1, 0, 1},
	ResponseInfo:         {kind: text},
	ServerReference:      {kind: text},
	ReasonString:         {kind: text},
	ReceiveMaximum:       {number, 2, 1, maxUint16},
	TopicAliasMaximum:    {number, 2, 0, maxUint16},
	TopicAlias:           {number, 2, 0, maxUint16}, // none is accepted, whatever it is
	MaximumQoS:           {number, 1, 0, 1},
	RetainAvailable:      {number, 1, 0, 1},
	User:                 {kind: pair},
	MaximumPacketSize:    {number, 4, 1, maxUint32},
	WildcardSubAvailable: {number, 1, 0, 1},
	SubscriptionIDAvail:  {number, 1, 0, 1},
	SharedSubAvailable:   {number, 1, 0, 1},
}

// propertySet is a set of properties, one bit for each identifier.
type propertySet uint64

func propertiesOf(ids ...byte) (s propertySet) {
	for _, id := range ids {
		s |= 1 << id
	}
	return s
}

func (s propertySet) has(id byte) bool { return id < propertyCount && s&(1<<id) != 0 }

// CutProperties reads the properties, with their length, from the front of b, and checks
// them for the type of packet.
func CutProperties(t Type, b []byte) (props, rest []byte, err error) {
	length, n := binary.Uvarint(b)
	if n <= 0 || n > maxVariableByteLength || length > uint64(len(b)-n) {
		return nil, nil, packets.ErrMalformedProperties
	}
	size := n + int(length) //nolint:gosec // within b
	props, rest = b[n:size], b[size:]
	allowed := packetRules[t].properties
	var seen propertySet
	for left := props; len(left) > 0; {
		id := left[0]
		if !allowed.has(id) {
			return nil, nil, packets.ErrMalformedBadProperty // 2.2.2.2
		}
		if seen.has(id) && properties[id].kind != pair {
			return nil, nil, packets.ErrProtocolViolation // "it is a Protocol Error to include it more than once"
		}
		seen |= 1 << id
		if left, err = cutProperty(id, left[1:]); err != nil {
			return nil, nil, err
		}
	}
	if seen.has(AuthData) && !seen.has(AuthMethod) {
		return nil, nil, packets.ErrProtocolViolation // 3.1.2.11.10
	}
	return props, rest, nil
}

// cutProperty reads a property's value from the front of b.
func cutProperty(id byte, b []byte) (rest []byte, err error) {
	p := &properties[id]
	switch p.kind {
	case number:
		return cutNumber(p, b)
	case variable:
		v, n := binary.Uvarint(b)
		switch {
		case n <= 0 || n > maxVariableByteLength:
			return nil, packets.ErrMalformedVariableByteInteger
		case v == 0:
			return nil, packets.ErrProtocolViolation // 3.8.2.1.2
		}
		return b[n:], nil
	case name:
		s, rest, err := cutText(b)
		switch {
		case err != nil:
			return nil, err
		case !ValidName(s):
			return nil, packets.ErrMalformedProperties
		case len(s) == 0:
			return nil, packets.ErrProtocolViolationInvalidTopic // [MQTT-4.7.3-1]
		case bytes.ContainsAny(s, "+#"):
			return nil, packets.ErrProtocolViolationSurplusWildcard // [MQTT-3.3.2-14]
		}
		return rest, nil
	case binaryData:
		if _, rest, ok := cutBytes(b); ok {
			return rest, nil
		}
		return nil, packets.ErrMalformedProperties
	case pair:
		if _, b, err = cutText(b); err != nil {
			return nil, err
		}
	}
	_, rest, err = cutText(b)
	return rest, err
}

func cutNumber(p *property, b []byte) (rest []byte, err error) {
	if len(b) < p.size {
		return nil, packets.ErrMalformedProperties
	}
	var v uint32
	for _, c := range b[:p.size] {
		v = v<<8 | uint32(c)
	}
	if v < p.min || v > p.max {
		return nil, packets.ErrProtocolViolation
	}
	return b[p.size:], nil
}

// cutText reads the UTF-8 encoded string of a property from the front of b.
func cutText(b []byte) (s, rest []byte, err error) {
	s, rest, ok := cutBytes(b)
	if !ok || !validUTF8(s) {
		return nil, nil, packets.ErrMalformedProperties
	}
	return s, rest, nil
}

// cutBytes reads binary data (MQTT 5, 1.5.6) from the front of b.
func cutBytes(b []byte) (data, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	if len(b) < n {
		return nil, nil, false
	}
	return b[2:n], b[n:], true
}
