package delivery

import (
	"encoding/binary"
	"math"

	"mynah/chat"
)

// MQTT 5 properties of a PUBLISH (section 3.3.2.3).
const (
	propMessageExpiry  = 0x02
	propSubscriptionID = 0x0B
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

// maxFrameOverhead bounds what appendPublish adds to topic, properties and payload.
const maxFrameOverhead = 1 + 4 + 2 + 2 + 4

// appendPublish appends a PUBLISH (MQTT 3.1.1 and 5, 3.3) with packet id 0 and
// returns where the packet id is, -1 for QoS 0. props are the encoded MQTT 5
// properties without their length.
func appendPublish(dst []byte, topic string, qos byte, dup, v5 bool, props, payload []byte) ([]byte, int) {
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

// appendProps appends the MQTT 5 properties of a delivery.
func appendProps(dst []byte, expires, now int64, subIDs []int) []byte {
	switch {
	case expires == chat.AtOnce:
		dst = append(dst, propMessageExpiry, 0, 0, 0, 0)
	case expires > 0:
		left := min(max((expires-now+500)/1000, 1), math.MaxUint32)
		dst = append(dst, propMessageExpiry)
		dst = binary.BigEndian.AppendUint32(dst, uint32(left)) //nolint:gosec // bounded by the line above
	}
	for _, id := range subIDs {
		dst = append(dst, propSubscriptionID)
		dst = binary.AppendUvarint(dst, uint64(id))
	}
	return dst
}

// Control packet types that acknowledge (MQTT 5, 2.1.2).
const (
	typePuback  = 4
	typePubrec  = 5
	typePubrel  = 6
	typePubcomp = 7
)

// Reason codes of MQTT 5 that delivery itself sends (2.4).
const reasonTakenOver = 0x8E

// disconnect returns an MQTT 5 DISCONNECT with a reason code.
func disconnect(reason byte) []byte { return []byte{0xE0, 2, reason, 0} }

// pubrel returns a PUBREL.
func pubrel(id uint16) []byte {
	return []byte{typePubrel<<4 | 2, 2, byte(id >> 8), byte(id)}
}
