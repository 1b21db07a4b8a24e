package broker_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker"
	"mynah/internal/mqttest"
)

// A retransmission of a message that is stored is acknowledged as that, however fast its
// sender has been. It was refused with rate_limited, which says that it is not stored, and
// a client that published it again as new had it there twice. What is new is refused as
// before, whether or not it claims to be a retransmission.
func TestRetransmissionIsKnownAboveTheRate(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), func(cfg *broker.Config) {
		cfg.Limiter = authhook.NewLimiter(authhook.LimiterConfig{PublishRate: 1e-9, PublishBurst: 1})
	})
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")

	for _, version := range []byte{4, 5} {
		for _, qos := range []byte{1, 2} {
			for _, payload := range []string{"plain", `{"body":"named","mid":"m1"}`} {
				sender := fmt.Sprintf("bob-%d-%d-%d", version, qos, len(payload))
				o := keep(user(t, sender, "phone"))
				if version == 5 {
					o = v5(o)
				}
				retransmit(t, addr, o, qos, payload, alice)
			}
		}
	}
	alice.Quiet()
}

// retransmit publishes a message to alice, sends it again on another connection, and then
// what is new: all but the first above the rate.
func retransmit(t *testing.T, addr string, o mqttest.Options, qos byte, payload string, alice *mqttest.Client) {
	t.Helper()
	name := fmt.Sprintf("version %d, QoS %d, %s", o.Version, qos, payload)
	publish := func(c *mqttest.Client, id uint16, dup bool, payload string) packets.Packet {
		t.Helper()
		c.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos, Dup: dup},
			PacketID:    id, TopicName: "user/alice", Payload: []byte(payload),
		})
		if qos == 1 {
			return c.Expect(packets.Puback)
		}
		return c.Expect(packets.Pubrec)
	}
	release := func(c *mqttest.Client, ack packets.Packet) { // after which the packet id is free
		t.Helper()
		if qos == 2 && ack.ReasonCode < 0x80 {
			c.Ack(packets.Pubrel, ack.PacketID)
			c.Expect(packets.Pubcomp)
		}
	}
	first := mqttest.Dial(t, addr, o)
	stored := publish(first, 9, false, payload)
	first.Cut() // as if the acknowledgement had been lost
	got := alice.ReceiveAcked()

	c := mqttest.Dial(t, addr, o)
	c.Subscribe(0, "user/"+got.From+"/error")
	for range 2 {
		again := publish(c, 9, true, payload)
		if again.ReasonCode != 0 || fmt.Sprint(again.Properties.User) != fmt.Sprint(stored.Properties.User) {
			t.Errorf("%s, again: reason %#x, %v, want %v", name, again.ReasonCode, again.Properties.User, stored.Properties.User)
		}
		c.Quiet() // nothing on the error topic either
	}
	release(c, stored)
	for i, fresh := range []string{"another", `{"body":"another","mid":"m2"}`} {
		for _, dup := range []bool{true, false} {
			ack := publish(c, uint16(20+i), dup, fresh) //nolint:gosec // small
			release(c, ack)
			if o.Version != 5 {
				if r := mustRefusal(t, c); r.Code != "rate_limited" {
					t.Errorf("%s, DUP %v of something new: explained as %+v", name, dup, r)
				}
			} else if ack.ReasonCode != packets.ErrQuotaExceeded.Code || !strings.HasPrefix(ack.Properties.ReasonString, "rate_limited") {
				t.Errorf("%s, DUP %v of something new: reason %#x %q", name, dup, ack.ReasonCode, ack.Properties.ReasonString)
			}
		}
	}
	c.Disconnect()
}
