package broker_test

import (
	"fmt"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/internal/mqttest"
)

// CONNACK tells how large a packet may be (MQTT 5, 3.2.2.3.6): a client that has not been
// told would be cut off for one that is larger.
func TestConnackTellsTheLimits(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	c := mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "alice", "phone")))
	if most := c.Connack.Properties.MaximumPacketSize; most < 64<<10 || most > 1<<20 {
		t.Errorf("Maximum Packet Size is %d", most)
	}
}

// What breaks the protocol ends the connection, and an MQTT 5 client is told why.
func TestProtocolErrorsAreTold(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	for name, tc := range map[string]struct {
		keepalive uint16
		send      string
		want      byte
	}{
		"silence":              {1, "", 0x8D},
		"AUTH":                 {0, "\xf0\x00", 0x82},
		"cut SUBSCRIBE":        {0, "\x82\x06\x00\x01\x00\x00\x01a", 0x81},
		"five bytes of length": {0, "\x30\xff\xff\xff\xff\xff", 0x81},
		"No Local, shared":     {0, "\x82\x10\x00\x01\x00\x00\x0a$share/g/t\x05", 0x82},
		"topic alias":          {0, "\x30\x07\x00\x00\x03\x23\x00\x01x", 0x94},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := v5(user(t, "alice", name))
			o.Keepalive = tc.keepalive
			c := mqttest.Dial(t, b.MQTTAddr().String(), o)
			c.SendBytes([]byte(tc.send))
			if pk := c.Ended(); pk.FixedHeader.Type != packets.Disconnect || pk.ReasonCode != tc.want {
				t.Errorf("the last packet is of type %d with reason %#x, want DISCONNECT with %#x", pk.FixedHeader.Type, pk.ReasonCode, tc.want)
			}
		})
	}
}

// A session takes a thousand subscriptions and refuses what is more (0x97), until it has
// given some up.
func TestSubscriptionsAreLimited(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	c := mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "alice", "phone")))
	filters := make([]string, 500)
	for part := range 2 {
		for i := range filters {
			filters[i] = fmt.Sprintf("presence/u%d", part*len(filters)+i)
		}
		for i, code := range c.Subscribe(1, filters...) {
			if code != 1 {
				t.Fatalf("subscription %d: %#x", part*len(filters)+i, code)
			}
		}
	}
	if codes := c.Subscribe(1, "presence/more", "presence/u7"); string(codes) != "\x97\x01" {
		t.Errorf("got %#x, want one more refused and one that is there replaced", codes)
	}
	c.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: c.ID(), Filters: packets.Subscriptions{{Filter: "presence/u7"}},
	})
	c.Expect(packets.Unsuback)
	if codes := c.Subscribe(1, "presence/more"); string(codes) != "\x01" {
		t.Errorf("got %#x when there is room again", codes)
	}
}
