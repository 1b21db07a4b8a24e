package delivery_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/outbox"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// trim makes the log forget everything up to seq.
func (r *rig) trim(seq uint64) {
	r.tb.Helper()
	if err := r.log.Compact(r.tb.Context(), seq); err != nil {
		r.tb.Fatal(err)
	}
	if first, _ := r.log.Bounds(); first != seq+1 {
		r.tb.Fatalf("the log begins at %d, want %d", first, seq+1)
	}
}

// gapNotice returns how the body of a notice begins and where it belongs.
func gapNotice(topic string, from, to uint64) string {
	return fmt.Sprintf(`%s "type":"notice.gap","body":{"from":%d,"to":%d}`, topic, from, to)
}

// gapsOf returns the notices among messages in that form, sorted, and the seqs of the rest.
func gapsOf(got []arrival) (gaps []string, rest []uint64) {
	for _, a := range got {
		if a.seq > 0 {
			rest = append(rest, a.seq)
			continue
		}
		_, tail, _ := strings.Cut(a.payload, `"ts":1,`)
		gaps = append(gaps, a.topic+" "+strings.TrimSuffix(tail, "}"))
	}
	slices.Sort(gaps)
	return gaps, rest
}

// A position right before the log's beginning is none that messages are missing after; one
// more is.
func TestGapBegins(t *testing.T) {
	t.Parallel()
	for lost := range 3 {
		r := mustRig(t, delivery.Config{Now: func() time.Time { return time.UnixMilli(1) }})
		a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
		p := r.online(a, session.Subscription{Filter: "user/alice", QoS: 1}, signals("alice"))
		had := r.publish(1, "bob", "user/alice")
		waitfor.MustHold(t, "it is acknowledged", func() bool { return p.session.Cursor() == had[0].Seq })
		p.offline(time.Hour)
		recs := r.publish(1, "bob", "user/alice", "user/alice", "user/alice")
		r.trim(had[0].Seq + uint64(lost))
		var want []string
		if lost > 0 {
			want = append(want, gapNotice("user/alice", recs[0].Seq, recs[lost-1].Seq))
		}
		gaps, rest := gapsOf(r.settled(r.online(a)))
		if !slices.Equal(gaps, want) || !slices.Equal(rest, seqsOf(recs[lost:]...)) {
			t.Errorf("%d lost: got %q and %v, want %q and %v", lost, gaps, rest, want, seqsOf(recs[lost:]...))
		}
	}
}

// What is missing on a topic begins with the subscription, if that is younger than the
// session's position; signals and topics subscribed to since then miss nothing, and there
// is no topic that a notice about everything could go to.
func TestGapOfYoungerSubscriptions(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{Now: func() time.Time { return time.UnixMilli(1) }})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, AnyTopic: true}
	p := r.online(a, session.Subscription{Filter: "group/a", QoS: 1}, session.Subscription{Filter: "group/#", QoS: 1}, signals("alice"))
	waitfor.MustHold(t, "the session is live", p.session.Live)
	p.offline(time.Hour)
	_, pos := r.log.Bounds()
	subscribe := func(filter string) { // without going on, so that the position stays where it is
		t.Helper()
		p := r.attach(a)
		if err := p.session.Subscribe([]session.Subscription{{Filter: filter, QoS: 1}}, nil); err != nil {
			t.Fatal(err)
		}
		p.offline(time.Hour)
	}
	before := r.publish(1, "bob", "group/a", "user/b", "user/c")
	subscribe("user/b")
	lost := r.publish(1, "bob", "group/a", "user/b", "user/c")
	subscribe("user/c")
	kept := r.publish(1, "bob", "group/a", "user/b", "user/c", "group/d")
	r.trim(lost[2].Seq)
	gaps, rest := gapsOf(r.settled(r.online(a)))
	want := []string{gapNotice("group/a", pos+1, lost[2].Seq), gapNotice("user/b", before[2].Seq+1, lost[2].Seq)}
	if !slices.Equal(gaps, want) {
		t.Errorf("got %q, want %q", gaps, want)
	}
	if !slices.Equal(rest, seqsOf(kept...)) {
		t.Errorf("got %v, want %v", rest, seqsOf(kept...))
	}
}

// The notice of a gap comes once, though the first message behind it has to wait for room.
func TestGapBeforeALargeMessage(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{
		Limits: &outbox.Limits{PerConn: 300}, Now: func() time.Time { return time.UnixMilli(1) },
	})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	p := r.online(a, session.Subscription{Filter: "user/alice", QoS: 1}, signals("alice"))
	waitfor.MustHold(t, "the session is live", p.session.Live)
	p.offline(time.Hour)
	lost, kept := r.publish(1, "bob", "user/alice"), message(1, "bob", "user/alice")
	kept.Tail = []byte(`"type":"text","body":"` + strings.Repeat("x", 1000) + `"}`)
	r.commit(kept)
	r.trim(lost[0].Seq)
	gaps, rest := gapsOf(r.settled(r.online(a)))
	want := []string{gapNotice("user/alice", lost[0].Seq, lost[0].Seq)}
	if !slices.Equal(gaps, want) || !slices.Equal(rest, seqsOf(kept)) {
		t.Errorf("got %q and %v, want %q and %v", gaps, rest, want, seqsOf(kept))
	}
}
