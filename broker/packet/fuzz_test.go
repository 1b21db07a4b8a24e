package packet_test

import (
	"bytes"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/broker/packet"
)

// FuzzChecked checks that nothing panics and that Mochi's codec decodes every packet that
// has passed. Without the checks the codec panics on a truncated SUBSCRIBE.
func FuzzChecked(f *testing.F) {
	for _, seed := range []struct {
		head byte
		body string
	}{
		{0x10, "\x00\x04MQTT\x05\xc6\x00\x3c\x05\x11\x00\x00\x00\x05\x00\x02id\x05\x18\x00\x00\x00\x01\x00\x01t\x00\x01p\x00\x01u\x00\x01p"},
		{0x10, "\x00\x04MQTT\x04\xc2\x00\x3c\x00\x02id\x00\x01u\x00\x01p"},
		{0x30, "\x09\x01\x01\x26\x00\x01k\x00\x01v"},
		{0x40, "\x00\x01\x10\x04\x1f\x00\x01x"},
		{0x62, "\x00\x01\x92\x00"},
		{0x82, "\x00\x01\x03\x0b\x80\x01\x00\x03a/b\x2e\x00\x01#\x01"},
		{0x82, "\x00\x01\x00\x00\x01a"}, // MOCHI.md: a truncated SUBSCRIBE
		{0xA2, "\x00\x01\x00\x00\x03a/b"},
		{0xE0, "\x04\x05\x11\x00\x00\x00\x01"},
	} {
		f.Add(seed.head, []byte(seed.body), true)
		f.Add(seed.head, []byte(seed.body), false)
	}
	f.Fuzz(func(t *testing.T, head byte, body []byte, v5 bool) {
		if packet.CheckFirstByte(head) != nil {
			return
		}
		pk := packets.Packet{ProtocolVersion: 4}
		if v5 {
			pk.ProtocolVersion = 5
		}
		pk.FixedHeader = packets.FixedHeader{Type: head >> 4, Remaining: len(body), Qos: head >> 1 & 3}
		var checked, decoded error
		switch kind := packet.Type(head >> 4); kind {
		case packet.Connect:
			if checked = packet.CheckConnect(body); checked == nil {
				if level := body[packet.ProtocolLevelOffset(body)]; level < 3 || level > 5 {
					return // the doors let no other through
				}
				decoded = pk.ConnectDecode(bytes.Clone(body))
			}
		case packet.Publish:
			props, rest, err := packet.CutProperties(packet.Publish, body)
			if checked = err; err == nil {
				front := body[:len(body)-len(rest)]
				if !bytes.HasSuffix(front, props) || !bytes.HasSuffix(body, rest) {
					t.Fatalf("%x and %x of %x", props, rest, body)
				}
				_, decoded = pk.Properties.Decode(packets.Publish, bytes.NewBuffer(bytes.Clone(front)))
			}
		case packet.Puback, packet.Pubrec, packet.Pubrel, packet.Pubcomp:
			var id uint16
			if id, _, checked = packet.ParseAck(kind, body, v5); checked == nil {
				if decoded = pk.PubackDecode(bytes.Clone(body)); pk.PacketID != id {
					t.Fatalf("packet id %d, want %d", id, pk.PacketID)
				}
			}
		case packet.Subscribe:
			if checked = packet.CheckSubscribe(body, v5); checked == nil {
				decoded = pk.SubscribeDecode(bytes.Clone(body))
			}
		case packet.Unsubscribe:
			if checked = packet.CheckUnsubscribe(body, v5); checked == nil {
				decoded = pk.UnsubscribeDecode(bytes.Clone(body))
			}
		case packet.Disconnect:
			if _, checked = packet.CheckDisconnect(body, v5); checked == nil && len(body) > 1 {
				decoded = pk.DisconnectDecode(bytes.Clone(body))
			}
		}
		if decoded != nil {
			t.Errorf("%#x %x has passed, and the codec says: %v", head, body, decoded)
		}
		if checked != nil && code(checked) != 0x81 && code(checked) != 0x82 {
			t.Errorf("%#x %x: %v has no reason code", head, body, checked)
		}
	})
}
