package broker

import (
	"encoding/binary"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Properties of a SUBSCRIBE (MQTT 5, 3.8.2.1).
const (
	propSubscriptionID = 0x0B
	propUserProperty   = propUser
)

// checkSubscribe returns what is wrong with the variable header and the payload of a
// SUBSCRIBE (MQTT 5, 3.8.2 and 3.8.3; 3.1.1, 3.8.3). Mochi's codec runs off the end of one
// that is cut short and lets pass what is forbidden.
func checkSubscribe(body []byte, v5 bool) error {
	if len(body) < 2 {
		return packets.ErrMalformedPacketID
	}
	body = body[2:]
	if v5 {
		size, n := binary.Uvarint(body)
		if n <= 0 || n > 4 || size > uint64(len(body)-n) {
			return packets.ErrMalformedProperties
		}
		if err := checkSubscribeProperties(body[n : n+int(size)]); err != nil { //nolint:gosec // within body
			return err
		}
		body = body[n+int(size):] //nolint:gosec // within body
	}
	if len(body) == 0 {
		return packets.ErrProtocolViolationNoFilters // [MQTT-3.8.3-2]
	}
	reserved := byte(0xFC)
	if v5 {
		reserved = 0xC0
	}
	for len(body) > 0 {
		filter, rest, ok := cutString(body)
		if !ok || len(rest) == 0 {
			return packets.ErrMalformedPacket
		}
		options := rest[0]
		switch {
		case options&reserved != 0, options&3 == 3:
			return packets.ErrMalformedPacket // [MQTT-3.8.3-5], [MQTT-3-8.3-4]
		case options>>4&3 == 3:
			return packets.ErrProtocolViolation // Retain Handling (3.8.3.1)
		case options&4 != 0 && mqtt.IsSharedFilter(filter):
			return packets.ErrProtocolViolationInvalidSharedNoLocal // [MQTT-3.8.3-4]
		}
		body = rest[1:]
	}
	return nil
}

// checkSubscribeProperties returns what is wrong with the properties of a SUBSCRIBE.
func checkSubscribeProperties(props []byte) error {
	numbered := false
	for len(props) > 0 {
		switch props[0] {
		case propSubscriptionID:
			id, n := binary.Uvarint(props[1:])
			switch {
			case n <= 0 || n > 4:
				return packets.ErrMalformedProperties
			case id == 0 || numbered:
				return packets.ErrProtocolViolation // 3.8.2.1.2
			}
			numbered, props = true, props[1+n:]
		case propUserProperty:
			_, rest, ok := cutString(props[1:])
			if ok {
				_, rest, ok = cutString(rest)
			}
			if !ok {
				return packets.ErrMalformedProperties
			}
			props = rest
		default:
			return packets.ErrMalformedProperties
		}
	}
	return nil
}

// cutString takes a UTF-8 encoded string (MQTT 5, 1.5.4) from the front of b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 2 {
		return "", nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	if len(b) < n {
		return "", nil, false
	}
	return string(b[2:n]), b[n:], true
}
