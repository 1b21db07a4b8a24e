package broker_test

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker"
	"mynah/internal/mqttest"
	"mynah/internal/stopwatch"
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
	alice.ExpectNothing()
}

// retransmit publishes a message to alice, sends it again on another connection, and then
// what is new: all but the first too far above the rate to wait. With 3.1.1 that ends the
// connection, since an acknowledgement would say that it is stored.
func retransmit(t *testing.T, addr string, o mqttest.Options, qos byte, payload string, alice *mqttest.Client) {
	t.Helper()
	name := fmt.Sprintf("version %d, QoS %d, %s", o.Version, qos, payload)
	send := func(c *mqttest.Client, id uint16, dup bool, payload string) {
		t.Helper()
		c.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos, Dup: dup},
			PacketID:    id, TopicName: "user/alice", Payload: []byte(payload),
		})
	}
	publish := func(c *mqttest.Client, id uint16, dup bool, payload string) packets.Packet {
		t.Helper()
		send(c, id, dup, payload)
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
	first.CloseAbruptly() // as if the acknowledgement had been lost
	got := alice.ReceiveAcked()

	c := mqttest.Dial(t, addr, o)
	c.Subscribe(0, "user/"+got.From+"/error")
	for range 2 {
		again := publish(c, 9, true, payload)
		if again.ReasonCode != 0 || fmt.Sprint(again.Properties.User) != fmt.Sprint(stored.Properties.User) {
			t.Errorf("%s, again: reason %#x, %v, want %v", name, again.ReasonCode, again.Properties.User, stored.Properties.User)
		}
		c.ExpectNothing() // nothing on the error topic either
	}
	release(c, stored)
	for i, fresh := range []string{"another", `{"body":"another","mid":"m2"}`} {
		for _, dup := range []bool{true, false} {
			if o.Version != 5 {
				send(c, uint16(20+i), dup, fresh) //nolint:gosec // small
				mustEndUnacknowledged(t, c)
				c = mqttest.Dial(t, addr, o)
				continue
			}
			ack := publish(c, uint16(20+i), dup, fresh) //nolint:gosec // small
			release(c, ack)
			if ack.ReasonCode != packets.ErrQuotaExceeded.Code || !strings.HasPrefix(ack.Properties.ReasonString, "rate_limited") {
				t.Errorf("%s, DUP %v of something new: reason %#x %q", name, dup, ack.ReasonCode, ack.Properties.ReasonString)
			}
		}
	}
	c.Disconnect()
}

// mustEndUnacknowledged wants the connection to end without an acknowledgement.
func mustEndUnacknowledged(t *testing.T, c *mqttest.Client) {
	t.Helper()
	for {
		pk, err := c.Read(mqttest.Timeout)
		var netErr net.Error
		switch {
		case errors.As(err, &netErr) && netErr.Timeout():
			t.Fatal("the connection did not end")
		case err != nil:
			return
		case pk.FixedHeader.Type == packets.Puback || pk.FixedHeader.Type == packets.Pubrec:
			t.Fatalf("what was refused is acknowledged: packet id %d", pk.PacketID)
		}
	}
}

// Who publishes above the rate is slowed down: everything is stored, and only then
// acknowledged. A 3.1.1 publisher was told that all was well with what was thrown away.
func TestPublisherAboveTheRateIsSlowedDown(t *testing.T) {
	t.Parallel()
	const messages, rate = 6, 20
	b := mustStart(t, t.TempDir(), func(cfg *broker.Config) {
		cfg.Limiter = authhook.NewLimiter(authhook.LimiterConfig{PublishRate: rate, PublishBurst: 1})
	})
	addr := b.MQTTAddr().String()
	for _, version := range []byte{4, 5} {
		for _, qos := range []byte{1, 2} {
			name := fmt.Sprintf("%d-%d", version, qos)
			reader := mqttest.Dial(t, addr, user(t, "reader-"+name, "phone"))
			reader.Subscribe(1, "user/reader-"+name)
			o := user(t, "writer-"+name, "phone")
			o.Version = version
			writer := mqttest.Dial(t, addr, o)
			began := time.Now()
			for i := range messages {
				writer.Publish("user/reader-"+name, qos, strconv.Itoa(i))
			}
			for i := range messages {
				ackType := packets.Puback
				if qos == 2 {
					ackType = packets.Pubrec
				}
				if ack := writer.Expect(ackType); ack.ReasonCode != 0 {
					t.Errorf("version %d, QoS %d, message %d: reason %#x", version, qos, i, ack.ReasonCode)
				}
			}
			if took := time.Since(began); took < (messages-1)*time.Second/rate {
				t.Errorf("version %d, QoS %d: %d messages took %v, at %d a second", version, qos, messages, took, rate)
			}
			for i := range messages {
				if m := reader.ReceiveAcked(); m.Body != strconv.Itoa(i) {
					t.Errorf("version %d, QoS %d: got %v, want %d", version, qos, m.Body, i)
				}
			}
		}
	}
}

// Who is slowed down holds up nobody else, neither another subject nor the broker's stop
// (which mustStart has half a minute for; the rest would take two), and does not lose its
// connection by its keep-alive while nothing is read from it.
func TestSlowedDownAlone(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), func(cfg *broker.Config) {
		cfg.Limiter = authhook.NewLimiter(authhook.LimiterConfig{PublishRate: 0.21, PublishBurst: 1})
	})
	addr := b.MQTTAddr().String()
	alice := user(t, "alice", "phone")
	alice.Keepalive = 2 // the connection may be silent for 3 s, and a publish waits for almost 5
	fast := mqttest.Dial(t, addr, alice)
	fast.Publish("user/carol", 1, "first")
	fast.Publish("user/carol", 1, "second")
	// The beginning of a packet is read together with what is before it.
	fast.SendBytes([]byte{packets.Pingreq << 4})

	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	watch := stopwatch.New(t)
	bob.PublishAcked("user/carol", 1, "by the way")
	if took := watch.Elapsed(); took > 3*time.Second {
		t.Errorf("somebody else waited for %v", took)
	}
	fast.Expect(packets.Puback)
	fast.Expect(packets.Puback)
	fast.SendBytes([]byte{0})
	fast.Expect(packets.Pingresp)
	for range 30 {
		fast.Publish("user/carol", 1, "flood")
	}
}
