package broker_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker"
	"mynah/internal/mqttest"
)

// refusal is the payload of user/<me>/error.
type refusal struct {
	Code, Topic, Mid, Reason string
}

func mustRefusal(tb testing.TB, c *mqttest.Client) refusal {
	tb.Helper()
	m := c.Receive()
	if !strings.HasSuffix(m.TopicName, "/error") {
		tb.Fatalf("got %s %s, want a refusal", m.TopicName, m.Payload)
	}
	var r refusal
	if err := json.Unmarshal(m.Payload, &r); err != nil {
		tb.Fatal(err)
	}
	return r
}

// A refused publish leaves the connection alone, gets a reason code with MQTT 5 and an
// explanation on the error topic otherwise, and nobody receives it.
func TestRefusedPublish(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	watch := mqttest.Dial(t, addr, mqttest.Options{
		ClientID: "w",
		Token:    mustToken(t, authhook.TokenClaims{Subject: "watch", Role: authhook.RoleAdmin}),
	})
	watch.Subscribe(1, "user/#", "group/#", "presence/x")
	old, fresh := user(t, "bob", "old", "room"), v5(user(t, "bob", "new", "room"))
	three, five := mqttest.Dial(t, addr, old), mqttest.Dial(t, addr, fresh)
	three.Subscribe(0, "user/bob/error")

	for _, tc := range []struct{ topic, payload, code string }{
		{"group/other", "hi", "not_member"},
		{"group/other", `{"mid":"m1","body":"hi"}`, "not_member"},
		{"elsewhere/x", `{"mid":"m1","body":"hi"}`, "not_allowed"},
		{"presence/x", "hi", "not_allowed"},
		{"$SYS/broker/x", "hi", "not_allowed"},
		{"user/alice/error", "hi", "not_allowed"},
		{"elsewhere/x", "hi", "not_allowed"},
		{"plant" + strings.Repeat("/x", 128), "hi", "bad_topic"},
		{"user/alice", `{"type":"notice.fake","body":1}`, "bad_message"},
		{"user/alice", `{"body":"\u0000"}`, "bad_message"},
		{"user/alice", `{"body":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, "bad_message"},
		{"user/alice", strings.Repeat("x", 66000), "too_large"},
	} {
		for _, qos := range []byte{0, 1, 2} {
			if qos == 0 {
				three.Publish(tc.topic, 0, tc.payload)
			} else {
				three.PublishAcked(tc.topic, qos, tc.payload)
				ack := five.PublishAcked(tc.topic, qos, tc.payload)
				if ack.ReasonCode < 0x80 || !strings.HasPrefix(ack.Properties.ReasonString, tc.code) {
					t.Errorf("%s qos %d: reason %#x %q, want %s", tc.topic, qos, ack.ReasonCode, ack.Properties.ReasonString, tc.code)
				}
			}
			mid := "" // which message it is about, if the message has one
			if strings.HasPrefix(tc.payload, `{"mid":"m1"`) {
				mid = "m1"
			}
			if r := mustRefusal(t, three); r.Code != tc.code || r.Topic != tc.topic || r.Reason == "" || r.Mid != mid {
				t.Errorf("%s qos %d: explained as %+v, want %s and mid %q", tc.topic, qos, r, tc.code, mid)
			}
		}
	}
	three.ExpectNothing()
	five.ExpectNothing()
	watch.ExpectNothing()
}

// Subscriptions that are not allowed get 0x80 or 0x87 and the connection stays.
func TestRefusedSubscribe(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	filters := []string{
		"#", "user/+", "user/#", "group/#", "user/bob", "$share/x/user/bob", "$share/x/user/alice", "group/other",
		"$SYS/#", "presence/#", "user/bob/error", "user/+/signal", "plain/topic",
	}
	for _, version := range []byte{4, 5} {
		o := user(t, "alice", "phone", "room")
		o.Version = version
		alice := mqttest.Dial(t, b.MQTTAddr().String(), o)
		want := byte(0x80)
		if version == 5 {
			want = 0x87
		}
		for i, code := range alice.Subscribe(1, filters...) {
			if code != want {
				t.Errorf("version %d: %s got %#x, want %#x", version, filters[i], code, want)
			}
		}
		if codes := alice.Subscribe(2, "user/alice", "group/room", "group/+", "user/alice/signal"); string(codes) != "\x02\x02\x02\x02" {
			t.Errorf("own topics got %v", codes)
		}
		alice.ExpectNothing()
		alice.Disconnect()
	}
}

// What the broker says about a message replaces what the client says.
func TestEnvelopeIsTheBrokers(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	before := time.Now().UnixMilli()
	bob.PublishAcked("user/alice", 1, `{"seq":1,"prev":2,"\u0066rom":"admin","to":"x","ts":3,"body":"b","x":1}`)
	m := alice.ReceiveAcked()
	if m.From != "bob" || m.To != "user/alice" || m.Seq < 1e15 || m.Prev != 0 || m.TS < before || m.Type != "text" || m.Body != "b" {
		t.Errorf("got %s", m.Payload)
	}
	var all map[string]any
	if err := json.Unmarshal(m.Payload, &all); err != nil || all["x"] != 1.0 {
		t.Errorf("the client's own field is %v (%v)", all["x"], err)
	}
}

// A direct message reaches the sender's other sessions too, with that topic's own prev;
// a note to oneself arrives once.
func TestOwnDevices(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	phone, laptop := mqttest.Dial(t, addr, user(t, "alice", "phone")), mqttest.Dial(t, addr, user(t, "alice", "laptop"))
	phone.Subscribe(1, "user/alice")
	laptop.Subscribe(1, "user/alice")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	bob.Subscribe(1, "user/bob")
	phone.PublishAcked("user/bob", 1, "one")
	bob.PublishAcked("user/alice", 1, "two")
	phone.PublishAcked("user/alice", 1, "three")
	for _, c := range []*mqttest.Client{phone, laptop} {
		var prev uint64
		for _, want := range []string{"one", "two", "three"} {
			m := c.ReceiveAcked()
			if m.Body != want || m.TopicName != "user/alice" || m.Prev != prev {
				t.Fatalf("got %s on %s, want %s with prev %d", m.Payload, m.TopicName, want, prev)
			}
			prev = m.Seq
		}
		c.ExpectNothing()
	}
	for _, want := range []string{"one", "two"} {
		if m := bob.ReceiveAcked(); m.Body != want || m.TopicName != "user/bob" {
			t.Fatalf("got %s on %s, want %s", m.Payload, m.TopicName, want)
		}
	}
	bob.ExpectNothing()
}

// MQTT 5 subscription options hold for chat topics.
func TestSubscriptionOptions(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, v5(user(t, "alice", "phone", "room")))
	alice.SubscribeWith(packets.Properties{SubscriptionIdentifier: []int{7}}, packets.Subscription{Filter: "group/room", Qos: 1, NoLocal: true})
	alice.SubscribeWith(packets.Properties{SubscriptionIdentifier: []int{300}}, packets.Subscription{Filter: "user/alice", Qos: 2})
	bob := mqttest.Dial(t, addr, v5(user(t, "bob", "phone", "room")))
	alice.PublishAcked("group/room", 1, "mine")
	bob.PublishAcked("group/room", 2, "yours")
	m := alice.ReceiveAcked()
	if m.Body != "yours" || m.FixedHeader.Qos != 1 || len(m.Properties.SubscriptionIdentifier) != 1 || m.Properties.SubscriptionIdentifier[0] != 7 {
		t.Errorf("got %s qos %d ids %v", m.Payload, m.FixedHeader.Qos, m.Properties.SubscriptionIdentifier)
	}
	bob.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 999, TopicName: "user/alice", Payload: []byte("soon over"),
		Properties: packets.Properties{MessageExpiryInterval: 100},
	})
	bob.Expect(packets.Puback)
	m = alice.ReceiveAcked()
	if left := m.Properties.MessageExpiryInterval; left < 90 || left > 100 || m.Properties.SubscriptionIdentifier[0] != 300 {
		t.Errorf("expires in %d s, ids %v", left, m.Properties.SubscriptionIdentifier)
	}
	alice.ExpectNothing()
}

// A message that has expired is not delivered any more, one that is too large for the
// client is explained, and both leave the session in order.
func TestNotForThisClient(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := v5(keep(user(t, "alice", "phone")))
	o.Properties.MaximumPacketSize = 600
	alice := mqttest.Dial(t, addr, o)
	alice.Subscribe(1, "user/alice", "user/alice/error")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	bob.PublishAcked("user/alice", 1, strings.Repeat("x", 1000))
	if r := mustRefusal(t, alice); r.Code != "too_large" {
		t.Errorf("got %+v", r)
	}
	alice.Disconnect()
	soon := time.Now().Add(300 * time.Millisecond)
	bob.PublishAcked("user/alice", 1, fmt.Sprintf(`{"body":"gone","expires":%d}`, soon.UnixMilli()))
	bob.PublishAcked("user/alice", 1, "stays")
	time.Sleep(time.Until(soon))
	alice = mqttest.Dial(t, addr, o)
	if m := alice.ReceiveAcked(); m.Body != "stays" {
		t.Errorf("got %s", m.Payload)
	}
	alice.ExpectNothing()
}

// A will on a chat topic goes the way of every message; after a DISCONNECT it does not.
func TestWill(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")
	will := &packets.Packet{FixedHeader: packets.FixedHeader{Qos: 1, Retain: true}, TopicName: "user/alice", Payload: []byte("bob is gone")}
	for _, version := range []byte{4, 5} {
		o := user(t, "bob", "phone")
		o.Will, o.Version = will, version
		bob := mqttest.Dial(t, addr, o)
		bob.CloseAbruptly()
		if m := alice.ReceiveAcked(); m.Body != "bob is gone" || m.From != "bob" || m.Seq == 0 || m.FixedHeader.Retain {
			t.Errorf("version %d: got %s", version, m.Payload)
		}
		bob = mqttest.Dial(t, addr, o)
		bob.Disconnect()
	}
	// Delayed: not if the session is back in time. One that is due later, and is not back,
	// tells when that time is over.
	o := v5(keep(user(t, "bob", "phone")))
	o.Will, o.WillDelay = will, 4 // seconds: it is back in time also on a busy machine
	mqttest.Dial(t, addr, o).CloseAbruptly()
	o.Will = nil
	back := mqttest.Dial(t, addr, o)
	o = v5(keep(user(t, "carol", "phone")))
	o.Will, o.WillDelay = will, 5
	mqttest.Dial(t, addr, o).CloseAbruptly()
	forbidden := user(t, "bob", "other")
	forbidden.Will = &packets.Packet{TopicName: "group/secret", Payload: []byte("x")}
	if c, err := mqttest.TryDial(t, addr, forbidden); err == nil && c.Connack.ReasonCode == 0 {
		t.Error("a will on a forbidden topic was accepted")
	}
	back.ExpectNothing()
	if m := alice.ReceiveAcked(); m.From != "carol" {
		t.Errorf("got the will of %s, want carol's alone", m.From)
	}
}

// Signals reach who is there, are rendered with the sender's name, and are not kept.
func TestSignals(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := keep(user(t, "alice", "phone", "room"))
	alice := mqttest.Dial(t, addr, o)
	alice.Subscribe(1, "user/alice/signal", "group/+/signal", "user/alice")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone", "room"))
	bob.PublishAcked("user/alice/signal", 1, `{"type":"x-typing"}`)
	bob.PublishAcked("group/room/signal", 2, `{"type":"x-typing"}`)
	for _, topic := range []string{"user/alice/signal", "group/room/signal"} {
		m := alice.Receive()
		if m.TopicName != topic || m.From != "bob" || m.Type != "x-typing" || m.FixedHeader.Qos != 0 || m.Seq != 0 {
			t.Errorf("got %s on %s", m.Payload, m.TopicName)
		}
	}
	admin := mqttest.Dial(t, addr, mqttest.Options{
		ClientID: "a",
		Token:    mustToken(t, authhook.TokenClaims{Subject: "admin", Role: authhook.RoleAdmin}),
	})
	if codes := admin.Subscribe(0, "user/+/signal", "user/#"); string(codes) != "\x00\x00" {
		t.Fatalf("SUBACK %v", codes)
	}
	alice.CloseAbruptly()
	bob.PublishAcked("user/alice/signal", 1, `{"type":"x-typing"}`)
	if m := admin.Receive(); m.TopicName != "user/alice/signal" || m.From != "bob" {
		t.Errorf("got %s on %s", m.Payload, m.TopicName)
	}
	admin.ExpectNothing() // user/# stands for what is logged
	bob.PublishAcked("user/alice", 1, "kept")
	alice = mqttest.Dial(t, addr, o)
	if m := alice.ReceiveAcked(); m.Body != "kept" {
		t.Errorf("got %s", m.Payload)
	}
	alice.ExpectNothing()
}

// presence/<id> tells, retained, who is online, and does not flap with a reconnect.
func TestPresence(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, func(c *broker.Config) { c.PresenceSettle = 4 * time.Second }) // time enough to come back
	watch := mqttest.Dial(t, b.MQTTAddr().String(), user(t, "alice", "phone"))
	type state struct {
		User     string
		Online   bool
		LastSeen int64 `json:"last_seen"`
	}
	next := func(c *mqttest.Client) (s state) {
		t.Helper()
		m := c.Next()
		if m.FixedHeader.Type != packets.Publish || m.TopicName != "presence/bob" {
			t.Fatalf("got type %d on %s", m.FixedHeader.Type, m.TopicName)
		}
		if err := json.Unmarshal(m.Payload, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	watch.Subscribe(0, "presence/bob")
	bob := mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "phone"))
	if s := next(watch); !s.Online || s.User != "bob" {
		t.Errorf("got %+v", s)
	}
	bob.CloseAbruptly()
	bob = mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "laptop"))
	bob.ExpectNothing()
	watch.ExpectNothing()
	bob.Disconnect()
	if s := next(watch); s.Online || s.LastSeen == 0 {
		t.Errorf("got %+v", s)
	}
	b = restart(t, b, dir)
	watch = mqttest.Dial(t, b.MQTTAddr().String(), user(t, "alice", "phone"))
	watch.Subscribe(0, "presence/bob")
	if s := next(watch); s.Online || s.LastSeen == 0 {
		t.Errorf("after a restart: %+v", s)
	}
}

// Topics that the token's acl allows are plain MQTT: retained (also over a restart),
// wildcards, shared subscriptions, and their packet ids do not meet the chat's.
func TestPlainTopics(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	token := mustToken(t, authhook.TokenClaims{Subject: "dev", Role: authhook.RoleDevice, Pub: []string{"plant/#"}, Sub: []string{"plant/#"}})
	o := mqttest.Options{ClientID: "d", Token: token, KeepSession: true}
	dev := mqttest.Dial(t, b.MQTTAddr().String(), o)
	if codes := dev.Subscribe(1, "plant/+/temp", "user/dev", "other/#"); string(codes) != "\x01\x01\x80" {
		t.Fatalf("SUBACK %v", codes)
	}
	dev.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1, Retain: true}, PacketID: dev.ID(), TopicName: "plant/1/temp", Payload: []byte("21"),
	})
	dev.Expect(packets.Puback)
	bob := mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "phone"))
	bob.PublishAcked("user/dev", 1, "one")
	open := map[uint16]string{}
	for range 2 {
		m := dev.ReceivePlain()
		if other, taken := open[m.PacketID]; taken {
			t.Errorf("packet id %d is used for %s and %s at once", m.PacketID, other, m.TopicName)
		}
		open[m.PacketID] = m.TopicName
	}
	for id := range open {
		dev.Ack(packets.Puback, id)
	}
	dev.ExpectNothing()
	dev.Disconnect()
	b = restart(t, b, dir)
	dev = mqttest.Dial(t, b.MQTTAddr().String(), o)
	if !dev.Connack.SessionPresent {
		t.Error("no session after the restart")
	}
	dev.Publish("plant/2/temp", 0, "22")
	if m := dev.Next(); m.TopicName != "plant/2/temp" || string(m.Payload) != "22" {
		t.Errorf("got %s on %q: the plain subscription did not survive", m.Payload, m.TopicName)
	}
	dev.Subscribe(1, "plant/#")
	if m := dev.Next(); m.TopicName != "plant/1/temp" || !m.FixedHeader.Retain {
		t.Errorf("got %s on %q, want the retained message", m.Payload, m.TopicName)
	}
}

// A fresh token on $mynah/token keeps the connection beyond the old one's expiry and
// brings its groups; another subject's token does not.
func TestRenewal(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := v5(mqttest.Options{ClientID: "phone", Token: mustToken(t, authhook.TokenClaims{Subject: "alice", TTL: 5 * time.Second})})
	stays, ends := mqttest.Dial(t, addr, o), (*mqttest.Client)(nil)
	o.ClientID = "laptop"
	ends = mqttest.Dial(t, addr, o)
	stays.Subscribe(1, "group/+")
	if ack := stays.PublishAcked("$mynah/token", 1, mustToken(t, authhook.TokenClaims{Subject: "bob"})); ack.ReasonCode != packets.ErrNotAuthorized.Code {
		t.Errorf("another subject's token got %#x", ack.ReasonCode)
	}
	if ack := stays.PublishAcked("$mynah/token", 1, mustToken(t, authhook.TokenClaims{Subject: "alice", Groups: []string{"room"}})); ack.ReasonCode != 0 {
		t.Fatalf("a fresh token got %#x %s", ack.ReasonCode, ack.Properties.ReasonString)
	}
	if end := ends.ExpectEnd(); end.ReasonCode != packets.ErrNotAuthorized.Code || end.Properties.ReasonString == "" {
		t.Errorf("the expired connection ended with %#x %q", end.ReasonCode, end.Properties.ReasonString)
	}
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone", "room"))
	bob.PublishAcked("group/room", 1, "hello")
	if m := stays.ReceiveAcked(); m.Body != "hello" {
		t.Errorf("got %s", m.Payload)
	}
}

// A stalled subscriber holds up nobody, costs bounded memory, and gets everything in
// order when it reads on.
func TestStalledSubscriber(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), func(c *broker.Config) {
		c.Outbox = 32 << 10
		c.Log.NoSync = true // or a slow disk would keep it stalled until the write deadline
	})
	addr := b.MQTTAddr().String()
	stalled := mqttest.Dial(t, addr, user(t, "alice", "stalled", "room"))
	stalled.Subscribe(1, "group/room")
	zero := mqttest.Dial(t, addr, user(t, "alice", "zero", "room"))
	zero.Subscribe(0, "group/room")
	other := mqttest.Dial(t, addr, user(t, "carol", "phone", "room"))
	other.Subscribe(1, "group/room")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone", "room"))
	const n = 3000
	text := strings.Repeat("x", 2000)
	var prev uint64
	for i := range n {
		bob.PublishAcked("group/room", 1, fmt.Sprintf(`{"body":%q,"n":%d}`, text, i))
		m := other.ReceiveAcked()
		if m.Prev != prev {
			t.Fatalf("message %d has prev %d, want %d", i, m.Prev, prev)
		}
		prev = m.Seq
	}
	for _, c := range []*mqttest.Client{stalled, zero} {
		prev = 0
		for i := range n {
			m := c.ReceiveAcked()
			if m.Prev != prev {
				t.Fatalf("stalled: message %d has prev %d, want %d", i, m.Prev, prev)
			}
			prev = m.Seq
		}
		c.ExpectNothing()
	}
}
