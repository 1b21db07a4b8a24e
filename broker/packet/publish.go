package packet

import (
	"encoding/binary"
	"math"
)

// Reason codes of MQTT 5 with which the server ends a session's connection (2.4).
const (
	ReasonImplementationError = 0x83
	ReasonSessionTakenOver    = 0x8E
)

// varintLen returns how long n is as a variable byte integer (MQTT 5, 1.5.5). Up to the
// four bytes that MQTT allows, that is what encoding/binary calls a uvarint.
func varintLen(n int) int {
	switch {
	case n < 1<<7:
		return 1
	case n < 1<<14:
		return 2
	case n < 1<<21:
		return 3
	}
	return 4
}

// MaxPublishOverhead bounds what AppendPublish adds to topic, properties and payload.
const MaxPublishOverhead = 1 + 4 + 2 + 2 + 4

// AppendPublish appends a PUBLISH (MQTT 3.1.1 and 5, 3.3) with packet id 0 and
// returns where the packet id is, -1 for QoS 0. props are the encoded MQTT 5
// properties without their length.
func AppendPublish(dst []byte, topic string, qos byte, dup, v5 bool, props, payload []byte) ([]byte, int) {
	n := 2 + len(topic) + len(payload)
	if qos > 0 {
		n += 2
	}
	if v5 {
		n += varintLen(len(props)) + len(props)
	}
	head := 0x30 | qos<<1
	if dup {
		head |= 0x08
	}
	dst = append(dst, head)
	dst = binary.AppendUvarint(dst, uint64(n))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(topic))) //nolint:gosec // chat topics are short
	dst = append(dst, topic...)
	at := -1
	if qos > 0 {
		at = len(dst)
		dst = append(dst, 0, 0)
	}
	if v5 {
		dst = binary.AppendUvarint(dst, uint64(len(props)))
		dst = append(dst, props...)
	}
	return append(dst, payload...), at
}

// AppendDelivered appends the properties that a server adds to a PUBLISH (MQTT 5, 3.3.2.3):
// the Message Expiry Interval in seconds, negative for none, and Subscription Identifiers.
func AppendDelivered(dst []byte, expiryInterval int64, subIDs []int) []byte {
	if expiryInterval >= 0 {
		dst = append(dst, MessageExpiry)
		dst = binary.BigEndian.AppendUint32(dst, uint32(min(expiryInterval, math.MaxUint32))) //nolint:gosec // bounded
	}
	for _, id := range subIDs {
		dst = append(dst, SubscriptionID)
		dst = binary.AppendUvarint(dst, uint64(id)) //nolint:gosec // not negative
	}
	return dst
}

// EncodeDisconnect returns an MQTT 5 DISCONNECT with a reason code.
func EncodeDisconnect(reason byte) []byte { return []byte{0xE0, 2, reason, 0} }

// EncodePubrel returns a PUBREL.
func EncodePubrel(id uint16) []byte {
	return []byte{byte(Pubrel)<<4 | 2, 2, byte(id >> 8), byte(id)}
}
