package packet

import (
	"slices"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"
)

// Flags of CONNECT (MQTT 5, 3.1.2.3).
const (
	connectReserved = 1 << 0
	connectWill     = 1 << 2
	connectWillAll  = 0x38 // will QoS and will retain
	connectPassword = 1 << 6
	connectUsername = 1 << 7
)

// CheckConnect returns an error if the variable header or the payload of a CONNECT is
// invalid (MQTT 5, 3.1.2 and 3.1.3; 3.1.1, 3.1.2 and 3.1.3). A password without a user name
// is taken from 3.1.1 clients, too: the token needs none. A will's topic with a wildcard is
// not checked here; the policy refuses it.
func CheckConnect(body []byte) error {
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
		if _, b, err = CutProperties(Connect, b); err != nil {
			return err
		}
	}
	field := func(there bool, valid func([]byte) bool, wrong packets.Code) {
		if !there || err != nil {
			return
		}
		var data []byte
		if data, b, ok = cutBytes(b); !ok || valid != nil && !valid(data) {
			err = wrong
		}
	}
	will := flags&connectWill != 0
	field(true, ValidName[[]byte], packets.ErrMalformedPacket) // client id
	if will && v5 && err == nil {
		_, b, err = CutProperties(Will, b)
	}
	field(will, func(b []byte) bool { return len(b) > 0 && ValidName(b) }, packets.ErrMalformedWillTopic)
	field(will, nil, packets.ErrMalformedWillPayload)
	field(flags&connectUsername != 0, ValidName[[]byte], packets.ErrMalformedUsername)
	field(flags&connectPassword != 0, nil, packets.ErrMalformedPassword)
	if err == nil && len(b) > 0 {
		err = packets.ErrMalformedPacket
	}
	return err
}

// ProtocolLevelOffset returns the offset of the protocol level in the variable header of a
// CONNECT (MQTT 5, 3.1.2.2) that CheckConnect accepts.
func ProtocolLevelOffset(body []byte) int { return 2 + int(body[0])<<8 + int(body[1]) }

// CutPacketID reads a packet id from the front of b and returns the rest.
func CutPacketID(b []byte) (id uint16, rest []byte, err error) {
	if len(b) < 2 {
		return 0, nil, packets.ErrMalformedPacketID
	}
	if id = uint16(b[0])<<8 | uint16(b[1]); id == 0 {
		return 0, nil, packets.ErrProtocolViolationNoPacketID // [MQTT-2.2.1-3]
	}
	return id, b[2:], nil
}

// checkReason reads a reason code and properties, which may both be omitted (MQTT 5,
// 3.4.2.1), and returns the code.
func checkReason(t Type, b []byte) (reason byte, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	reason = b[0]
	if !slices.Contains(packetRules[t].reasons, reason) {
		return 0, packets.ErrProtocolViolationInvalidReason // [MQTT-3.4.2-1] and its like
	}
	if b = b[1:]; len(b) > 0 {
		if _, b, err = CutProperties(t, b); err != nil {
			return 0, err
		}
	}
	if len(b) > 0 {
		return 0, packets.ErrMalformedPacket
	}
	return reason, nil
}

// ParseAck parses a PUBACK, PUBREC, PUBREL or PUBCOMP (MQTT 5, 3.4 to 3.7; 3.1.1, 3.4 to
// 3.7). failed means that its reason code is 0x80 or more.
func ParseAck(t Type, body []byte, v5 bool) (id uint16, failed bool, err error) {
	id, rest, err := CutPacketID(body)
	switch {
	case err != nil:
		return 0, false, err
	case len(rest) == 0:
		return id, false, nil
	case !v5:
		return 0, false, packets.ErrMalformedPacket
	}
	reason, err := checkReason(t, rest)
	return id, reason >= packets.ErrUnspecifiedError.Code, err
}

// CheckDisconnect returns the reason code of a DISCONNECT (MQTT 5, 3.14; 3.1.1, 3.14), or
// an error if the packet is invalid.
func CheckDisconnect(body []byte, v5 bool) (reason byte, err error) {
	if !v5 && len(body) > 0 {
		return 0, packets.ErrMalformedPacket
	}
	return checkReason(Disconnect, body)
}

// CheckSubscribe returns an error if the variable header or the payload of a
// SUBSCRIBE is invalid (MQTT 5, 3.8.2 and 3.8.3; 3.1.1, 3.8.3).
func CheckSubscribe(body []byte, v5 bool) error {
	reserved := byte(0xFC)
	if v5 {
		reserved = 0xC0
	}
	return checkFilters(Subscribe, body, v5, func(filter string, rest []byte) ([]byte, error) {
		if len(rest) == 0 {
			return nil, packets.ErrMalformedQos
		}
		options := rest[0]
		switch {
		case options&reserved != 0, options&3 == 3:
			return nil, packets.ErrMalformedQos // [MQTT-3.8.3-5], [MQTT-3-8.3-4]
		case options>>4&3 == 3:
			return nil, packets.ErrProtocolViolation // Retain Handling (3.8.3.1)
		case options&4 != 0 && strings.HasPrefix(filter, sharePrefix):
			return nil, packets.ErrProtocolViolationInvalidSharedNoLocal // [MQTT-3.8.3-4]
		}
		return rest[1:], nil
	})
}

// CheckUnsubscribe does the same for an UNSUBSCRIBE (MQTT 5, 3.10.2 and 3.10.3; 3.1.1,
// 3.10.3).
func CheckUnsubscribe(body []byte, v5 bool) error {
	return checkFilters(Unsubscribe, body, v5, func(_ string, rest []byte) ([]byte, error) { return rest, nil })
}

// checkFilters checks the filters of a packet. after reads what follows each filter, and
// returns the rest.
func checkFilters(t Type, body []byte, v5 bool, after func(filter string, rest []byte) ([]byte, error)) error {
	_, body, err := CutPacketID(body)
	if err == nil && v5 {
		_, body, err = CutProperties(t, body)
	}
	if err != nil {
		return err
	}
	if len(body) == 0 {
		return packets.ErrProtocolViolationNoFilters // [MQTT-3.8.3-2], [MQTT-3.10.3-2]
	}
	for len(body) > 0 {
		filter, rest, ok := cutBytes(body)
		if !ok || !ValidFilter(string(filter)) {
			return packets.ErrMalformedTopic
		}
		if body, err = after(string(filter), rest); err != nil {
			return err
		}
	}
	return nil
}
