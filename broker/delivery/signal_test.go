package delivery_test

import (
	"strings"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/session"
)

// Signals go to who is there, once for each subscription, at QoS 0, with the identifiers
// of MQTT 5, and not to whom they are too large for.
func TestSignals(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	const topic = "group/a/signal"
	payload := strings.Repeat("x", 100)                   // longer than what settled sends
	size := uint32(2 + 2 + len(topic) + 1 + len(payload)) // as an MQTT 5 packet
	in := func(subject string, v5 bool, most uint32, id int, filter string) *peer {
		return r.online(delivery.Attachment{
			Key: key(subject), V5: v5, MaxPacket: most, Groups: []string{"a"}, AnyTopic: subject == "admin",
		}, session.Subscription{Filter: filter, QoS: 1, Identifier: id}, signals(subject))
	}
	fits, three, five := in("fits", true, size, 0, topic), in("three", false, 0, 7, "group/+/signal"), in("five", true, 0, 7, topic)
	narrow := in("narrow", true, size-1, 0, topic)
	in("away", true, 0, 0, topic).offline(time.Hour)
	before := r.engine.Stats().Dropped.Load()
	r.engine.Signal(topic, []byte(payload))
	if n := r.engine.Stats().Dropped.Load() - before; n != 1 {
		t.Errorf("%d were dropped, want 1", n)
	}
	for name, tc := range map[string]struct {
		p     *peer
		n     int
		props string
	}{"fits": {fits, 1, ""}, "three": {three, 1, ""}, "five": {five, 1, "\x0b\x07"}, "narrow": {narrow, 0, ""}} {
		got := r.settled(tc.p)
		if len(got) != tc.n {
			t.Errorf("%s: got %d signals, want %d", name, len(got), tc.n)
			continue
		}
		for _, a := range got {
			if a.topic != topic || a.payload != payload || a.qos != 0 || string(a.props) != tc.props {
				t.Errorf("%s: got %+v", name, a)
			}
		}
	}
}

// user/+/signal is everybody's signals, and nothing that is logged or of groups.
func TestAllUserSignals(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	admin := r.online(delivery.Attachment{Key: key("admin"), AnyTopic: true}, session.Subscription{Filter: "user/+/signal"})
	other := r.online(delivery.Attachment{Key: key("bob")}, session.Subscription{Filter: "user/+/signal"}, signals("bob"))
	r.publish(0, "x", "user/alice", "user/bob")
	r.engine.Signal("group/a/signal", []byte("no"))
	r.engine.Signal("user/alice/error", []byte("no"))
	r.engine.Signal("user/alice/signal", []byte("yes"))
	if got := r.settled(admin); len(got) != 1 || got[0].payload != "yes" || got[0].topic != "user/alice/signal" {
		t.Errorf("got %+v", got)
	}
	if got := r.settled(other); len(got) > 0 {
		t.Errorf("somebody without the right got %+v", got)
	}
}
