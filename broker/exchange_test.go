package broker_test

import (
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/internal/mqttest"
)

// A QoS 2 publish that was refused with MQTT 5 ends its exchange: the next message under
// its packet id is a new one, though it says what an earlier one said.
func TestRefusalFreesThePacketID(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")
	bob := mqttest.Dial(t, addr, v5(user(t, "bob", "phone")))
	publish := func(topic string) byte {
		t.Helper()
		bob.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 2}, PacketID: 9, TopicName: topic, Payload: []byte("ok"),
		})
		rec := bob.Expect(packets.Pubrec)
		if rec.ReasonCode == 0 {
			bob.Ack(packets.Pubrel, 9)
			bob.Expect(packets.Pubcomp)
		}
		return rec.ReasonCode
	}
	for range 2 {
		if code := publish("user/alice"); code != 0 {
			t.Fatalf("PUBREC %#x", code)
		}
		alice.ReceiveAcked()
		if code := publish("group/none"); code < 0x80 {
			t.Fatalf("PUBREC %#x", code)
		}
	}
	alice.ExpectNothing()
}

// A delayed will is void once the session has had another connection, even if that is over
// too when the time comes (MQTT 5, 3.1.3.2.2).
func TestDelayedWillIsVoidAfterReconnect(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")
	will := func(body string, delay uint32) mqttest.Options {
		o := v5(keep(user(t, "bob", body)))
		o.Will = &packets.Packet{FixedHeader: packets.FixedHeader{Qos: 1}, TopicName: "user/alice", Payload: []byte(body)}
		o.WillDelay = delay
		return o
	}
	const delay = 4 // seconds, in which the session is back also on a busy machine
	o := will("void", delay)
	mqttest.Dial(t, addr, o).CloseAbruptly()
	o.Will = nil
	mqttest.Dial(t, addr, o).CloseAbruptly()
	// One that is to come, later than the other would have, tells when that time is over.
	time.Sleep(100 * time.Millisecond)
	mqttest.Dial(t, addr, will("due", delay)).CloseAbruptly()
	if m := alice.ReceiveAcked(); m.Body != "due" {
		t.Errorf("got %v", m.Body)
	}
}
