package delivery_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// Acknowledgements that are no step of the exchange change nothing (MQTT 5, 4.3): the
// message stays unacknowledged and comes again as it was.
func TestWrongAcknowledgement(t *testing.T) {
	t.Parallel()
	const puback, pubrec, pubcomp = 4, 5, 7
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 2}, signals("alice"))
	one, two := r.publish(1, "bob", "user/alice")[0], r.publish(2, "bob", "user/alice")[0]
	got := r.settled(p)
	if !slices.Equal(seqs(got), seqsOf(one, two)) || got[0].qos != 1 || got[1].qos != 2 {
		t.Fatalf("got %+v", got)
	}
	p.session.Acknowledged(p.out, pubrec, got[0].id, false)
	p.session.Acknowledged(p.out, puback, got[1].id, false)
	p.session.Acknowledged(p.out, pubcomp, got[1].id, false)
	p.offline(time.Hour)
	p = r.mute(a)
	again := r.settled(p)
	if !slices.Equal(seqs(again), seqsOf(one, two)) || again[0].id != got[0].id || again[1].id != got[1].id {
		t.Fatalf("got %+v again, want what there was: %+v", again, got)
	}

	// An id that is nobody's is released, so that the client's exchange ends.
	p.session.Acknowledged(p.out, pubrec, 999, false)
	p.session.Acknowledged(p.out, pubrec, 998, true)
	if r.settled(p); !slices.Equal(p.released(), []uint16{999}) {
		t.Errorf("PUBREL %v, want 999 alone", p.released())
	}

	// A refusal ends an exchange without PUBREL, of whatever QoS.
	p.session.Acknowledged(p.out, puback, got[0].id, true)
	p.session.Acknowledged(p.out, pubrec, got[1].id, true)
	if c := p.session.Cursor(); c != two.Seq {
		t.Errorf("the cursor is %d, want %d", c, two.Seq)
	}
	p.offline(time.Hour)
	p = r.mute(a)
	if got := r.settled(p); len(got) > 0 || len(p.released()) > 0 {
		t.Errorf("got %+v and PUBREL %v again", got, p.released())
	}
}

// A PUBCOMP that says that the client knows nothing of the exchange ends it, however far it
// had got.
func TestRefusedPubcomp(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	p := r.mute(delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}, session.Subscription{Filter: "user/alice", QoS: 2})
	rec := r.publish(2, "bob", "user/alice")[0]
	waitfor.MustHold(t, "the message", func() bool { return p.count() == 1 })
	p.session.Acknowledged(p.out, 7, p.arrivals()[0].id, true)
	if c := p.session.Cursor(); c != rec.Seq {
		t.Errorf("the cursor is %d, want %d", c, rec.Seq)
	}
}

// What a connection says after another has taken over is not heard: the message is under way
// on the other by then, and may be lost with it.
func TestAcknowledgedAfterTakeover(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	old := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 1})
	rec := r.publish(1, "bob", "user/alice")[0]
	waitfor.MustHold(t, "the message", func() bool { return old.count() == 1 })
	id := old.arrivals()[0].id
	fresh := r.mute(a)
	waitfor.MustHold(t, "the message again", func() bool { return fresh.count() == 1 })
	old.session.Acknowledged(old.out, 4, id, false)
	if c := fresh.session.Cursor(); c >= rec.Seq {
		t.Errorf("the cursor is %d, and %d is not acknowledged", c, rec.Seq)
	}
	fresh.session.Acknowledged(fresh.out, 4, id, false)
	if c := fresh.session.Cursor(); c != rec.Seq {
		t.Errorf("the cursor is %d, want %d", c, rec.Seq)
	}
}

// PUBREL is sent when it is on disk that the message has arrived, not before, since the
// client forgets the packet id with it.
func TestPubrelWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	r, store := mustStubRig(t)
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 2}, signals("alice"))
	recs := r.publish(2, "bob", "user/alice", "user/alice")
	got := r.settled(p)
	if len(got) != 2 {
		t.Fatalf("got %d messages, want 2", len(got))
	}
	if states := r.storedStates(a.Key); states != "\x00\x00" {
		t.Fatalf("stored states %q, want two that were sent", states)
	}
	store.fail.Store(true)
	p.session.Acknowledged(p.out, 5, got[0].id, false)
	waitfor.MustHold(t, "it was tried", func() bool { return store.failed.Load() > 0 })
	store.fail.Store(false)
	p.session.Acknowledged(p.out, 5, got[1].id, false)
	waitfor.MustHold(t, "PUBREL", func() bool { return len(p.released()) > 0 })
	if rels := p.released(); !slices.Equal(rels, []uint16{got[1].id}) {
		t.Errorf("PUBREL %v, want %d alone", rels, got[1].id)
	}
	if states := r.storedStates(a.Key); states != "\x00\x01" {
		t.Errorf("stored states %q, want one that was sent and one that has arrived", states)
	}
	p.offline(time.Hour)

	p = r.online(a) // the one is sent again, under its packet id, and the other is not
	waitfor.MustHold(t, "all is done", func() bool { return p.session.Cursor() == recs[1].Seq })
	if again := p.arrivals(); len(again) != 1 || again[0].id != got[0].id || !again[0].dup {
		t.Errorf("got %+v, want the message of which it is not stored that it has arrived", again)
	}
	rels := p.released()
	if slices.Sort(rels); !slices.Equal(rels, []uint16{got[0].id, got[1].id}) {
		t.Errorf("PUBREL %v, want %d and %d", rels, got[0].id, got[1].id)
	}
	p.offline(time.Hour) // stores the position
	if states := r.storedStates(a.Key); states != "" {
		t.Errorf("stored states %q of what is over", states)
	}
}

// When the packet ids of QoS 2 messages cannot be stored, they are not sent; the client is
// cut off and gets them when it is back.
func TestPacketIDsCannotBeStored(t *testing.T) {
	t.Parallel()
	r, store := mustStubRig(t)
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 2})
	store.fail.Store(true)
	recs := r.publish(2, "bob", "user/alice")
	waitfor.MustHold(t, "the connection is closed", p.closed)
	p.out.Flush() // what was sent has left
	if got := p.arrivals(); len(got) > 0 {
		t.Errorf("got %+v", got)
	}
	store.fail.Store(false)
	p.offline(time.Hour)
	r.online(a).wantSeqs(t, recs...)
}

// What comes again comes in the order of the log, though a restored exchange has an older
// packet id than what was sent before it; and it comes in its turn, not first of all.
func TestResendOrderOfRestored(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	r.online(a, session.Subscription{Filter: "user/alice", QoS: 2}, signals("alice")).offline(time.Hour)
	var recs []*msglog.Record
	for _, qos := range []byte{1, 2, 1, 2, 1} {
		recs = append(recs, r.publish(qos, "bob", "user/alice")...)
	}
	r.restart(stored(a.Key, recs[1], 2, sent), stored(a.Key, recs[3], 4, sent))
	for range 2 {
		p := r.mute(a)
		got := r.settled(p)
		if !slices.Equal(seqs(got), seqsOf(recs...)) {
			t.Fatalf("got %v, want %v", seqs(got), seqsOf(recs...))
		}
		if got[1].id != 2 || got[3].id != 4 {
			t.Errorf("the exchanges came with ids %d and %d, want 2 and 4", got[1].id, got[3].id)
		}
		if c := p.session.Cursor(); c != recs[0].Seq-1 {
			t.Errorf("the cursor is %d, want %d", c, recs[0].Seq-1)
		}
		p.offline(time.Hour)
	}
	a.V5, a.ReceiveMaximum = true, 2
	if got := r.settled(r.mute(a)); !slices.Equal(seqs(got), seqsOf(recs[:2]...)) {
		t.Errorf("a client that takes two at a time got %v, want %v", seqs(got), seqsOf(recs[:2]...))
	}
}

// Acknowledgements on a connection that the session no longer has mean nothing: the client
// at its other end is another one's past.
func TestAcknowledgementOfAnOldConnection(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}
	old := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 1}, signals("alice"))
	recs := r.publish(1, "bob", "user/alice", "user/alice")
	got := r.settled(old)
	if len(got) != 2 {
		t.Fatalf("got %d messages, want 2", len(got))
	}
	fresh := r.mute(a)
	old.session.Acknowledged(old.out, 4, got[0].id, false)
	if c := fresh.session.Cursor(); c != recs[0].Seq-1 {
		t.Errorf("the cursor is %d, want %d", c, recs[0].Seq-1)
	}
	if !old.session.Superseded(old.out) || fresh.session.Superseded(fresh.out) {
		t.Error("the first connection is superseded and the second is not")
	}
	if got := r.settled(fresh); !slices.Equal(seqs(got), seqsOf(recs...)) {
		t.Errorf("got %v again, want %v", seqs(got), seqsOf(recs...))
	}
	// Nor does the old connection's end, though it wanted the session to end with it.
	old.session.Detach(old.out, 0)
	if fresh.session.Attached() != fresh.out {
		t.Error("the end of the old connection took the session from the new one")
	}
	if last := r.mute(a); last.session != fresh.session {
		t.Error("the end of the old connection ended the session")
	} else if fresh = last; len(r.settled(fresh)) != 2 {
		t.Error("the last connection did not get the messages again")
	}
	fresh.session.Acknowledged(fresh.out, 4, got[0].id, false)
	fresh.session.Acknowledged(fresh.out, 4, got[1].id, false)
	more := r.publish(1, "bob", "user/alice")
	if got := r.settled(fresh); !slices.Equal(seqs(got), seqsOf(append(recs, more...)...)) {
		t.Errorf("got %v, want %v", seqs(got), seqsOf(append(recs, more...)...))
	}
}

// A connection whose session is taken over is told so, if it speaks MQTT 5, and closed.
func TestTakenOverIsTold(t *testing.T) {
	t.Parallel()
	for _, v5 := range []bool{false, true} {
		r := mustRig(t, delivery.Config{})
		a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: v5}
		old := r.online(a)
		r.online(a)
		want := ""
		if v5 {
			want = "\xe0\x8e\x00" // Session taken over (MQTT 5, 3.14.2.1)
		}
		<-old.ended
		var said strings.Builder
		for _, pk := range old.others {
			said.Write(pk)
		}
		if said.String() != want {
			t.Errorf("MQTT 5 %v: the old connection was told %q, want %q", v5, said.String(), want)
		}
	}
}

// A connection that comes back and takes less at a time than the last gets no more of it
// at a time.
func TestResendHonoursReceiveMaximum(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true}
	p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 2}, signals("alice"))
	recs := r.publish(1, "bob", slices.Repeat([]string{"user/alice"}, 10)...)
	r.settled(p)
	p.offline(time.Hour)
	a.ReceiveMaximum = 3
	p = r.mute(a)
	for i, rec := range recs {
		got := r.settled(p)
		if len(got) > i+3 {
			t.Fatalf("%d messages are open, want 3 at most", len(got)-i)
		}
		waitfor.MustHold(t, "the next", func() bool { return p.count() > i })
		if got = p.arrivals(); got[i].seq != rec.Seq || !got[i].dup {
			t.Fatalf("message %d is %+v, want seq %d", i, got[i], rec.Seq)
		}
		p.session.Acknowledged(p.out, 4, got[i].id, false)
	}
}
