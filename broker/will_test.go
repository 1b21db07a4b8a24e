package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/broker"
	"mynah/internal/mqttest"
)

// withWill has a client leave a message for alice when it goes without a word.
func withWill(o mqttest.Options, body string, delay uint32) mqttest.Options {
	o.Will = &packets.Packet{FixedHeader: packets.FixedHeader{Qos: 1}, TopicName: "user/alice", Payload: []byte(body)}
	o.WillDelay = delay
	return o
}

// A will that waits for its delay is sent at once when the session ends before, as by a
// clean start (MQTT 5, 3.1.2.5), and not again afterwards.
func TestDelayedWillComesWithTheEndOfTheSession(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")
	for _, cut := range []bool{true, false} { // false: the connection is taken over
		bob := mqttest.Dial(t, addr, withWill(v5(keep(user(t, "bob", "sensor"))), "gone", 3600))
		if cut {
			bob.CloseAbruptly()
			alice.ExpectNothing()
		}
		mqttest.Dial(t, addr, v5(user(t, "bob", "sensor"))).Disconnect()
		if m := alice.ReceiveAcked(); m.Body != "gone" {
			t.Errorf("got %v, want the will", m.Body)
		}
	}
	alice.ExpectNothing()
}

// The will of a session that had to give way to another of its subject is sent, and does not
// wait in memory for its delay: anybody could leave one for each session that it makes.
func TestDelayedWillComesWhenItsSessionGivesWay(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")
	bob := v5(keep(user(t, "bob", "")))
	const most = 200 // sessions of a subject
	for i := range most {
		bob.ClientID = fmt.Sprint("device", i)
		mqttest.Dial(t, addr, withWill(bob, "gone", 3600)).CloseAbruptly()
	}
	bob.ClientID = "one more"
	mqttest.Dial(t, addr, bob)
	bob.ClientID = "and another"
	mqttest.Dial(t, addr, bob)
	if m := alice.ReceiveAcked(); m.Body != "gone" {
		t.Errorf("got %v, want the will of a session that gave way", m.Body)
	}
}

// The end of the broker is the end of its connections: wills are sent, so that whoever is
// back first knows that the others are not. A will with a delay waits for its client, which
// can be back in time, unless it was away already.
func TestWillsComeWithTheEndOfTheBroker(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, func(c *broker.Config) { c.PresenceSettle = -1 })
	addr := b.MQTTAddr().String()
	opts := keep(user(t, "alice", "phone"))
	alice := mqttest.Dial(t, addr, opts)
	alice.Subscribe(1, "user/alice")
	alice.Disconnect()
	mqttest.Dial(t, addr, withWill(v5(keep(user(t, "bob", "now"))), "connected", 0))
	mqttest.Dial(t, addr, withWill(v5(keep(user(t, "bob", "later"))), "connected, with a delay", 3600))
	mqttest.Dial(t, addr, withWill(v5(keep(user(t, "bob", "done"))), "disconnected", 0)).Disconnect()
	watch := mqttest.Dial(t, addr, user(t, "watch", "phone"))
	watch.Subscribe(0, "presence/carol")
	away := mqttest.Dial(t, addr, withWill(v5(keep(user(t, "carol", "away"))), "away", 3600))
	watch.ReceivePlain() // online
	away.CloseAbruptly()
	watch.ReceivePlain() // offline
	b = restart(t, b, dir)
	alice = mqttest.Dial(t, b.MQTTAddr().String(), opts)
	got := []any{alice.ReceiveAcked().Body, alice.ReceiveAcked().Body}
	alice.ExpectNothing()
	if !slices.Contains(got, any("connected")) || !slices.Contains(got, any("away")) {
		t.Errorf("got %v, want the wills of the one that was connected and of the one that was away", got)
	}
}

// A will that would be refused when it fires is refused while its client can be told.
func TestWillIsCheckedAtConnect(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), func(c *broker.Config) { c.Limits.Payload = 1000 })
	addr := b.MQTTAddr().String()
	for _, tc := range []struct {
		topic, body string
		want        byte // MQTT 5
	}{
		{"user/alice", `{"type":"notice.forged"}`, packets.ErrPayloadFormatInvalid.Code},
		{"user/alice", `{"type":7,"body":"x"}`, packets.ErrPayloadFormatInvalid.Code},
		{"user/alice/signal", `{"type":"notice.forged"}`, packets.ErrPayloadFormatInvalid.Code},
		{"user/alice", strings.Repeat("x", 1001), packets.ErrQuotaExceeded.Code},
		{"user/alice", "gone", 0},
		{"user/alice/signal", "gone", 0},
		{"plant/bob", `{"type":"notice.forged"}`, 0}, // no message, but plain MQTT
		{"plant/bob", "", 0},
	} {
		for _, version := range []byte{4, 5} {
			o := plain(t, "bob")
			o.Version, o.Will = version, &packets.Packet{TopicName: tc.topic, Payload: []byte(tc.body)}
			want := tc.want
			if want != 0 && version == 4 {
				want = packets.Err3NotAuthorized.Code // the nearest that 3.1.1 has (3.2.2.3)
			}
			c, err := mqttest.TryDial(t, addr, o)
			if c == nil {
				t.Fatalf("%s %.30q: %v", tc.topic, tc.body, err)
			}
			if got := c.Connack.ReasonCode; got != want {
				t.Errorf("%s %.30q, version %d: CONNACK %#x, want %#x", tc.topic, tc.body, version, got, want)
			}
			if reason := c.Connack.Properties.ReasonString; version == 5 && want != 0 && !strings.Contains(reason, "will") {
				t.Errorf("%s %.30q: the reason string %q does not say that it is the will", tc.topic, tc.body, reason)
			}
		}
	}
}

// A DISCONNECT that breaks the rules is none, and the will is sent; so it is if the client
// asks for it (MQTT 5, 3.14.2.1 and 3.14.2.2.2).
func TestWillAfterDisconnect(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")
	for _, tc := range []struct {
		name       string
		disconnect packets.Packet
		will       bool
		answer     byte
	}{
		{"a session that is to outlive its connection after all", packets.Packet{Properties: packets.Properties{
			SessionExpiryInterval: 60, SessionExpiryIntervalFlag: true,
		}}, true, packets.ErrProtocolViolationZeroNonZeroExpiry.Code},
		{"with will", packets.Packet{ReasonCode: packets.CodeDisconnectWillMessage.Code}, true, 0},
		{"normal", packets.Packet{}, false, 0},
	} {
		bob := mqttest.Dial(t, addr, withWill(v5(user(t, "bob", "phone")), tc.name, 0))
		tc.disconnect.FixedHeader.Type = packets.Disconnect
		bob.Send(tc.disconnect)
		if got := bob.ExpectEnd().ReasonCode; got != tc.answer {
			t.Errorf("%s: answered %#x, want %#x", tc.name, got, tc.answer)
		}
		if tc.will {
			if m := alice.ReceiveAcked(); m.Body != tc.name {
				t.Errorf("got %v, want the will of %s", m.Body, tc.name)
			}
		}
	}
	alice.ExpectNothing()
}
