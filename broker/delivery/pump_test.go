package delivery_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// signals is the subscription that settled needs.
func signals(subject string) session.Subscription {
	return session.Subscription{Filter: "user/" + subject + "/signal"}
}

// both runs a test with a session that is online while messages come, and with one that
// finds them when it is back.
func both(t *testing.T, f func(t *testing.T, get getter)) {
	t.Helper()
	t.Run("live", func(t *testing.T) {
		t.Parallel()
		f(t, func(r *rig, a delivery.Attachment, silent bool, publish func(), subs ...session.Subscription) *peer {
			t.Helper()
			p := r.onlineAs(a, silent, append(subs, signals(a.Subject))...)
			waitfor.MustHold(t, "the session is live", p.session.Live)
			publish()
			return p
		})
	})
	t.Run("behind", func(t *testing.T) {
		t.Parallel()
		f(t, func(r *rig, a delivery.Attachment, silent bool, publish func(), subs ...session.Subscription) *peer {
			t.Helper()
			r.online(a, append(subs, signals(a.Subject))...).offline(time.Hour)
			publish()
			return r.onlineAs(a, silent)
		})
	})
}

// getter has a session with subscriptions get what publish publishes.
type getter func(r *rig, a delivery.Attachment, silent bool, publish func(), subs ...session.Subscription) *peer

func seqs(got []arrival) []uint64 {
	s := make([]uint64, len(got))
	for i, a := range got {
		s[i] = a.seq
	}
	return s
}

func seqsOf(recs ...*msglog.Record) []uint64 {
	s := make([]uint64, len(recs))
	for i, rec := range recs {
		s[i] = rec.Seq
	}
	return s
}

// No more messages are on their way than the window has room for and the client takes,
// whether they come by the log or live, at first or again; each acknowledgement makes
// room.
func TestWindowBounds(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		a        delivery.Attachment
		want     int
		archiver bool
	}{
		{"window", delivery.Attachment{}, 8, false},
		{"receive maximum", delivery.Attachment{V5: true, ReceiveMaximum: 5}, 5, false},
		{"receive maximum above the window", delivery.Attachment{V5: true, ReceiveMaximum: 50}, 8, false},
		{"archiver", delivery.Attachment{Archiver: true}, 16, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			both(t, func(t *testing.T, get getter) {
				t.Helper()
				r := mustRig(t, delivery.Config{Window: 8, ArchiverWindow: 16})
				a := tc.a
				a.Key, a.Expiry, a.Groups = key("alice"), time.Hour, []string{"a", "b", "c", "d"}
				var recs []*msglog.Record
				p := get(r, a, true, func() {
					for i := range 60 {
						recs = append(recs, r.publish(1, "bob", "group/"+a.Groups[i%4], "group/"+a.Groups[i%4])...)
					}
				}, session.Subscription{Filter: "group/+", QoS: 1})
				got := r.settled(p)
				if want := seqsOf(recs[:tc.want]...); !slices.Equal(seqs(got), want) {
					t.Fatalf("got %v, want %v", seqs(got), want)
				}
				p.offline(time.Hour)
				p = r.mute(a)
				if again := r.settled(p); len(again) != tc.want || !again[0].dup {
					t.Fatalf("got %d messages again, want %d", len(again), tc.want)
				}
				for i, rec := range recs { // one by one
					waitfor.MustHold(t, fmt.Sprint("message ", i), func() bool { return p.count() > i })
					got := p.arrivals()[i]
					if got.seq != rec.Seq {
						t.Fatalf("message %d is %+v, want seq %d", i, got, rec.Seq)
					}
					p.session.Acknowledged(p.out, 4, got.id, false)
				}
				waitfor.MustHold(t, "all is done", func() bool { return p.session.Cursor() >= recs[len(recs)-1].Seq })
			})
		})
	}
}

// On the sender's own topic prev is that topic's, not the recipient's, also when a message
// comes again.
func TestPrevOnTheSendersTopic(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, get getter) {
		t.Helper()
		r := mustRig(t, delivery.Config{})
		a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
		var sent []*msglog.Record
		p := get(r, a, true, func() {
			r.publish(1, "carol", "user/bob")
			sent = append(sent, r.publish(1, "alice", "user/bob")...)
			r.publish(1, "carol", "user/bob")
			sent = append(sent, r.publish(1, "alice", "user/bob", "user/bob")...)
		}, session.Subscription{Filter: "user/alice", QoS: 1})
		for _, dup := range []bool{false, true} {
			var prev uint64
			got := r.settled(p)
			if !slices.Equal(seqs(got), seqsOf(sent...)) {
				t.Fatalf("got %v, want %v", seqs(got), seqsOf(sent...))
			}
			for _, m := range got {
				if m.prev != prev || m.topic != "user/alice" || m.dup != dup {
					t.Errorf("got %+v, want prev %d on user/alice, DUP %v", m, prev, dup)
				}
				prev = m.seq
			}
			p.offline(time.Hour)
			p = r.mute(a)
		}
	})
}

// A direct message between two users whose topics a session reads is one message, on the
// recipient's topic; a note to oneself too; also where it reads everybody's besides.
func TestDirectMessageArrivesOnce(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, get getter) {
		t.Helper()
		for qos := range byte(2) {
			for _, filters := range [][]string{{"user/alice", "user/bob"}, {"user/alice", "user/bob", "user/#"}, {"user/#"}} {
				r := mustRig(t, delivery.Config{})
				var recs []*msglog.Record
				var subs []session.Subscription
				for _, f := range filters {
					subs = append(subs, session.Subscription{Filter: f, QoS: qos})
				}
				p := get(r, delivery.Attachment{Key: key("admin"), Expiry: time.Hour, AnyTopic: true}, false, func() {
					recs = append(recs, r.publish(1, "bob", "user/alice")...)
					recs = append(recs, r.publish(1, "alice", "user/bob")...)
					recs = append(recs, r.publish(1, "alice", "user/alice")...)
				}, subs...)
				got := r.settled(p)
				if !slices.Equal(seqs(got), seqsOf(recs...)) {
					t.Fatalf("%v at QoS %d: got %v, want %v", filters, qos, seqs(got), seqsOf(recs...))
				}
				for i, m := range got {
					if m.topic != recs[i].To {
						t.Errorf("message %d came on %s, want %s", i, m.topic, recs[i].To)
					}
				}
			}
		}
	})
}

// A message goes at the lower QoS of publish and subscription; with overlapping
// subscriptions the higher of these counts, whichever came first.
func TestLowerQoS(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, get getter) {
		t.Helper()
		for want := range byte(3) {
			for _, filters := range [][]string{{"group/a"}, {"group/a", "group/+"}, {"group/+", "group/a"}} {
				r := mustRig(t, delivery.Config{})
				var subs []session.Subscription
				for i, f := range filters {
					subs = append(subs, session.Subscription{Filter: f, QoS: max(want, byte(i)) - byte(i)})
				}
				p := get(r, delivery.Attachment{Key: key("alice"), Expiry: time.Hour, Groups: []string{"a"}}, false, func() {
					for qos := range byte(3) {
						r.publish(qos, "bob", "group/a")
					}
				}, subs...)
				got := r.settled(p)
				if len(got) != 3 {
					t.Fatalf("got %d messages, want 3", len(got))
				}
				for qos, m := range got {
					if m.qos != min(byte(qos), want) {
						t.Errorf("published at %d, subscribed at %d: came at %d", qos, want, m.qos)
					}
				}
			}
		}
	})
}

// With No Local a session does not get what its own device published, but what others
// did, other devices of its subject among them. Of overlapping subscriptions all must
// have it.
func TestNoLocal(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, get getter) {
		t.Helper()
		for _, overlap := range []bool{false, true} {
			r := mustRig(t, delivery.Config{})
			subs := []session.Subscription{{Filter: "group/a", QoS: 1, NoLocal: true}}
			if overlap {
				subs = append(subs, session.Subscription{Filter: "group/+", QoS: 1})
			}
			mine, laptop, others, last := message(1, "alice", "group/a"), message(1, "alice", "group/a"), message(1, "bob", "group/a"), message(1, "bob", "group/a")
			mine.Client, laptop.Client, others.Client, last.Client = "c", "laptop", "c", "x"
			a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, Groups: []string{"a"}}
			p := get(r, a, false, func() {
				r.commit(mine)
				r.commit(laptop, others)
				r.commit(last)
			}, subs...)
			want := []*msglog.Record{laptop, others, last}
			if overlap {
				want = slices.Insert(want, 0, mine)
			}
			if got := seqs(r.settled(p)); !slices.Equal(got, seqsOf(want...)) {
				t.Errorf("overlap %v: got %v, want %v", overlap, got, seqsOf(want...))
			}
			waitfor.MustHold(t, "what is not for the session is behind it", func() bool { return p.session.Cursor() >= last.Seq })
		}
	})
}

// The client's Maximum Packet Size holds to the byte (MQTT 5, 3.1.2.11.4); who misses a
// message for it is told, and what comes after it arrives.
func TestMaximumPacketSize(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, get getter) {
		t.Helper()
		for _, published := range []byte{0, 1} {
			var size int // of the long one as it is sent
			for _, less := range []int{-1, 0, 1} {
				r := mustRig(t, delivery.Config{})
				long, short, after := message(published, "bob", "user/alice"), message(published, "bob", "user/alice"), message(published, "bob", "user/alice")
				long.Tail = []byte(`"type":"text","body":"` + strings.Repeat("x", 500) + `"}`)
				a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}
				if size > 0 {
					a.MaxPacket = uint32(size - less)
				}
				p := get(r, a, false, func() {
					r.commit(short)
					r.commit(long, after)
				}, session.Subscription{Filter: "user/alice", QoS: 1}, session.Subscription{Filter: "user/alice/error"})
				want, told := []*msglog.Record{short, long, after}, 0
				if less > 0 {
					want, told = []*msglog.Record{short, after}, 1
				}
				var got []arrival
				waitfor.MustHold(t, "messages and refusals", func() bool { got = r.settled(p); return len(got) >= len(want)+told })
				got = slices.DeleteFunc(got, func(m arrival) bool {
					if m.topic == "user/alice/error" {
						told--
					}
					return m.topic == "user/alice/error"
				})
				if !slices.Equal(seqs(got), seqsOf(want...)) || told != 0 {
					t.Errorf("a limit of %d bytes less: got %v, want %v; told %d times less than due", less, seqs(got), seqsOf(want...), told)
				}
				if size == 0 && len(got) > 1 {
					size = got[1].size
				}
				if n := r.engine.Stats().TooLarge.Load(); n != uint64(len(got)%3)/2 {
					t.Errorf("a limit of %d bytes less: counted %d as too large", less, n)
				}
			}
		}
	})
}

// What the client did not acknowledge on its last connection is not sent again if the new
// one takes less, or if its time is over; it does not hold up the rest.
func TestNotAgain(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{Now: func() time.Time { return time.UnixMilli(5000) }})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}
	p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 1}, signals("alice"))
	long, soon, short := message(1, "bob", "user/alice"), message(1, "bob", "user/alice"), message(1, "bob", "user/alice")
	long.Tail = []byte(`"type":"text","body":"` + strings.Repeat("x", 500) + `"}`)
	soon.Expires = 5001
	r.commit(long, soon, short)
	got := r.settled(p)
	if len(got) != 3 {
		t.Fatalf("got %d messages, want 3", len(got))
	}
	p.offline(time.Hour)
	for _, less := range []uint32{0, 1} {
		a.MaxPacket = uint32(got[0].size) - less
		p = r.mute(a)
		want := []*msglog.Record{long, soon, short}[less:]
		if got := r.settled(p); !slices.Equal(seqs(got), seqsOf(want...)) {
			t.Fatalf("%d bytes less: got %v, want %v", less, seqs(got), seqsOf(want...))
		}
		p.offline(time.Hour)
	}
	p = r.online(a)
	waitfor.MustHold(t, "all is done", func() bool { return p.session.Cursor() >= short.Seq })
}

// A message is delivered until it expires, with what is left of its time in seconds,
// rounded and at least one (MQTT 5, 3.3.2.3.3), and not from that moment on, neither at first nor again.
func TestMessageExpiry(t *testing.T) {
	t.Parallel()
	const now = 1_000_000
	both(t, func(t *testing.T, get getter) {
		t.Helper()
		clock := &clock{}
		clock.set(now)
		r := mustRig(t, delivery.Config{Now: clock.now})
		left := []int64{-1, 0, 1, 999, 1000, 1499, 1500, 3_000_000}
		var recs []*msglog.Record
		a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}
		p := get(r, a, true, func() {
			for _, ms := range left {
				rec := message(1, "bob", "user/alice")
				rec.Expires = now + ms
				recs = append(recs, r.commit(rec)...)
			}
		}, session.Subscription{Filter: "user/alice", QoS: 1})
		got := r.settled(p)
		if !slices.Equal(seqs(got), seqsOf(recs[2:]...)) {
			t.Fatalf("got %v, want %v", seqs(got), seqsOf(recs[2:]...))
		}
		for i, want := range []uint32{1, 1, 1, 1, 2, 3000} {
			if props := binary.BigEndian.AppendUint32([]byte{2}, want); string(got[i].props) != string(props) {
				t.Errorf("with %d ms left: properties % x, want % x", left[i+2], got[i].props, props)
			}
		}
		p.offline(time.Hour)
		clock.set(now + 1000)
		p = r.mute(a)
		got = r.settled(p)
		if !slices.Equal(seqs(got), seqsOf(recs[5:]...)) {
			t.Fatalf("again: got %v, want %v", seqs(got), seqsOf(recs[5:]...))
		}
		for i, want := range []uint32{1, 1, 2999} {
			if props := binary.BigEndian.AppendUint32([]byte{2}, want); string(got[i].props) != string(props) {
				t.Errorf("again: properties % x, want % x", got[i].props, props)
			}
		}
	})
}

// A message carries the identifiers of all subscriptions that it matches, each once and in
// order (MQTT 5, 3.3.4), also when it comes again, and none that 3.1.1 clients would not
// understand.
func TestSubscriptionIdentifiers(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, get getter) {
		t.Helper()
		for _, v5 := range []bool{true, false} {
			r := mustRig(t, delivery.Config{})
			a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: v5, Groups: []string{"a", "b", "c"}}
			p := get(r, a, true, func() { r.publish(1, "bob", "group/a", "group/b", "group/c") },
				session.Subscription{Filter: "group/+", QoS: 1, Identifier: 200},
				session.Subscription{Filter: "group/a", QoS: 1, Identifier: 3},
				session.Subscription{Filter: "group/b", QoS: 1, Identifier: 200})
			for range 2 {
				got := r.settled(p)
				if len(got) != 3 {
					t.Fatalf("got %d messages, want 3", len(got))
				}
				for i, want := range []string{"\x0b\x03\x0b\xc8\x01", "\x0b\xc8\x01", "\x0b\xc8\x01"} {
					if !v5 {
						want = ""
					}
					if string(got[i].props) != want {
						t.Errorf("%s: properties % x, want % x", got[i].topic, got[i].props, want)
					}
				}
				p.offline(time.Hour)
				p = r.mute(a)
			}
		}
	})
}

// Clients of both versions of MQTT get the same messages side by side, each as it
// understands them.
func TestVersionsSideBySide(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, get getter) {
		t.Helper()
		for qos := range byte(3) {
			r := mustRig(t, delivery.Config{})
			var recs []*msglog.Record
			var peers []*peer
			for i, v5 := range []bool{true, false, true, false} {
				a := delivery.Attachment{Key: key(fmt.Sprint("s", i)), Expiry: time.Hour, V5: v5, Groups: []string{"a"}}
				peers = append(peers, get(r, a, false, func() {
					if i == 3 {
						recs = r.publish(qos, "bob", "group/a", "group/a")
					}
				}, session.Subscription{Filter: "group/a", QoS: 2}))
			}
			for i, p := range peers {
				waitfor.MustHold(t, "two messages", func() bool { return p.count() == 2 })
				for k, a := range p.arrivals() {
					if a.seq != recs[k].Seq || a.qos != qos || a.topic != "group/a" {
						t.Errorf("client %d got %+v, want seq %d at QoS %d", i, a, recs[k].Seq, qos)
					}
				}
			}
		}
	})
}

// A QoS 2 message has its packet id stored also where messages of other QoS are committed
// with it.
func TestMixedBatch(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, get getter) {
		t.Helper()
		for _, order := range [][]byte{{2, 1, 0}, {0, 2, 1}, {1, 0, 2}} {
			r := mustRig(t, delivery.Config{})
			a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
			p := get(r, a, true, func() {
				var recs []*msglog.Record
				for _, qos := range order {
					recs = append(recs, message(qos, "bob", "user/alice"))
				}
				r.commit(recs...)
			}, session.Subscription{Filter: "user/alice", QoS: 2})
			got := r.settled(p)
			if len(got) != 3 || got[0].qos != order[0] || got[1].qos != order[1] || got[2].qos != order[2] {
				t.Fatalf("got %+v, want QoS %v", got, order)
			}
			if states := r.storedStates(a.Key); states != "\x00" {
				t.Errorf("published at QoS %v: stored states %q, want one", order, states)
			}
		}
	})
}
