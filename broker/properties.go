package broker

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Properties that clients send (MQTT 5, 2.2.2.2).
const (
	propPayloadFormat     = 0x01
	propMessageExpiry     = 0x02
	propContentType       = 0x03
	propResponseTopic     = 0x08
	propCorrelationData   = 0x09
	propSubscriptionID    = 0x0B
	propSessionExpiry     = 0x11
	propAuthMethod        = 0x15
	propAuthData          = 0x16
	propRequestProblem    = 0x17
	propWillDelay         = 0x18
	propRequestResponse   = 0x19
	propReasonString      = 0x1F
	propReceiveMaximum    = 0x21
	propTopicAliasMaximum = 0x22
	propTopicAlias        = 0x23
	propUser              = 0x26
	propMaximumPacketSize = 0x27
)

// propSet is a set of properties.
type propSet uint64

func propsOf(ids ...byte) (s propSet) {
	for _, id := range ids {
		s |= 1 << id
	}
	return s
}

// What a client may say in which packet.
var (
	connectProps = propsOf(propSessionExpiry, propReceiveMaximum, propMaximumPacketSize, propTopicAliasMaximum,
		propRequestResponse, propRequestProblem, propUser, propAuthMethod, propAuthData) // 3.1.2.11
	willProps = propsOf(propWillDelay, propPayloadFormat, propMessageExpiry, propContentType, propResponseTopic,
		propCorrelationData, propUser) // 3.1.3.2
	publishProps = propsOf(propPayloadFormat, propMessageExpiry, propTopicAlias, propResponseTopic,
		propCorrelationData, propUser, propSubscriptionID, propContentType) // 3.3.2.3
	subscribeProps   = propsOf(propSubscriptionID, propUser)                  // 3.8.2.1
	unsubscribeProps = propsOf(propUser)                                      // 3.10.2.1
	disconnectProps  = propsOf(propSessionExpiry, propReasonString, propUser) // 3.14.2.2
)

// cutProperties takes the properties, with their length, from the front of a packet's rest
// and checks them: Mochi's codec lets pass what is there twice or has a value that it may
// not have. The error is a packets.Code.
func cutProperties(b []byte, allowed propSet) (props, rest []byte, err error) {
	length, n := binary.Uvarint(b)
	if n <= 0 || n > 4 || length > uint64(len(b)-n) {
		return nil, nil, packets.ErrMalformedProperties
	}
	size := n + int(length) //nolint:gosec // within b
	props, rest = b[n:size], b[size:]
	var seen propSet
	for left := props; len(left) > 0; {
		id := left[0]
		if id > propMaximumPacketSize || allowed&(1<<id) == 0 {
			return nil, nil, packets.ErrMalformedProperties
		}
		if seen&(1<<id) != 0 && id != propUser {
			return nil, nil, packets.ErrProtocolViolation // "it is a Protocol Error to include it more than once"
		}
		seen |= 1 << id
		if left, err = cutProperty(id, left[1:]); err != nil {
			return nil, nil, err
		}
	}
	if seen&(1<<propAuthData) != 0 && seen&(1<<propAuthMethod) == 0 {
		return nil, nil, packets.ErrProtocolViolation // 3.1.2.11.10
	}
	return props, rest, nil
}

// cutProperty takes a property's value from the front of b.
func cutProperty(id byte, b []byte) (rest []byte, err error) {
	number := func(size int, lowest, highest uint32) ([]byte, error) {
		if len(b) < size {
			return nil, packets.ErrMalformedProperties
		}
		var v uint32
		for _, c := range b[:size] {
			v = v<<8 | uint32(c)
		}
		if v < lowest || v > highest {
			return nil, packets.ErrProtocolViolation
		}
		return b[size:], nil
	}
	text := func(b []byte) (s, rest []byte, err error) {
		s, rest, ok := cutBytes(b)
		if !ok || !utf8.Valid(s) || bytes.IndexByte(s, 0) >= 0 { // 1.5.4
			return nil, nil, packets.ErrMalformedProperties
		}
		return s, rest, nil
	}
	const most = 1<<32 - 1
	switch id {
	case propPayloadFormat, propRequestProblem, propRequestResponse:
		return number(1, 0, 1)
	case propTopicAliasMaximum, propTopicAlias: // an alias is refused, whatever it is
		return number(2, 0, most)
	case propReceiveMaximum:
		return number(2, 1, most)
	case propMessageExpiry, propSessionExpiry, propWillDelay:
		return number(4, 0, most)
	case propMaximumPacketSize:
		return number(4, 1, most)
	case propSubscriptionID:
		v, n := binary.Uvarint(b)
		switch {
		case n <= 0 || n > 4:
			return nil, packets.ErrMalformedProperties
		case v == 0:
			return nil, packets.ErrProtocolViolation // 3.8.2.1.2
		}
		return b[n:], nil
	case propCorrelationData, propAuthData:
		_, rest, ok := cutBytes(b)
		if !ok {
			return nil, packets.ErrMalformedProperties
		}
		return rest, nil
	case propUser:
		if _, b, err = text(b); err != nil {
			return nil, err
		}
	}
	s, rest, err := text(b)
	if id == propResponseTopic && bytes.ContainsAny(s, "+#") {
		return nil, packets.ErrProtocolViolation // [MQTT-3.3.2-14]
	}
	return rest, err
}

// cutBytes takes binary data (MQTT 5, 1.5.6) from the front of b.
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

// Flags of CONNECT (MQTT 5, 3.1.2.3).
const (
	connectReserved = 1 << 0
	connectWill     = 1 << 2
	connectWillAll  = 0x38 // will QoS and will retain
	connectPassword = 1 << 6
	connectUsername = 1 << 7
)

// checkConnect returns what is wrong with the variable header and the payload of a CONNECT
// (MQTT 5, 3.1.2 and 3.1.3; 3.1.1, 3.1.2 and 3.1.3) that Mochi lets pass. A password without
// a user name is taken from 3.1.1 clients, too: the token needs none.
func checkConnect(body []byte) error {
	_, b, ok := cutBytes(body)
	if !ok || len(b) < 4 {
		return packets.ErrMalformedPacket
	}
	v5, flags, b := b[0] == 5, b[1], b[4:]
	switch {
	case flags&connectReserved != 0:
		return packets.ErrProtocolViolationReservedBit // [MQTT-3.1.2-3]
	case flags&connectWill == 0 && flags&connectWillAll != 0, flags&0x18 == 0x18:
		return packets.ErrProtocolViolation // [MQTT-3.1.2-11], [MQTT-3.1.2-12], [MQTT-3.1.2-13]
	}
	var err error
	if v5 {
		if _, b, err = cutProperties(b, connectProps); err != nil {
			return err
		}
	}
	field := func(there, text bool) {
		if !there || err != nil {
			return
		}
		var data []byte
		if data, b, ok = cutBytes(b); !ok || text && (!utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0) {
			err = packets.ErrMalformedPacket // 1.5.4
		}
	}
	will := flags&connectWill != 0
	field(true, true) // client id
	if will && v5 && err == nil {
		_, b, err = cutProperties(b, willProps)
	}
	field(will, true) // topic
	field(will, false)
	field(flags&connectUsername != 0, true)
	field(flags&connectPassword != 0, false)
	if err == nil && len(b) > 0 {
		err = packets.ErrMalformedPacket
	}
	return err
}
