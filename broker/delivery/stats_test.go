package delivery_test

import (
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// A delivery is a message that went to a session, and counts once: not before it is sent,
// not again when it is sent again, and however the session came by it.
func TestDeliveriesAreCountedOnce(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	device := func(subject string) delivery.Attachment {
		return delivery.Attachment{Key: key(subject), Expiry: time.Hour, V5: true, Groups: []string{"g"}}
	}
	group := func(qos byte) session.Subscription { return session.Subscription{Filter: "group/g", QoS: qos} }
	publish := func(n int) {
		for range n {
			m := message(2, "bob", "group/g")
			m.Client = key("bob").ClientID
			r.commit(m)
		}
	}
	want := 0
	counted := func(what string, more int) {
		t.Helper()
		want += more
		is := func() bool {
			return r.engine.Stats().Deliveries.Load()+r.queues.Stats().Deliveries.Load() == uint64(want) //nolint:gosec // not negative
		}
		waitfor.MustHold(t, what, is)
	}
	away := device("away")
	r.online(away, group(1)).offline(time.Hour)
	var all []*peer
	for qos, subject := range []string{"q0", "q1", "q2"} {
		all = append(all, r.online(device(subject), group(byte(qos))))
	}
	echo := group(1)
	echo.NoLocal = true
	r.online(device("bob"), echo)
	publish(20)
	for _, p := range all {
		waitfor.MustHold(t, "the messages", func() bool { return p.count() == 20 })
	}
	counted("messages of those that are connected", 3*20)

	a := device("slow")
	a.ReceiveMaximum = 5
	slow := r.mute(a, group(1), signals("slow"))
	publish(20)
	waitfor.MustHold(t, "a full window", func() bool { return slow.count() == 5 })
	counted("what a slow client was sent, not what it was not", 3*20+5)
	slow.offline(time.Hour)
	slow = r.mute(a)
	waitfor.MustHold(t, "the same again", func() bool { return slow.count() == 5 })
	r.settled(slow)
	counted("nothing for what was sent again", 0)
	slow.offline(time.Hour)

	back := r.online(away)
	waitfor.MustHold(t, "what was missed", func() bool { return back.count() == 40 })
	counted("what was missed", 40)
	r.queues.Put(&back.session.Session, plainMessage(1, 1), atMost2)
	r.queues.Put(&back.session.Session, plainMessage(0, 2), atMost2)
	waitfor.MustHold(t, "the messages of other topics", func() bool { return back.count() == 42 })
	counted("messages of other topics", 2)
}

// What could not be sent on the connection that it was meant for counts when it is sent for
// the first time, though that is as if it were sent again.
func TestDeliveryOfALaterConnectionIsCounted(t *testing.T) {
	t.Parallel()
	r, store := mustStubRig(t)
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 2})
	waitfor.MustHold(t, "the session is live", p.session.Live)
	store.fail.Store(true)
	r.publish(2, "bob", "user/alice")
	<-p.ended // its packet id cannot be stored
	store.fail.Store(false)
	if n := r.engine.Stats().Deliveries.Load(); n != 0 {
		t.Errorf("%d deliveries before anything was sent", n)
	}
	for range 2 {
		p.offline(time.Hour)
		p = r.mute(a)
		waitfor.MustHold(t, "the message", func() bool { return p.count() == 1 && p.session.Live() })
		if n := r.engine.Stats().Deliveries.Load(); n != 1 {
			t.Errorf("%d deliveries, want 1", n)
		}
	}
}
