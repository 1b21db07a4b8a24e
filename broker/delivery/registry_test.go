package delivery_test

import (
	"slices"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// Who reads a topic by name and with everybody's gets a message once, at the higher QoS
// [MQTT-3.3.4-2] and with the identifiers of both subscriptions. The subscription by name
// hid the other one's options.
func TestOverlapWithEverybodys(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, get getter) {
		t.Helper()
		r := mustRig(t, delivery.Config{})
		a := delivery.Attachment{Key: key("watch"), Expiry: time.Hour, V5: true, AnyTopic: true}
		p := get(r, a, false, func() { r.publish(1, "x", "user/bob", "group/a", "user/carol", "group/b") },
			session.Subscription{Filter: "user/bob", Identifier: 1, NoLocal: true},
			session.Subscription{Filter: "user/#", QoS: 1, Identifier: 2},
			session.Subscription{Filter: "group/a", QoS: 1, Identifier: 3},
			session.Subscription{Filter: "group/#", Identifier: 4})
		got := r.settled(p)
		if len(got) != 4 {
			t.Fatalf("got %d messages, want 4", len(got))
		}
		for i, want := range []struct {
			qos   byte
			props string
		}{{1, "\x0b\x01\x0b\x02"}, {1, "\x0b\x03\x0b\x04"}, {1, "\x0b\x02"}, {0, "\x0b\x04"}} {
			if got[i].qos != want.qos || string(got[i].props) != want.props {
				t.Errorf("%s: QoS %d and properties % x, want %d and % x", got[i].topic, got[i].qos, got[i].props, want.qos, want.props)
			}
		}
	})
}

// A SUBSCRIBE with a filter that is there already replaces the options (MQTT 5, 3.8.4), and
// costs no message.
func TestSubscribeAgain(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	p := r.online(delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}, signals("alice"))
	n := 0
	for _, sub := range []session.Subscription{
		{Filter: "user/alice", QoS: 1, Identifier: 3},
		{Filter: "user/alice", Identifier: 4},
		{Filter: "user/alice", QoS: 2},
		{Filter: "user/alice", QoS: 1, NoLocal: true},
		{Filter: "user/alice", QoS: 1},
	} {
		if err := p.session.Subscribe([]session.Subscription{sub}, nil); err != nil {
			t.Fatal(err)
		}
		mine, props := message(2, "alice", "user/alice"), ""
		mine.Client = "c"
		r.commit(mine)
		r.publish(2, "bob", "user/alice")
		if n++; !sub.NoLocal {
			n++
		}
		if sub.Identifier > 0 {
			props = string([]byte{0x0b, byte(sub.Identifier)})
		}
		got := r.settled(p)
		if len(got) != n || got[n-1].qos != sub.QoS || string(got[n-1].props) != props {
			t.Fatalf("%+v: got %d messages, the last at QoS %d with properties % x; want %d", sub, len(got), got[len(got)-1].qos, got[len(got)-1].props, n)
		}
	}
}

// user/# stands for what is logged: signals have nothing of its options.
func TestSignalsBesideEverybodys(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	p := r.online(delivery.Attachment{Key: key("watch"), V5: true, AnyTopic: true}, session.Subscription{Filter: "user/#", QoS: 1, Identifier: 1},
		session.Subscription{Filter: "user/bob/signal", Identifier: 2}, signals("watch"))
	r.engine.Signal("user/bob/signal", []byte("typing"))
	if got := r.settled(p); len(got) != 1 || string(got[0].props) != "\x0b\x02" {
		t.Errorf("got %+v, want one signal with the identifier 2", got)
	}
}

// A subscription has what was published after it, also where the session has yet to get
// what came before, by name and with everybody's.
func TestYoungerSubscription(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("watch"), Expiry: time.Hour, AnyTopic: true, Groups: []string{"a"}}
	p := r.online(a, session.Subscription{Filter: "user/watch", QoS: 1}, signals("watch"))
	waitfor.MustHold(t, "the session is live", p.session.Live)
	p.offline(time.Hour)
	var want []uint64
	topics := []string{"user/watch", "group/a", "user/bob", "group/b"}
	for i, filter := range []string{"group/a", "user/#", "group/#"} {
		want = append(want, seqsOf(r.publish(1, "x", topics...)[:i+1]...)...)
		p = r.attach(a)
		if err := p.session.Subscribe([]session.Subscription{{Filter: filter, QoS: 1}}, a.Groups); err != nil {
			t.Fatal(err)
		}
		p.offline(time.Hour)
	}
	want = append(want, seqsOf(r.publish(1, "x", topics...)...)...)
	r.restart() // which does not forget since when
	if got := seqs(r.settled(r.online(a))); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A subscriber to everybody's groups gets the copy of its own direct messages that its own
// topic has.
func TestOwnTopicBesideAllGroups(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, get getter) {
		t.Helper()
		r := mustRig(t, delivery.Config{})
		var want []uint64
		p := get(r, delivery.Attachment{Key: key("admin"), Expiry: time.Hour, AnyTopic: true}, false, func() {
			want = append(want, seqsOf(r.publish(1, "admin", "user/bob", "group/a")...)...)
			r.publish(1, "carol", "user/bob")
			want = append(want, seqsOf(r.publish(1, "admin", "user/bob")...)...)
		}, session.Subscription{Filter: "group/#", QoS: 1}, session.Subscription{Filter: "user/admin", QoS: 1})
		got := r.settled(p)
		if !slices.Equal(seqs(got), want) {
			t.Fatalf("got %v, want %v", seqs(got), want)
		}
		if got[0].topic != "user/admin" || got[2].topic != "user/admin" || got[2].prev != got[0].seq {
			t.Errorf("got %+v", got)
		}
	})
}
