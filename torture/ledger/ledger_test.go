package ledger_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"mynah/torture/ledger"
)

// story is a small run without violations: three messages of alice to a group,
// one direct message to bob, all archived and received by a subscriber at QoS 2,
// one at QoS 1, one that came late and alice's own other device.
type story struct {
	l    *ledger.Ledger
	msgs []*ledger.Message
	seqs []uint64
	rows []*ledger.Row
	got  []*ledger.Delivery
}

func tell() *story {
	s := &story{l: ledger.New(ledger.Rules{Ordered: true}), seqs: []uint64{11, 12, 14, 15}}
	s.l.Subscribe("two", ledger.Subscription{Topic: "group/g", QoS: 2})
	s.l.Subscribe("one", ledger.Subscription{Topic: "group/g", QoS: 1}, ledger.Subscription{Topic: "user/bob", QoS: 1})
	s.l.Subscribe("self", ledger.Subscription{Topic: "user/alice", QoS: 2})
	for i, topic := range []string{"group/g", "group/g", "group/g", "user/bob"} {
		if i == 2 {
			s.l.Subscribe("late", ledger.Subscription{Topic: "group/g", QoS: 2, Since: time.Now()})
		}
		key := fmt.Sprintf("a-%d", i)
		m := &ledger.Message{Key: key, Sender: "alice", Topic: topic, QoS: 2, Number: uint64(i) + 1, Digest: uint64(i) + 100} //nolint:gosec // small
		s.l.Sent(m)
		s.l.Acked(key)
		s.msgs = append(s.msgs, m)
		s.rows = append(s.rows, &ledger.Row{Seq: s.seqs[i], Topic: topic, Sender: "alice", Content: s.content(i, 0)})
	}
	for i, prev := range []uint64{0, 11, 12} {
		s.got = append(s.got, s.delivery("two", "group/g", 2, i, prev), s.delivery("one", "group/g", 1, i, prev))
	}
	s.got = append(s.got, s.delivery("one", "user/bob", 1, 3, 0), s.delivery("self", "user/alice", 2, 3, 0), s.delivery("late", "group/g", 2, 2, 12))
	return s
}

func (s *story) content(i int, prev uint64) ledger.Content {
	m := s.msgs
	if i < len(m) {
		return ledger.Content{Key: m[i].Key, Digest: m[i].Digest, Seq: s.seqs[i], Prev: prev, From: "alice", To: m[i].Topic}
	}
	topic := "group/g"
	if i == 3 {
		topic = "user/bob"
	}
	return ledger.Content{Key: fmt.Sprintf("a-%d", i), Digest: uint64(i) + 100, Seq: s.seqs[i], Prev: prev, From: "alice", To: topic} //nolint:gosec // small
}

func (s *story) delivery(sub, topic string, qos byte, i int, prev uint64) *ledger.Delivery {
	return &ledger.Delivery{Subscriber: sub, Topic: topic, QoS: qos, Conn: 1, Content: s.content(i, prev)}
}

func (s *story) end() *ledger.Report {
	for _, r := range s.rows {
		s.l.Archived(r)
	}
	for _, d := range s.got {
		s.l.Received(d)
	}
	return s.l.Check()
}

func (s *story) drop(i int)      { s.got = append(s.got[:i:i], s.got[i+1:]...) }
func (s *story) swap(i, j int)   { s.got[i], s.got[j] = s.got[j], s.got[i] }
func (s *story) repeat(i, c int) { d := *s.got[i]; d.Conn = c; s.got = append(s.got, &d) }

func TestNothingWrongIsFoundWhereNothingIs(t *testing.T) {
	t.Parallel()
	s := tell()
	r := s.end()
	if !r.OK() || r.Acked != 4 || r.Archived != 4 || r.Received != 9 || s.l.Outstanding() != 0 {
		t.Errorf("%+v, %d outstanding", r, s.l.Outstanding())
	}
}

// Guards against a ledger that cannot fail. Every kind of violation is found
// and counted as its kind.
func TestViolationsAreFound(t *testing.T) {
	t.Parallel()
	type counts struct{ missing, duplicate, reordered, odd int }
	for name, c := range map[string]struct {
		do   func(*story)
		want counts
		says string
	}{
		"acknowledged, not archived": {
			do:   func(s *story) { s.rows = s.rows[:3]; s.drop(7); s.drop(6) },
			want: counts{missing: 3}, says: "a-3 on user/bob",
		},
		"received, not archived": {
			do:   func(s *story) { s.rows = s.rows[:3] },
			want: counts{missing: 3}, says: "received, not archived",
		},
		"archived twice": {
			do: func(s *story) {
				again := *s.rows[0]
				again.Seq, again.Content.Seq = 16, 16
				s.rows = append(s.rows, &again)
			},
			want: counts{duplicate: 1}, says: "archived twice",
		},
		"archived with another content": {
			do: func(s *story) { s.rows[1].Content.Digest++ }, want: counts{missing: 1}, says: "another content",
		},
		"archived under another sender": {
			do: func(s *story) { s.rows[1].Sender = "mallory" }, want: counts{missing: 1}, says: "another content",
		},
		"archived, never sent": {
			do: func(s *story) {
				s.rows = append(s.rows, &ledger.Row{Seq: 20, Topic: "group/g", Sender: "alice", Content: ledger.Content{Key: "x", Seq: 20}})
			},
			want: counts{odd: 1}, says: "nobody sent",
		},
		"last not received": {do: func(s *story) { s.drop(6) }, want: counts{missing: 1}, says: "not received: one on user/bob"},
		// A gap counts as missing, and prev shows it.
		"middle not received": {do: func(s *story) { s.drop(2) }, want: counts{missing: 1, reordered: 1}, says: "not received: two on group/g"},
		// prev of the second does not fit the one before, nor that of the third.
		"first not received":      {do: func(s *story) { s.drop(0) }, want: counts{missing: 1, reordered: 1}, says: "prev broken"},
		"late one not received":   {do: func(s *story) { s.drop(8) }, want: counts{missing: 1}, says: "late on group/g"},
		"own device left out":     {do: func(s *story) { s.drop(7) }, want: counts{missing: 1}, says: "self on user/alice"},
		"twice at QoS 2":          {do: func(s *story) { s.repeat(0, 2) }, want: counts{duplicate: 1}, says: "received twice at QoS 2"},
		"twice on one connection": {do: func(s *story) { s.repeat(1, 1) }, want: counts{duplicate: 1}, says: "twice on one connection"},
		"at two seqs": {
			do: func(s *story) { s.repeat(1, 2); s.got[len(s.got)-1].Content.Seq = 99 }, want: counts{duplicate: 1}, says: "at two seqs",
		},
		// The order is wrong, prev is wrong twice, and so is the sender's order.
		"out of order": {do: func(s *story) { s.swap(2, 4) }, want: counts{reordered: 3}, says: "out of order"},
		"prev broken":  {do: func(s *story) { s.got[4].Content.Prev = 11 }, want: counts{reordered: 1}, says: "prev broken"},
		"another seq than archived": {
			do: func(s *story) { s.got[7].Content.Seq = 16 }, want: counts{odd: 1}, says: "another seq",
		},
		"received with another content": {do: func(s *story) { s.got[3].Content.Digest = 1 }, want: counts{missing: 1}, says: "another content"},
		"received under another sender": {do: func(s *story) { s.got[3].Content.From = "mallory" }, want: counts{missing: 1}, says: "another content"},
		"wrong QoS":                     {do: func(s *story) { s.got[0].QoS = 1 }, want: counts{odd: 1}, says: "wrong QoS"},
		"not subscribed":                {do: func(s *story) { s.got[8].Topic = "group/h" }, want: counts{missing: 1, odd: 1}, says: "not subscribed to"},
		"wrong topic": {
			do:   func(s *story) { s.got = append(s.got, s.delivery("one", "user/bob", 1, 2, 15)) },
			want: counts{odd: 1, reordered: 2}, says: "wrong topic",
		},
		"unreadable": {do: func(s *story) { s.got[8].Unreadable = "no JSON" }, want: counts{missing: 1, odd: 1}, says: "not a message"},
		"never sent": {do: func(s *story) { s.got[8].Content.Key = "x" }, want: counts{missing: 1, odd: 1}, says: "never sent"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := tell()
			c.do(s)
			r := s.end()
			if got := (counts{r.Missing, r.Duplicate, r.Reordered, r.OtherViolations}); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if r.OK() {
				t.Error("the report says that all is well")
			}
			if all := strings.Join(r.Details, "\n"); !strings.Contains(all, c.says) {
				t.Errorf("the details do not say %q:\n%s", c.says, all)
			}
		})
	}
}

// What MQTT allows is not counted as a violation.
func TestAllowedIsNotBlamed(t *testing.T) {
	t.Parallel()
	s := tell()
	s.repeat(1, 2) // QoS 1, on the next connection
	r := s.end()
	if !r.OK() || r.Redelivered != 1 {
		t.Errorf("%+v", r)
	}

	l := ledger.New(ledger.Rules{Ordered: true})
	l.Subscribe("s", ledger.Subscription{Topic: "group/g", QoS: 1})
	l.Sent(&ledger.Message{Key: "never stored", Sender: "a", Topic: "group/g", QoS: 1, Number: 1})
	if r := l.Check(); !r.OK() || r.Acked != 0 {
		t.Errorf("a message that was never acknowledged: %+v", r)
	}
	if n := l.Outstanding(); n != 0 {
		t.Errorf("%d outstanding, want 0", n)
	}
	l.Acked("never stored")
	if n := l.Outstanding(); n != 1 {
		t.Errorf("%d outstanding, want 1", n)
	}
}

func TestReadEnvelope(t *testing.T) {
	t.Parallel()
	live := `{"seq":12,"prev":11,"from":"a","to":"group/g","ts":1,"type":"text","body":"|k-1|hello","mid":"m"}`
	c, err := ledger.ReadEnvelope([]byte(live), false)
	want := ledger.Digest(map[string]any{"type": "text", "body": "|k-1|hello", "mid": "m"})
	if err != nil || c != (ledger.Content{Key: "k-1", Digest: want, Seq: 12, Prev: 11, From: "a", To: "group/g"}) {
		t.Errorf("%+v, %v", c, err)
	}
	archived := `{"to":"group/g","ts":1,"mid":"m","seq":12,"body":"|k-1|hello","from":"a","type":"text"}`
	if a, err := ledger.ReadEnvelope([]byte(archived), true); err != nil || a.Digest != want || a.Seq != 12 {
		t.Errorf("archived: %+v, %v", a, err)
	}
	for name, body := range map[string]string{
		"binary": `"type":"binary","body":"fGstMXz/"`,
		"data":   `"type":"data","body":{"text":"|k-1|","n":1}`,
	} {
		c, err := ledger.ReadEnvelope([]byte(`{"seq":1,"prev":0,"from":"a","to":"user/b","ts":1,`+body+`}`), false)
		if err != nil || c.Key != "k-1" {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	for name, bad := range map[string]string{
		"no JSON":  `hello`,
		"no seq":   `{"prev":11,"from":"a","to":"group/g","ts":1,"type":"text","body":"|k|"}`,
		"no prev":  `{"seq":12,"from":"a","to":"group/g","ts":1,"type":"text","body":"|k|"}`,
		"no key":   `{"seq":12,"prev":11,"from":"a","to":"group/g","ts":1,"type":"text","body":"hello"}`,
		"no text":  `{"seq":12,"prev":11,"from":"a","to":"group/g","ts":1,"type":"text","body":7}`,
		"no from":  `{"seq":12,"prev":11,"to":"group/g","ts":1,"type":"text","body":"|k|"}`,
		"archived": archived,
	} {
		if c, err := ledger.ReadEnvelope([]byte(bad), false); err == nil {
			t.Errorf("%s: read as %+v", name, c)
		}
	}
}
