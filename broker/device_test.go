package broker_test

import (
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/internal/mqttest"
)

// publishWith publishes "on" to alice under a packet id and waits for the first
// acknowledgement.
func publishWith(c *mqttest.Client, qos byte, id uint16, dup bool) packets.Packet {
	c.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos, Dup: dup}, TopicName: "user/alice", Payload: []byte("on"), PacketID: id,
	})
	if qos == 2 {
		return c.Expect(packets.Pubrec)
	}
	return c.Expect(packets.Puback)
}

func release(c *mqttest.Client, id uint16) {
	c.Ack(packets.Pubrel, id)
	c.Expect(packets.Pubcomp)
}

// A device that says the same thing twice under one packet id, of which the second arrives
// with DUP because the first try did not, has said it twice, if it is known to be done
// with the first, as after PUBREL. To take the second for the first would be to acknowledge
// what is not stored. As long as it may be the first again, it is.
func TestDupIsToldFromRetransmission(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		qos       byte
		clean     bool
		first     func(*mqttest.Client) // after the first acknowledgement
		delivered int
	}{
		"QoS 2, released":               {2, false, func(c *mqttest.Client) { release(c, 1); c.CloseAbruptly() }, 2},
		"QoS 2, released, clean start":  {2, true, func(c *mqttest.Client) { release(c, 1); c.CloseAbruptly() }, 2},
		"QoS 2, open":                   {2, false, func(c *mqttest.Client) { c.CloseAbruptly() }, 1},
		"QoS 2, open, clean start":      {2, true, func(c *mqttest.Client) { c.CloseAbruptly() }, 1},
		"QoS 2, open, after DISCONNECT": {2, false, func(c *mqttest.Client) { c.Disconnect() }, 1},
		"QoS 1, broken off":             {1, false, func(c *mqttest.Client) { c.CloseAbruptly() }, 1},
		"QoS 1, clean start":            {1, true, func(c *mqttest.Client) { c.CloseAbruptly() }, 1},
		"QoS 1, after DISCONNECT":       {1, false, func(c *mqttest.Client) { c.Disconnect() }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := mustStart(t, t.TempDir(), nil)
			addr := b.MQTTAddr().String()
			alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
			alice.Subscribe(1, "user/alice")
			opts := v5(user(t, "bob", "sensor"))
			opts.KeepSession = !tc.clean
			bob := mqttest.Dial(t, addr, opts)
			publishWith(bob, tc.qos, 1, false)
			tc.first(bob)
			bob.ExpectEnd()
			bob = mqttest.Dial(t, addr, opts)
			publishWith(bob, tc.qos, 1, true)
			if tc.qos == 2 {
				release(bob, 1)
			}
			for range tc.delivered {
				alice.ReceiveAcked()
			}
			alice.ExpectNothing()
		})
	}
}

// A new session has no exchanges of the one before (MQTT 5, 4.1): what a device publishes
// first is new, whatever it had left open under the same packet id when it lost its memory.
func TestNewSessionHasNoExchanges(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")
	for range 3 {
		bob := mqttest.Dial(t, addr, user(t, "bob", "sensor"))
		publishWith(bob, 2, 1, false)
		alice.ReceiveAcked()
		publishWith(bob, 2, 1, false) // in the same session it is the same
		bob.CloseAbruptly()
	}
	alice.ExpectNothing()
}

// A PUBREC that refuses ends the exchange (MQTT 5, 4.3.3): what comes under the packet id
// next is another message, also if the log has one like it.
func TestRefusedExchangeEnds(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")
	bob := mqttest.Dial(t, addr, v5(user(t, "bob", "sensor")))
	publish := func(id uint16, payload string) packets.Packet {
		bob.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 2}, TopicName: "user/alice", Payload: []byte(payload), PacketID: id,
		})
		return bob.Expect(packets.Pubrec)
	}
	publish(1, "on")
	release(bob, 1)
	publish(2, `{"mid":"m","body":1}`)
	release(bob, 2)
	if pk := publish(1, `{"mid":"m","body":2}`); pk.ReasonCode < 0x80 {
		t.Fatalf("PUBREC with reason %#x for a mid that was used, want a refusal", pk.ReasonCode)
	}
	publish(1, "on")
	release(bob, 1)
	for _, want := range []any{"on", float64(1), "on"} {
		if m := alice.ReceiveAcked(); m.Body != want {
			t.Errorf("got %v, want %v", m.Body, want)
		}
	}
	alice.ExpectNothing()
}

// A message with a mid that is sent again may be written anew: white space, and what is the
// broker's to write, is not its content.
func TestMidOfAMessageWrittenAnew(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	c := mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "alice", "phone")))
	first := c.PublishAcked("user/bob", 1, `{"mid":"m","body":{"a":1}}`).Properties.User
	for body, want := range map[string]byte{
		`{ "mid" : "m", "body" : {"a" : 1} }`: 0, `{"type":"text","mid":"m","ts":5,"body":{"a":1}}`: 0,
		`{"mid":"m","body":{"a":2}}`: packets.ErrImplementationSpecificError.Code, `{"mid":"m","type":"x-a","body":{"a":1}}`: packets.ErrImplementationSpecificError.Code,
	} {
		ack := c.PublishAcked("user/bob", 1, body)
		if ack.ReasonCode != want || want == 0 && (len(ack.Properties.User) != 1 || ack.Properties.User[0] != first[0]) {
			t.Errorf("%s: %#x %v, want %#x and %v", body, ack.ReasonCode, ack.Properties.User, want, first)
		}
	}
}
