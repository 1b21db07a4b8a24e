package delivery_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/outbox"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// A client that is slow with most of what it has, and has room for more, gets more: one
// that waits for it before it acknowledges the rest would wait for ever.
func TestFreedSlotIsUsed(t *testing.T) {
	t.Parallel()
	for _, most := range []uint16{1, 3, 100, 1000} {
		r := mustRig(t, delivery.Config{})
		a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true, Groups: []string{"g"}, ReceiveMaximum: most}
		r.online(a, session.Subscription{Filter: "group/+", QoS: 1}).offline(time.Hour)
		for range 12 {
			r.publish(1, "bob", slices.Repeat([]string{"group/g"}, 100)...)
		}
		p := r.mute(a)
		has := func(n int) func() bool { return func() bool { return p.count() == n } }
		waitfor.MustHold(t, "a full window", has(int(most)))
		for i := range 3 {
			p.session.Acknowledged(p.out, 4, p.arrivals()[i].id, false)
			waitfor.MustHold(t, "one more for the one that was acknowledged", has(int(most)+i+1))
		}
	}
}

// Sessions that catch up keep to the limit on all outboxes together: clients that resume
// and do not read cannot fill the memory by being many. Once they read, all of them get
// everything.
func TestTotalHoldsForThoseBehind(t *testing.T) {
	t.Parallel()
	const sessions, messages = 40, 400
	limits := &outbox.Limits{PerConn: 64 << 10, Total: 256 << 10}
	r := mustRig(t, delivery.Config{Limits: limits, Recent: 1})
	attachments := make([]delivery.Attachment, sessions)
	for i := range attachments {
		attachments[i] = delivery.Attachment{Key: key(fmt.Sprint("s", i)), Expiry: time.Hour, Groups: []string{"g"}}
		r.online(attachments[i], session.Subscription{Filter: "group/+", QoS: 0}).offline(time.Hour)
	}
	var last uint64
	for range messages / 10 {
		recs := r.publish(0, "bob", slices.Repeat([]string{"group/g"}, 10)...)
		last = recs[9].Seq
	}
	peers := make([]*peer, sessions)
	for i, a := range attachments {
		peers[i] = r.attach(a)
		peers[i].pause(true)
		r.begin(peers[i], a)
	}
	for _, p := range peers {
		waitfor.MustHold(t, "the session has been given what it can be given", p.session.Idle)
	}
	most := limits.Held()
	// Every session may have one message, and some may have looked at the same moment.
	if allowed := limits.Total + sessions*(1<<10) + 4*int64(limits.PerConn); most > allowed {
		t.Errorf("%d bytes are held, %d are allowed", most, allowed)
	}
	for _, p := range peers {
		p.pause(false)
	}
	for _, p := range peers {
		waitfor.MustHold(t, "the last message", func() bool {
			got := p.arrivals()
			return len(got) == messages && got[len(got)-1].seq == last
		})
	}
}
