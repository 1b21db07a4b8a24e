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
	"mynah/broker/state"
	"mynah/internal/waitfor"
)

// How far a stored QoS 2 exchange has got.
const (
	sent     = 0
	received = 1
)

// stored is a QoS 2 exchange as the engine stores it: see exactlyPrefix.
func stored(k session.Key, rec *msglog.Record, id uint16, stage byte) state.Op {
	key := binary.BigEndian.AppendUint64([]byte("exactly/"+k.Subject+"\x00"+k.ClientID+"\x00"), rec.Seq)
	return state.Op{Key: string(key), Value: append(binary.BigEndian.AppendUint16(nil, id), append([]byte{stage}, rec.To...)...)}
}

// mute is online for a client that acknowledges nothing.
func (r *rig) mute(a delivery.Attachment, subs ...session.Subscription) *peer {
	r.tb.Helper()
	return r.onlineAs(a, true, subs...)
}

// Exchanges that come back with a session keep their packet ids wherever on the circle of
// ids these are and in whatever order: they are sent, and leave room for new messages. Ids
// that lay far apart used up all the room, and the session got nothing any more; ids that
// did not ascend came back as others.
func TestRestoredPacketIDsFarApart(t *testing.T) {
	t.Parallel()
	for _, ids := range [][]uint16{
		{1, 32768}, {32768, 1}, {1, 32768, 65535}, {65535, 1, 2}, {3, 2, 1}, {1, 16384, 32768, 49152}, {1, 22000, 44000}, {7},
	} {
		t.Run(fmt.Sprint(ids), func(t *testing.T) {
			t.Parallel()
			r := mustRig(t, delivery.Config{})
			a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
			r.online(a, session.Subscription{Filter: "user/alice", QoS: 2}).offline(time.Hour)
			var recs []*msglog.Record
			var ops []state.Op
			for i, id := range ids {
				recs = append(recs, r.publish(2, "bob", "user/alice")...)
				ops = append(ops, stored(a.Key, recs[i], id, sent))
			}
			r.restart(ops...)
			recs = append(recs, r.publish(2, "bob", "user/alice", "user/alice", "user/alice")...)
			p := r.online(a)
			p.wantSeqs(t, recs...)
			for i, got := range p.arrivals() {
				if i < len(ids) && (got.id != ids[i] || !got.dup) {
					t.Errorf("message %d came with id %d and DUP %v, want %d and DUP", i, got.id, got.dup, ids[i])
				}
				if i >= len(ids) && (slices.Contains(ids, got.id) || got.dup) {
					t.Errorf("new message %d came with id %d and DUP %v", i, got.id, got.dup)
				}
			}
			waitfor.MustHold(t, "all is done", func() bool { return p.session.Cursor() == recs[len(recs)-1].Seq })
		})
	}
}

// An exchange that comes back keeps its packet id although more messages are to be sent
// before its turn than there are ids: when the ids run out it is sent out of turn, once.
// The session stopped for good.
func TestRestoredFarAhead(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	p := r.online(a, session.Subscription{Filter: "user/alice", QoS: 2})
	p.offline(time.Hour)
	batch := slices.Repeat([]string{"user/alice"}, 64)
	var all []*msglog.Record
	for len(all) < 33000 {
		all = append(all, r.publish(1, "bob", batch...)...)
	}
	late := r.publish(2, "bob", "user/alice")[0]
	all = append(all, late)
	r.restart(stored(a.Key, late, 1, sent))
	p = r.online(a)
	waitfor.MustHold(t, "everything", func() bool { return p.session.Cursor() == late.Seq && p.count() >= len(all) })
	got := p.arrivals()
	if len(got) != len(all) {
		t.Fatalf("got %d messages, want %d", len(got), len(all))
	}
	at := slices.IndexFunc(got, func(a arrival) bool { return a.seq == late.Seq })
	if at < 0 || got[at].id != 1 || !got[at].dup {
		t.Fatalf("the exchange came back as %+v", got[max(at, 0)])
	}
	for i, a := range slices.Delete(got, at, at+1) {
		if a.seq != all[i].Seq {
			t.Fatalf("message %d is %+v, want seq %d", i, a, all[i].Seq)
		}
	}
}

// What was restored counts for Receive Maximum, however many topics it is from.
func TestRestoredHonoursReceiveMaximum(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true, Groups: []string{"a", "b", "c", "d"}, ReceiveMaximum: 2}
	r.online(a, session.Subscription{Filter: "group/+", QoS: 2}).offline(time.Hour)
	var recs []*msglog.Record
	var ops []state.Op
	for i := range 12 {
		recs = append(recs, r.publish(2, "bob", "group/"+a.Groups[i%4])...)
		ops = append(ops, stored(a.Key, recs[i], uint16(i+1), sent))
	}
	r.restart(ops...)
	p := r.mute(a)
	for i, rec := range recs {
		waitfor.MustHold(t, "two are open, or the last", func() bool { return p.count() == min(i+2, len(recs)) })
		if got := p.arrivals()[i]; got.seq != rec.Seq || got.id != uint16(i+1) {
			t.Fatalf("message %d is %+v, want seq %d", i, got, rec.Seq)
		}
		p.session.Acknowledged(p.out, 5, uint16(i+1), false)
		waitfor.MustHold(t, "PUBREL", func() bool { return len(p.released()) == i+1 })
		p.session.Acknowledged(p.out, 7, uint16(i+1), false)
	}
}

// An exchange that ended before what came before it in the log has ended for good: after
// another restart its packet id, which may be another message's by then, means nothing.
func TestRestoredEndsOnce(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	r.online(a, session.Subscription{Filter: "user/alice", QoS: 2}).offline(time.Hour)
	recs := r.publish(2, "bob", "user/alice", "user/alice", "user/alice")
	r.restart(stored(a.Key, recs[0], 1, sent), stored(a.Key, recs[1], 2, received), stored(a.Key, recs[2], 3, sent))
	p := r.mute(a)
	waitfor.MustHold(t, "all are sent", func() bool { return p.count() == 2 && len(p.released()) == 1 })
	p.session.Acknowledged(p.out, 7, 2, false)
	p.session.Acknowledged(p.out, 5, 3, true) // refused, which ends it too
	waitfor.MustHold(t, "it is stored", func() bool { return r.storedStates(a.Key) == "\x00\x02\x02" })
	p.offline(time.Hour)

	r.restart()
	p = r.mute(a)
	p.wantSeqs(t, recs[0])
	last := r.publish(1, "bob", "user/alice")
	p.wantSeqs(t, recs[0], last[0])
	if rels := p.released(); len(rels) > 0 {
		t.Errorf("PUBREL %v for what has ended", rels)
	}
}

// storedStates returns the states of the stored QoS 2 exchanges of a session.
func (r *rig) storedStates(k session.Key) string {
	r.tb.Helper()
	var states strings.Builder
	if err := r.log.State().Scan("exactly/"+k.Subject+"\x00"+k.ClientID+"\x00", func(_ string, v []byte) bool {
		states.WriteByte(v[2])
		return true
	}); err != nil {
		r.tb.Fatal(err)
	}
	return states.String()
}

// A restored message that is larger than the client now takes is not sent again and does not
// hold up the rest. The client may have had it, so it gets PUBREL, or it would keep the packet
// id and take a later message for this one; and one whose time is over is sent again
// [MQTT-4.3.3-7].
func TestRestoredNotForThisClient(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000)
	r := mustRig(t, delivery.Config{Now: func() time.Time { return now }})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}
	r.online(a, session.Subscription{Filter: "user/alice", QoS: 2}, session.Subscription{Filter: "user/alice/error"}).offline(time.Hour)
	large, over := message(2, "bob", "user/alice"), message(2, "bob", "user/alice")
	large.Tail = []byte(`"type":"text","body":"` + strings.Repeat("x", 500) + `"}`)
	over.Expires = now.UnixMilli()
	recs := append(r.commit(large, over), r.publish(2, "bob", "user/alice")...)
	r.restart(stored(a.Key, large, 1, sent), stored(a.Key, over, 2, sent), stored(a.Key, recs[2], 3, sent))
	a.MaxPacket = 300
	p := r.online(a)
	waitfor.MustHold(t, "the last", func() bool { return p.session.Cursor() == recs[2].Seq })
	var seqs []uint64
	waitfor.MustHold(t, "message and refusal", func() bool { return p.count() == 3 })
	for _, got := range p.arrivals() {
		if got.topic == "user/alice" {
			seqs = append(seqs, got.seq)
		} else if !contains(got.payload, `"code":"too_large"`) {
			t.Errorf("got %+v", got)
		}
	}
	if !slices.Equal(seqs, seqsOf(recs[1:]...)) {
		t.Errorf("got %v, want %v", seqs, seqsOf(recs[1:]...))
	}
	waitfor.MustHold(t, "all exchanges end", func() bool { return len(p.released()) == 3 })
	if ids := slices.Sorted(slices.Values(p.released())); !slices.Equal(ids, []uint16{1, 2, 3}) {
		t.Errorf("released were %v", ids)
	}
}

// An exchange goes on though the session no longer has the subscription that it came by:
// the client waits for its end.
func TestRestoredWithoutSubscription(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, Groups: []string{"a"}}
	r.online(a, session.Subscription{Filter: "group/+", QoS: 2}).offline(time.Hour)
	recs := r.publish(2, "bob", "group/a", "group/a")
	r.restart(stored(a.Key, recs[0], 1, received), stored(a.Key, recs[1], 2, sent))
	a.Groups = nil
	p := r.online(a)
	waitfor.MustHold(t, "both exchanges end", func() bool { return slices.Equal(p.released(), []uint16{1, 2}) })
	p.wantSeqs(t, recs[1])
	waitfor.MustHold(t, "all is done", func() bool { return p.session.Cursor() == recs[1].Seq })
}
