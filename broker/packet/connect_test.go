package packet_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/broker/packet"
)

// connectWith puts a CONNECT of MQTT 5 together.
func connectWith(flags byte, props string, payload ...string) string {
	b := "\x00\x04MQTT\x05" + string([]byte{flags, 0, 60, byte(len(props))}) + props
	for _, p := range payload {
		b += string([]byte{byte(len(p) >> 8), byte(len(p))}) + p
	}
	return b
}

// A CONNECT that is truncated anywhere or invalid is refused.
func TestCheckConnect(t *testing.T) {
	t.Parallel()
	const session, receive, size = "\x11\x00\x00\x00\x05", "\x21\x00\x0a", "\x27\x00\x00\x10\x00"
	will := func(props string) string {
		return connectWith(0x06, "", "id") + string([]byte{byte(len(props))}) + props + "\x00\x01t\x00\x00"
	}
	for _, tc := range []struct {
		name, body string
		want       error
	}{
		{"bare", connectWith(2, "", ""), nil},
		{"all", connectWith(0xC2, session+receive+size+"\x22\x00\x05\x19\x01\x17\x00\x26\x00\x01k\x00\x01v\x26\x00\x01k\x00\x01v", "id", "user", "\xff\x00"), nil},
		{"with will", will("\x18\x00\x00\x00\x01\x01\x01\x02\x00\x00\x00\x09\x03\x00\x01j\x08\x00\x03a/b\x09\x00\x01\xff"), nil},
		{"with authentication", connectWith(2, "\x15\x00\x05SCRAM\x16\x00\x01x", ""), nil}, // refused elsewhere
		{"3.1.1", "\x00\x04MQTT\x04\xc2\x00\x3c\x00\x02id\x00\x04user\x00\x01p", nil},
		{"3.1.1 without a user name", "\x00\x04MQTT\x04\x42\x00\x3c\x00\x02id\x00\x01p", nil},
		{"3.1", "\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x02id", nil},
		{"trailing byte", connectWith(2, "", "id") + "x", packets.ErrMalformedPacket},
		{"trailing byte in 3.1.1", "\x00\x04MQTT\x04\x02\x00\x3c\x00\x02idx", packets.ErrMalformedPacket},
		{"reserved flag", connectWith(3, "", "id"), packets.ErrProtocolViolationReservedBit},
		{"will QoS without will", connectWith(0x0A, "", "id"), packets.ErrProtocolViolation},
		{"will retain without will", connectWith(0x22, "", "id"), packets.ErrProtocolViolation},
		{"will QoS 3", connectWith(0x1E, "", "id"), packets.ErrProtocolViolation},
		{"client id that is not UTF-8", connectWith(2, "", "\xff"), packets.ErrMalformedPacket},
		{"user name with U+0000", connectWith(0x82, "", "id", "a\x00"), packets.ErrMalformedUsername},
		{"Receive Maximum 0", connectWith(2, "\x21\x00\x00", "id"), packets.ErrProtocolViolation},
		{"Maximum Packet Size 0", connectWith(2, "\x27\x00\x00\x00\x00", "id"), packets.ErrProtocolViolation},
		{"Session Expiry twice", connectWith(2, session+session, "id"), packets.ErrProtocolViolation},
		{"Request Problem Information 2", connectWith(2, "\x17\x02", "id"), packets.ErrProtocolViolation},
		{"Authentication Data alone", connectWith(2, "\x16\x00\x01x", "id"), packets.ErrProtocolViolation},
		{"property of a PUBLISH", connectWith(2, "\x01\x01", "id"), packets.ErrMalformedBadProperty},
		{"unknown property", connectWith(2, "\x7f\x01", "id"), packets.ErrMalformedBadProperty},
		{"user property that is not UTF-8", connectWith(2, "\x26\x00\x01k\x00\x01\xff", "id"), packets.ErrMalformedProperties},
		{"will's payload format 2", will("\x01\x02"), packets.ErrProtocolViolation},
		{"will's response topic with a wildcard", will("\x08\x00\x03a/#"), packets.ErrProtocolViolationSurplusWildcard},
		{"will's delay twice", will("\x18\x00\x00\x00\x01\x18\x00\x00\x00\x01"), packets.ErrProtocolViolation},
		{"will's topic with U+0000", strings.Replace(will(""), "\x00\x01t", "\x00\x01\x00", 1), packets.ErrMalformedWillTopic},
	} {
		err := packet.CheckConnect([]byte(tc.body))
		if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
		if tc.want != nil {
			continue
		}
		for n := range len(tc.body) {
			if packet.CheckConnect([]byte(tc.body[:n])) == nil {
				t.Errorf("%s: the first %d of %d bytes are taken for sound", tc.name, n, len(tc.body))
			}
		}
	}
}
