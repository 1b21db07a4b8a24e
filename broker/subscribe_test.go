package broker_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"strings"
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
		r.ExpectNothing()
	}
}

// A SUBACK of MQTT 5 says why filters were refused: of one its reason, of several which is
// the first, and how many more are. Nobody was told more than 0x87.
func TestSubackSaysWhy(t *testing.T) {
	t.Parallel()
	var log logged
	b := mustStart(t, t.TempDir(), func(cfg *broker.Config) { cfg.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	addr := b.MQTTAddr().String()
	suback := func(c *mqttest.Client, filters ...string) packets.Packet {
		t.Helper()
		subs := make(packets.Subscriptions, len(filters))
		for i, f := range filters {
			subs[i] = packets.Subscription{Filter: f, Qos: 1}
		}
		c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: c.ID(), Filters: subs})
		return c.Expect(packets.Suback)
	}
	const (
		bobs   = "not_allowed: that is for bob alone; yours is user/alice"
		member = "not_member: you are not in this group; join it or ask to be invited"
	)
	c := mqttest.Dial(t, addr, v5(user(t, "alice", "phone")))
	for _, tc := range []struct {
		filters []string
		codes   string
		reason  string
	}{
		{[]string{"user/alice"}, "\x01", ""},
		{[]string{"user/bob"}, "\x87", bobs},
		{[]string{"group/42"}, "\x87", member},
		{[]string{"users/alice"}, "\x87", `not_allowed: "users/alice" is no topic of the chat; did you mean user/alice?`},
		{[]string{"user/al ice"}, "\x87", `not_allowed: "al ice" is no id, because of ' ' (U+0020); ids are 1 to 64 characters of A-Z a-z 0-9 _ . ~ -`},
		{[]string{"user/alice", "group/+"}, "\x01\x01", ""},
		{[]string{"user/alice", "user/bob"}, "\x01\x87", `"user/bob": ` + bobs},
		{[]string{"user/alice", "group/42", "user/bob", "user/carol", "group/+"}, "\x01\x87\x87\x87\x01", `"group/42": ` + member + " (and 2 more of 5 filters)"},
		{[]string{strings.Repeat("x/", 200) + "x"}, "\x8f", "bad_topic: a topic has no more than 128 levels; join some of them"},
	} {
		ack := suback(c, tc.filters...)
		if string(ack.ReasonCodes) != tc.codes || ack.Properties.ReasonString != tc.reason {
			t.Errorf("%.60q: codes %x, reason\n%q, want %x\n%q", tc.filters, ack.ReasonCodes, ack.Properties.ReasonString, tc.codes, tc.reason)
		}
	}
	if line := log.String(); strings.Count(line, "a subscription was refused") != 1 ||
		!strings.Contains(line, `filter="\"user/bob\"" reason="`+bobs+`" refused=1`) || !strings.Contains(line, "subject=alice client_id=phone") {
		t.Errorf("logged %q, want one line with the first that was refused", line)
	}

	// Beyond what a session may have, the remedy is another one.
	many := make([]string, 1001)
	for i := range many {
		many[i] = fmt.Sprint("presence/u", i)
	}
	full := mqttest.Dial(t, addr, v5(user(t, "alice", "full")))
	if ack := suback(full, many...); !strings.HasPrefix(ack.Properties.ReasonString, `"presence/u1000": a session has at most 1000 subscriptions`) {
		t.Errorf("one too many: reason %q", ack.Properties.ReasonString)
	}

	// Who asked for no problem information, takes no larger packet, or speaks 3.1.1 has the codes.
	silent := v5(user(t, "alice", "silent"))
	silent.Properties.RequestProblemInfoFlag = true
	if ack := suback(mqttest.Dial(t, addr, silent), "user/bob"); string(ack.ReasonCodes) != "\x87" || ack.Properties.ReasonString != "" {
		t.Errorf("without problem information: %x %q", ack.ReasonCodes, ack.Properties.ReasonString)
	}
	if ack := suback(mqttest.Dial(t, addr, user(t, "alice", "old")), "user/bob"); string(ack.ReasonCodes) != "\x80" || ack.Properties.ReasonString != "" {
		t.Errorf("3.1.1: %x %q", ack.ReasonCodes, ack.Properties.ReasonString)
	}
	for _, n := range []int{1, 100, 200} { // filters: the length of the packet and that of the property take a byte more each
		filters := make([]string, n)
		for i := range filters {
			filters[i] = "user/bob"
		}
		ack := suback(c, filters...)
		encoded := func(n int) int { return len(binary.AppendUvarint(nil, uint64(n))) } //nolint:gosec // a length
		property := 3 + len(ack.Properties.ReasonString)
		remaining := 2 + encoded(property) + property + n
		size := uint32(1 + encoded(remaining) + remaining) //nolint:gosec // some hundred
		for most, tells := range map[uint32]bool{size - 1: false, size: true} {
			o := v5(user(t, "alice", fmt.Sprint("narrow", most)))
			o.Properties.MaximumPacketSize = most
			ack := suback(mqttest.Dial(t, addr, o), filters...)
			if len(ack.ReasonCodes) != n || (ack.Properties.ReasonString != "") != tells {
				t.Errorf("%d filters, Maximum Packet Size %d of %d: %d codes, reason %q", n, most, size, len(ack.ReasonCodes), ack.Properties.ReasonString)
			}
		}
	}
}

// An operator may allow a session more subscriptions, and then longer filters together.
func TestMaxSubscriptions(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), func(cfg *broker.Config) { cfg.MaxSubscriptions = 1200; cfg.PresenceSettle = -1 })
	c := mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "alice", "phone")))
	subs := make([]packets.Subscription, 1300)
	for i := range subs { // 62 bytes, which are more than 64 KiB from the 1,058th on
		subs[i] = packets.Subscription{Filter: fmt.Sprintf("presence/%053d", i), RetainHandling: 2}
	}
	want := slices.Concat(make([]byte, 1200), bytes.Repeat([]byte{0x97}, 100))
	if codes := c.SubscribeWith(packets.Properties{}, subs...); !bytes.Equal(codes, want) {
		t.Errorf("got codes %x", codes)
	}
}
