package broker_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/broker"
	"mynah/internal/mqttest"
)

// countingDirectory counts how often it is asked who may see whom.
type countingDirectory struct {
	directory
	asked atomic.Int64
}

func (d *countingDirectory) MaySee(context.Context, string, string) error {
	d.asked.Add(1)
	return nil
}

// Of a SUBSCRIBE with more filters than a session may have, what is beyond is refused without
// a look at it, and nobody is asked twice about the same. A packet has room for 30,000.
func TestSubscribeToVeryMuch(t *testing.T) {
	t.Parallel()
	d := &countingDirectory{}
	b := mustStart(t, t.TempDir(), func(cfg *broker.Config) { cfg.Directory = d; cfg.PresenceSettle = -1 })
	c := mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "alice", "phone")))
	subs := make([]packets.Subscription, 3000)
	for i := range subs { // each twice, and without what is retained, about which it is asked again
		subs[i] = packets.Subscription{Filter: fmt.Sprintf("presence/u%d", i/2), Qos: 1, RetainHandling: 2}
	}
	want := slices.Concat(bytes.Repeat([]byte{1}, 2000), bytes.Repeat([]byte{0x97}, 1000))
	if codes := c.SubscribeWith(packets.Properties{}, subs...); !bytes.Equal(codes, want) {
		t.Errorf("got codes %x", codes)
	}
	if n := d.asked.Load(); n != 1000 {
		t.Errorf("the directory was asked %d times, want 1,000", n)
	}
	c.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: c.ID(),
		Filters: packets.Subscriptions{{Filter: "presence/u0"}, {Filter: "presence/u0"}, {Filter: "presence/none"}, {Filter: "presence/u1"}},
	})
	if codes := c.Expect(packets.Unsuback).ReasonCodes; string(codes) != "\x00\x11\x11\x00" {
		t.Errorf("UNSUBSCRIBE got %x, want that each filter is there once", codes)
	}
}

// A filter that a SUBSCRIBE has several times is one subscription, as it is there last; each
// place gets its code, and what is retained is sent once. It was sent 22,000 times.
func TestSubscribeToTheSameTwice(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	c := mqttest.Dial(t, b.MQTTAddr().String(), v5(wide(t, "dev")))
	for i := range 3 {
		sends(c, fmt.Sprint("p/", i), "retained", true, packets.Properties{})
	}
	for i, tc := range []struct {
		handling []byte // Retain Handling, one after the other
		sent     bool
	}{
		{[]byte{0, 0, 0}, true}, {[]byte{1, 1}, true}, {[]byte{1, 2}, true}, {[]byte{2, 1}, false}, {[]byte{2, 0}, true}, {[]byte{0, 2}, true},
	} {
		r := mqttest.Dial(t, b.MQTTAddr().String(), v5(wide(t, fmt.Sprint("reader", i))))
		subs := []packets.Subscription{{Filter: "other", Qos: 1}}
		want := []byte{1}
		for at, h := range tc.handling {
			subs = append(subs, packets.Subscription{Filter: "p/#", Qos: byte(at % 2), RetainHandling: h})
			want = append(want, byte(at%2))
		}
		if codes := r.SubscribeWith(packets.Properties{}, subs...); !bytes.Equal(codes, want) {
			t.Errorf("Retain Handling %v: codes %x, want %x", tc.handling, codes, want)
		}
		if tc.sent {
			for range 3 {
				if m := mustGet(t, r, "retained"); m.FixedHeader.Qos != want[len(want)-1] {
					t.Errorf("Retain Handling %v: QoS %d, want that of the last, %d", tc.handling, m.FixedHeader.Qos, want[len(want)-1])
				}
			}
		}
		r.Quiet()
	}
}
