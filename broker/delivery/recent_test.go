package delivery_test

import (
	"fmt"
	"slices"
	"testing"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// A batch with messages of many senders to many topics reaches everybody as single
// messages would: whoever sent a direct message gets those alone on the own topic, with
// its prev.
func TestBatchOfManySenders(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, get getter) {
		t.Helper()
		var recs []*msglog.Record
		for _, m := range [][2]string{
			{"alice", "user/bob"},
			{"carol", "user/bob"},
			{"alice", "user/bob"},
			{"alice", "user/carol"},
			{"alice", "user/alice"},
			{"bob", "user/alice"},
			{"alice", "group/a"},
			{"alice", "group/a"},
			{"alice", "group/b"},
			{"bob", "group/b"},
		} {
			recs = append(recs, message(1, m[0], m[1]))
		}
		r := mustRig(t, delivery.Config{})
		p := get(r, delivery.Attachment{Key: key("alice"), Expiry: 1 << 40, Groups: []string{"a", "b"}}, false,
			func() { r.commit(recs...) },
			session.Subscription{Filter: "user/alice", QoS: 1}, session.Subscription{Filter: "group/+", QoS: 1})
		want := slices.Delete(slices.Clone(recs), 1, 2) // not what carol sent to bob
		got := r.settled(p)
		if !slices.Equal(seqs(got), seqsOf(want...)) {
			t.Fatalf("got %v, want %v", seqs(got), seqsOf(want...))
		}
		prev := map[string]uint64{}
		for i, a := range got {
			topic := want[i].To
			if topic[:5] == "user/" {
				topic = "user/alice"
			}
			if a.topic != topic || a.prev != prev[topic] {
				t.Errorf("got %+v, want it on %s with prev %d", a, topic, prev[topic])
			}
			prev[topic] = a.seq
		}
	})
}

// A session that is a little behind is served from what is remembered of its topics, as
// far back as that reaches, and from the log before; either way it gets everything, its
// own direct messages too.
func TestRemembered(t *testing.T) {
	t.Parallel()
	for _, recent := range []int64{1, 300, 1000, 1 << 20} {
		t.Run(fmt.Sprint(recent), func(t *testing.T) {
			t.Parallel()
			r := mustRig(t, delivery.Config{Recent: recent})
			p := r.mute(delivery.Attachment{Key: key("alice"), V5: true, ReceiveMaximum: 1, Groups: []string{"a"}},
				session.Subscription{Filter: "user/alice", QoS: 1}, session.Subscription{Filter: "group/a", QoS: 1})
			waitfor.MustHold(t, "the session is live", p.session.Live)
			var recs []*msglog.Record
			for range 5 {
				recs = append(recs, r.publish(1, "alice", "user/bob", "group/a", "user/alice")...)
				recs = append(recs, r.publish(1, "bob", "user/alice")...)
			}
			for i, rec := range recs {
				waitfor.MustHold(t, fmt.Sprint("message ", i), func() bool { return p.count() > i })
				a := p.arrivals()[i]
				if a.seq != rec.Seq {
					t.Fatalf("message %d is %+v, want seq %d", i, a, rec.Seq)
				}
				p.session.Acknowledged(p.out, 4, a.id, false)
			}
		})
	}
}
