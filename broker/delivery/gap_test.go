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

// What was sent, was not acknowledged and is gone from the log when the client comes back
// is made known to it as well.
func TestGapInTheWindow(t *testing.T) {
	t.Parallel()
	for _, restarted := range []bool{false, true} {
		r := mustRig(t, delivery.Config{})
		a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour, V5: true, Groups: []string{"g"}}
		p := r.mute(a, session.Subscription{Filter: "user/alice", QoS: 1}, session.Subscription{Filter: "group/+", QoS: 1})
		sent := r.publish(1, "bob", "group/g", "user/alice", "group/g", "group/g", "user/alice")
		sent = append(sent, r.publish(1, "bob", "group/g")...) // in a block of its own, which stays
		waitfor.MustHold(t, "all are sent", func() bool { return p.count() == len(sent) })
		p.offline(time.Hour)
		if err := r.log.Compact(t.Context(), sent[4].Seq); err != nil {
			t.Fatal(err)
		}
		if restarted {
			r.restart()
		}
		p = r.online(a)
		waitfor.MustHold(t, "two notices and a message", func() bool { return p.count() >= 3 })
		got := p.arrivals()
		slices.SortFunc(got[:2], func(a, b arrival) int { return len(a.topic) - len(b.topic) })
		for i, want := range []struct {
			topic    string
			from, to int
		}{{"group/g", 0, 3}, {"user/alice", 1, 4}} {
			from, to := sent[want.from].Seq, sent[want.to].Seq
			var first, last uint64
			_, rest, _ := cutBody(got[i].payload)
			if _, err := fmt.Sscanf(rest, `{"from":%d,"to":%d}`, &first, &last); err != nil ||
				got[i].topic != want.topic || got[i].seq != 0 || first > from || last < to || last >= sent[5].Seq {
				t.Errorf("notice %+v, want one of %d to %d on %s", got[i], from, to, want.topic)
			}
		}
		if got[2].seq != sent[5].Seq {
			t.Errorf("after the notices comes %+v, want seq %d", got[2], sent[5].Seq)
		}
	}
}

// cutBody returns what comes after "body": in a payload.
func cutBody(payload string) (before, after string, ok bool) {
	const key = `"body":`
	for i := range len(payload) - len(key) {
		if payload[i:i+len(key)] == key {
			return payload[:i], payload[i+len(key):], true
		}
	}
	return payload, "", false
}

// A member of very many groups is told of the gap in each, once, however many rounds that
// takes; groups that never had a message are not mentioned.
func TestGapInManyGroups(t *testing.T) {
	t.Parallel()
	const groups, silent = 300, 50
	r := mustRig(t, delivery.Config{Limits: &outbox.Limits{PerConn: 4 << 10}})
	a := delivery.Attachment{Key: key("alice"), Expiry: time.Hour}
	var topics []string
	for g := range groups + silent {
		a.Groups = append(a.Groups, fmt.Sprintf("g%d", g))
		if g < groups {
			topics = append(topics, fmt.Sprintf("group/g%d", g))
		}
	}
	r.online(a, session.Subscription{Filter: "group/+", QoS: 1}).offline(time.Hour)
	lost := r.publish(1, "bob", topics...)
	kept := r.publish(1, "bob", "group/g0")
	if err := r.log.Compact(t.Context(), lost[groups-1].Seq); err != nil {
		t.Fatal(err)
	}
	p := r.online(a)
	waitfor.MustHold(t, "the message after the gap", func() bool {
		got := p.arrivals()
		return len(got) > 0 && got[len(got)-1].seq == kept[0].Seq
	})
	told := map[string]int{}
	for _, a := range p.arrivals() {
		if a.seq == 0 {
			told[a.topic]++
		}
	}
	for _, topic := range topics {
		if told[topic] != 1 {
			t.Errorf("%s: %d notices, want 1", topic, told[topic])
		}
	}
	if len(told) != groups {
		t.Errorf("notices on %d topics, want %d", len(told), groups)
	}
}
