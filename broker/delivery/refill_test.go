package delivery_test

import (
	"slices"
	"testing"
	"time"

	"mynah/broker/delivery"
)

// A client that is slow with most of what it has, and has room for more, gets more: one
// that waits for it before it acknowledges the rest would wait for ever.
func TestFreedSlotIsUsed(t *testing.T) {
	t.Parallel()
	for _, most := range []uint16{1, 3, 100, 1000} {
		r := mustRig(t, delivery.Config{})
		a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true, Groups: []string{"g"}, ReceiveMaximum: most}
		r.online(a, delivery.Subscription{Filter: "group/+", QoS: 1}).offline(time.Hour)
		for range 12 {
			r.publish(1, "bob", slices.Repeat([]string{"group/g"}, 100)...)
		}
		p := r.mute(a)
		has := func(n int) func() bool { return func() bool { return len(p.arrivals()) == n } }
		waitFor(t, "a full window", has(int(most)))
		for i := range 3 {
			p.session.Acknowledged(p.out, 4, p.arrivals()[i].id, false)
			waitFor(t, "one more for the one that was acknowledged", has(int(most)+i+1))
		}
	}
}
