package delivery_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// expiryIn1s is the properties of a message that has a second left to live, or has expired
// and is sent again.
const expiryIn1s = "\x02\x00\x00\x00\x01"

// What the client may have had at QoS 2 is sent again whether or not it has expired since
// [MQTT-4.3.3-7]: a client that waits for a PUBREL that never comes takes the next message
// with that packet id for a repetition and throws it away. At QoS 1 it is not sent again.
func TestExpiryEndsNoExchange(t *testing.T) {
	t.Parallel()
	for _, qos := range []byte{1, 2} {
		var now atomic.Int64
		now.Store(time.Now().UnixMilli())
		r := mustRig(t, delivery.Config{Now: func() time.Time { return time.UnixMilli(now.Load()) }})
		a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}
		p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 2}, signals("alice"))
		m, plain := message(qos, "bob", "user/alice"), plainMessage(qos, 7)
		m.Expires, plain.Expires = now.Load()+1000, now.Load()+1000
		r.commit(m)
		r.queues.Put(&p.session.Session, plain, atMost2)
		waitfor.MustHold(t, "both are sent", func() bool { return p.count() == 2 })
		had := p.arrivals()
		p.offline(time.Hour)
		now.Add(5000)

		p = r.online(a)
		got := r.settled(p)
		if qos == 1 {
			if len(got) != 0 {
				t.Errorf("QoS 1: expired messages came again: %+v", got)
			}
			continue
		}
		byID := func(a, b arrival) int { return int(a.id) - int(b.id) }
		slices.SortFunc(had, byID)
		slices.SortFunc(got, byID)
		if len(got) != 2 {
			t.Fatalf("got %+v, want both again", got)
		}
		for i, g := range got {
			if g.id != had[i].id || !g.dup || g.payload != had[i].payload || string(g.props) != expiryIn1s {
				t.Errorf("got %+v, want %+v again, with a second to live", g, had[i])
			}
		}
		waitfor.MustHold(t, "both exchanges end", func() bool { return len(p.released()) == 2 && r.queues.Held() == 0 && p.session.Cursor() == m.Seq })
	}
}

// What was sent at QoS 2 and cannot be sent again, since the log no longer has it, it is
// larger than what the client takes now, or the client may not read it any more, is released:
// the client must not keep the packet id. The others, sent at QoS 1, just end.
func TestWhatCannotBeSentAgainIsReleased(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", 500)
	for name, spoil := range map[string]func(r *rig, a *delivery.Attachment, s *delivery.Session, last uint64){
		"trimmed":   func(r *rig, _ *delivery.Attachment, _ *delivery.Session, last uint64) { r.trim(last) },
		"too large": func(_ *rig, a *delivery.Attachment, _ *delivery.Session, _ uint64) { a.MaxPacket = 300 },
		"forbidden": func(r *rig, _ *delivery.Attachment, s *delivery.Session, _ uint64) {
			r.queues.ForgetTopics(&s.Session, map[string]struct{}{"plant/x": {}})
		},
	} {
		for _, qos := range []byte{1, 2} {
			what := fmt.Sprintf("%s, QoS %d", name, qos)
			r := mustRig(t, delivery.Config{})
			a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
			p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 2}, signals("alice"))
			m, plain := message(qos, "bob", "user/alice"), plainMessage(qos, 7)
			m.Tail = []byte(`"type":"text","body":"` + large + `"}`)
			plain.Payload = []byte(large)
			r.commit(m)
			r.queues.Put(&p.session.Session, plain, atMost2)
			waitfor.MustHold(t, "both are sent", func() bool { return p.count() == 2 })
			had := p.arrivals()
			p.offline(time.Hour)
			spoil(r, &a, p.session, m.Seq)

			p = r.online(a)
			r.settled(p)
			waitfor.MustHold(t, what+": all is done", func() bool { return p.session.Cursor() == m.Seq && r.queues.Held() == 0 })
			again := slices.DeleteFunc(p.arrivals(), func(a arrival) bool { return a.qos == 0 })
			var want, got []uint16
			for _, h := range had {
				sentAgain := slices.ContainsFunc(again, func(a arrival) bool { return a.topic == h.topic })
				if ofChat := h.topic == "user/alice"; sentAgain != (name == "trimmed" && !ofChat || name == "forbidden" && ofChat) {
					t.Errorf("%s: %s is sent again: %t", what, h.topic, sentAgain)
				}
				if qos == 2 {
					want = append(want, h.id)
				}
			}
			waitfor.MustHold(t, what+": what was released", func() bool { got = p.released(); return len(got) >= len(want) })
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s: released are %v, want %v", what, got, want)
			}
		}
	}
}
