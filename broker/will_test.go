package broker_test

import (
	"fmt"
	"slices"
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
			bob.Cut()
			alice.Quiet()
		}
		mqttest.Dial(t, addr, v5(user(t, "bob", "sensor"))).Disconnect()
		if m := alice.ReceiveAcked(); m.Body != "gone" {
			t.Errorf("got %v, want the will", m.Body)
		}
	}
	alice.Quiet()
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
		mqttest.Dial(t, addr, withWill(bob, "gone", 3600)).Cut()
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
	away.Cut()
	watch.ReceivePlain() // offline
	b = restart(t, b, dir)
	alice = mqttest.Dial(t, b.MQTTAddr().String(), opts)
	got := []any{alice.ReceiveAcked().Body, alice.ReceiveAcked().Body}
	alice.Quiet()
	if !slices.Contains(got, any("connected")) || !slices.Contains(got, any("away")) {
		t.Errorf("got %v, want the wills of the one that was connected and of the one that was away", got)
	}
}
