package broker_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
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
		"PUBREL of 0":          {0, "\x62\x02\x00\x00", 0x82},
		"format 2":             {0, "\x30\x07\x00\x01x\x02\x01\x02x", 0x82},
		"expiry twice":         {0, "\x30\x0e\x00\x01x\x0a\x02\x00\x00\x00\x01\x02\x00\x00\x00\x01", 0x82},
		"response to many":     {0, "\x30\x0a\x00\x01x\x06\x08\x00\x03a/+", 0x82},
		"UNSUBSCRIBE's expiry": {0, "\xa2\x0b\x00\x01\x05\x11\x00\x00\x00\x01\x00\x01x", 0x81},
		"DISCONNECT's format":  {0, "\xe0\x04\x00\x02\x01\x01", 0x81},
		"topic alias":          {0, "\x30\x07\x00\x00\x03\x23\x00\x01x", 0x94},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := v5(user(t, "alice", name))
			o.Keepalive = tc.keepalive
			c := mqttest.Dial(t, b.MQTTAddr().String(), o)
			c.SendBytes([]byte(tc.send))
			if pk := c.ExpectEnd(); pk.FixedHeader.Type != packets.Disconnect || pk.ReasonCode != tc.want {
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

// An acknowledgement is no larger than its client takes: it tells less, then [MQTT-3.4.2-2],
// [MQTT-3.4.2-3].
func TestAcknowledgementsFitTheClient(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	var refusal uint32 // the size of one with everything
	for _, most := range []uint32{0, 24, 25, 29, 30, 100} {
		o := v5(user(t, "alice", fmt.Sprint("phone", most)))
		o.Properties.MaximumPacketSize = most
		c := mqttest.Dial(t, b.MQTTAddr().String(), o)
		ack := c.PublishAcked("user/bob", 1, "hello")
		// 2 of fixed header, 2 of packet id, reason code, length, 1 + 5 + 18 of seq
		if tells := len(ack.Properties.User) > 0; tells != (most == 0 || most >= 30) {
			t.Errorf("Maximum Packet Size %d: seq is told: %t", most, tells)
		}
		if ack = c.PublishAcked("group/secret", 2, "hello"); ack.ReasonCode != 0x87 {
			t.Errorf("Maximum Packet Size %d: a refusal got %#x", most, ack.ReasonCode)
		}
		if tells := ack.Properties.ReasonString != ""; tells != (most == 0 || most == 100) {
			t.Errorf("Maximum Packet Size %d: the reason is told: %t", most, tells)
		}
		// 6 as above, 1 + 6 + 12 of code
		if tells := userProperty(ack, "code") == "not_member"; tells != (most == 0 || most >= 25) {
			t.Errorf("Maximum Packet Size %d: the code is told: %t", most, tells)
		}
		if most == 0 {
			refusal = uint32(6 + 1 + 6 + 12 + 3 + len(ack.Properties.ReasonString)) //nolint:gosec // below 128
		}
	}
	// Of both, what people read goes first: it begins with the code.
	for most, both := range map[uint32]bool{refusal - 1: false, refusal: true} {
		o := v5(user(t, "alice", fmt.Sprint("narrow", most)))
		o.Properties.MaximumPacketSize = most
		ack := mqttest.Dial(t, b.MQTTAddr().String(), o).PublishAcked("group/secret", 1, "hello")
		if ack.Properties.ReasonString == "" || both != (userProperty(ack, "code") != "") {
			t.Errorf("Maximum Packet Size %d of %d: reason %q, user properties %v", most, refusal, ack.Properties.ReasonString, ack.Properties.User)
		}
	}
}

// userProperty returns the user property of that name, "" if there is none.
func userProperty(pk packets.Packet, name string) string {
	for _, u := range pk.Properties.User {
		if u.Key == name {
			return u.Val
		}
	}
	return ""
}

// A refusal has its code word as the user property code, in PUBACK and PUBREC, for programs
// that would otherwise take the reason string apart; who asked for no problem information has
// neither (MQTT 5, 3.1.2.11.7).
func TestRefusalsHaveTheirCode(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	silent := v5(user(t, "alice", "silent"))
	silent.Properties.RequestProblemInfoFlag = true
	c, s := mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "alice", "phone"))), mqttest.Dial(t, b.MQTTAddr().String(), silent)
	for _, tc := range []struct{ topic, payload, code string }{
		{"group/secret", "hello", "not_member"},
		{"presence/bob", "hello", "not_allowed"},
		{"plant/x", "hello", "not_allowed"},
		{"user/bob", "", "bad_message"},
		{"user/bob", strings.Repeat("x", 70_000), "too_large"},
		{"$mynah/token", "none", "not_allowed"},
	} {
		for qos := byte(1); qos <= 2; qos++ {
			ack := c.PublishAcked(tc.topic, qos, tc.payload)
			if got := userProperty(ack, "code"); got != tc.code || !strings.HasPrefix(ack.Properties.ReasonString, tc.code+": ") {
				t.Errorf("%s, QoS %d: code %q, reason %q, want %s", tc.topic, qos, got, ack.Properties.ReasonString, tc.code)
			}
			if ack := s.PublishAcked(tc.topic, qos, tc.payload); ack.ReasonCode < 0x80 || ack.Properties.ReasonString != "" || len(ack.Properties.User) > 0 {
				t.Errorf("%s, QoS %d, without problem information: %#x %q %v", tc.topic, qos, ack.ReasonCode, ack.Properties.ReasonString, ack.Properties.User)
			}
		}
	}
}

// Who has more publishes open than CONNACK allows is cut off (MQTT 5, 3.3.4), be they of the
// chat or not, begun on this connection or before; the broker would have to remember them.
func TestReceiveMaximumOfTheBroker(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	o := v5(keep(plain(t, "alice")))
	c := mqttest.Dial(t, b.MQTTAddr().String(), o)
	most := int(c.Connack.Properties.ReceiveMaximum)
	if most < 100 {
		t.Fatalf("Receive Maximum is %d", most)
	}
	publish := func(id int) {
		c.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 2}, PacketID: uint16(id), //nolint:gosec // below 2,000
			TopicName: []string{"user/bob", "plant/x"}[id%2], Payload: fmt.Append(nil, id),
		})
	}
	for id := 1; id <= most; id++ {
		if id == most/3 {
			c.Disconnect()
			c = mqttest.Dial(t, b.MQTTAddr().String(), o)
		}
		publish(id)
		if pk := c.Expect(packets.Pubrec); pk.ReasonCode >= 0x80 {
			t.Fatalf("publish %d of %d got %#x", id, most, pk.ReasonCode)
		}
	}
	c.Ack(packets.Pubrel, 1)
	c.Expect(packets.Pubcomp)
	publish(most + 1) // in place of the first
	c.Expect(packets.Pubrec)
	publish(most + 2)
	if pk := c.ExpectEnd(); pk.ReasonCode != packets.ErrReceiveMaximum.Code {
		t.Errorf("one too many got %#x, want %#x", pk.ReasonCode, packets.ErrReceiveMaximum.Code)
	}
}

// A client that never pauses is heard of all the same, although each piece that comes of it
// ends in the middle of a packet.
func TestKeepAliveOfABusyClient(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	o := v5(user(t, "alice", "phone"))
	o.Keepalive = 3 // so it ends after a silence of 4.5 s
	c := mqttest.Dial(t, b.MQTTAddr().String(), o)
	packet := "\x30\x17\x00\x0fuser/bob/signal\x00hello"
	head, rest := packet[:5], packet[5:]
	c.SendBytes([]byte(head))
	for began := time.Now(); time.Since(began) < 6*time.Second; time.Sleep(50 * time.Millisecond) {
		c.SendBytes([]byte(rest + head))
	}
	c.SendBytes([]byte(rest + "\xc0\x00"))
	if pk := c.Expect(packets.Pingresp); pk.FixedHeader.Type != packets.Pingresp {
		t.Errorf("got packet type %d", pk.FixedHeader.Type)
	}
}

// A topic outside the chat, and a filter, has 128 levels at most, and a session's filters
// 64 KiB: the tree takes time by the square of the one, and the disk gets all of the others
// again with each change.
func TestLevelsAndFiltersAreLimited(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	deep := func(levels int) string { return "plant" + strings.Repeat("/x", levels-1) }
	o := v5(plain(t, "alice"))
	c := mqttest.Dial(t, b.MQTTAddr().String(), o)
	if codes := c.Subscribe(1, deep(128), deep(129), deep(30_000)); string(codes) != "\x01\x8f\x8f" {
		t.Errorf("SUBACK %#x", codes)
	}
	for levels, want := range map[int]byte{128: 0, 129: packets.ErrTopicNameInvalid.Code, 30_000: packets.ErrTopicNameInvalid.Code} {
		if ack := c.PublishAcked(deep(levels), 1, "x"); ack.ReasonCode != want {
			t.Errorf("%d levels: PUBACK %#x, want %#x", levels, ack.ReasonCode, want)
		}
		o.ClientID, o.Will = "other", &packets.Packet{TopicName: deep(levels), Payload: []byte("gone")}
		if got := mqttest.Dial(t, b.MQTTAddr().String(), o).Connack.ReasonCode; got != want {
			t.Errorf("will with %d levels: CONNACK %#x, want %#x", levels, got, want)
		}
	}
	long := func(i int) string { return fmt.Sprint("plant/", i, strings.Repeat("x", 30_000)) }
	if codes := c.Subscribe(1, long(1), long(2), long(3), "plant/short", long(1)); string(codes) != "\x01\x01\x97\x01\x01" {
		t.Errorf("SUBACK %#x", codes)
	}
}

// A person's session takes twenty shared subscriptions: whoever publishes serves each.
func TestSharedSubscriptionsAreLimited(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	filters := make([]string, 22)
	for i := range filters {
		filters[i] = fmt.Sprintf("$share/g%d/plant/#", i)
	}
	filters[20] = filters[3] // replaced
	c := mqttest.Dial(t, b.MQTTAddr().String(), v5(plain(t, "alice")))
	codes := c.Subscribe(1, filters...)
	if want := strings.Repeat("\x01", 21) + "\x97"; string(codes) != want {
		t.Errorf("SUBACK %#x", codes)
	}
	if codes = c.Subscribe(1, "plant/#"); codes[0] != 1 {
		t.Errorf("one that is not shared: %#x", codes)
	}
	o := v5(mqttest.Options{ClientID: "x", Token: mustToken(t, authhook.TokenClaims{Subject: "bot", Role: authhook.RoleService, Sub: []string{"plant/#"}})})
	if codes = mqttest.Dial(t, b.MQTTAddr().String(), o).Subscribe(1, filters...); string(codes) != strings.Repeat("\x01", 22) {
		t.Errorf("a service's SUBACK %#x", codes)
	}
}
