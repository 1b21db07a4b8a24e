package delivery

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// toldPlain counts the subscriptions that it is told to be over.
type toldPlain struct{ ended atomic.Int64 }

func (*toldPlain) Subscribed(*Session, session.Subscription) {}
func (p *toldPlain) Unsubscribed(*Session, string)           { p.ended.Add(1) }
func (*toldPlain) LookUpRetained(string) *PlainMessage       { return nil }
func (*toldPlain) Retained(topic string) (*PlainMessage, bool) {
	return &PlainMessage{Topic: topic, QoS: 1}, true
}
func (*toldPlain) Orphaned([]Orphan) {}

// waits returns a session that does not get anything and that n messages wait for, the i-th
// until expires(i).
func waits(t *testing.T, cfg Config, n int, expires func(i int) int64) *Session {
	t.Helper()
	s := mustAttach(t, mustEngine(t, cfg), Attachment{Key: session.Key{Subject: "alice", ClientID: "c"}, Expiry: time.Hour})
	for i := range n {
		if !s.Queue(&PlainMessage{Topic: "p/x", QoS: 1, Expires: expires(i)}, PlainOptions{QoS: 1}) {
			t.Fatalf("message %d is not taken", i)
		}
	}
	return s
}

func never(int) int64 { return 0 }

// quickest returns how long the quickest of several runs takes, each prepared before: a
// machine that stands still does not do so every time.
func quickest(prepare, run func()) time.Duration {
	best := time.Hour
	for range 7 {
		prepare()
		began := time.Now()
		run()
		best = min(best, time.Since(began))
	}
	return max(best, time.Microsecond)
}

// One UNSUBSCRIBE holds a session's lock, for which everybody's acknowledgements may wait,
// for one walk through what waits, however many filters it names, and for none if nothing of
// them is there. It was a walk for each of 65,000 filters: ten seconds.
func TestUnsubscribeGoesThroughTheQueueOnce(t *testing.T) {
	told := &toldPlain{}
	s := waits(t, Config{PlainTopics: told, PlainMessages: 1 << 20}, 9000, never)
	filters := make([]string, 1000)
	for i := range filters {
		filters[i] = fmt.Sprintf("p/%d/#", i)
	}
	ask := func() {
		s.ForgetRetained(filters...)
		for _, f := range filters {
			s.QueueRetained(f, []string{"p/r"}, PlainOptions{QoS: 1})
		}
	}
	one := quickest(ask, func() { s.ForgetRetained(filters[0]) })
	all := quickest(ask, func() { s.ForgetRetained(filters...) })
	if all > 100*one {
		t.Errorf("%d filters take %v, and one takes %v", len(filters), all, one)
	}
	if none := quickest(func() {}, func() { s.ForgetRetained(filters...) }); none > 10*one {
		t.Errorf("%d filters of which nothing waits take %v, and one of which something does takes %v", len(filters), none, one)
	}
	if q := s.plain; len(q.waiting) != 9000 || q.asked != nil || q.bytes != 9000*q.waiting[0].cost() {
		t.Errorf("%d wait, %d bytes are counted, filters %v", len(q.waiting), q.bytes, q.asked)
	}

	if err := s.Subscribe([]session.Subscription{{Filter: "p/1/#", QoS: 1}, {Filter: "p/2/#", QoS: 1}}, nil); err != nil {
		t.Fatal(err)
	}
	ask()
	if err := s.Unsubscribe(append(filters, filters...)); err != nil {
		t.Fatal(err)
	}
	if n := told.ended.Load(); n != 2 || len(s.Filters()) != 0 {
		t.Errorf("%d subscriptions are said to be over, want the two that there were; left are %v", n, s.Filters())
	}
	if n := len(s.plain.asked); n != len(filters)-2 {
		t.Errorf("retained messages of %d filters wait, want %d", n, len(filters)-2)
	}
}

// Of what a filter has asked for, nothing is left in the accounts when it has been sent, or
// may not be any more.
func TestRetainedThatWaitAreAccounted(t *testing.T) {
	t.Parallel()
	s := waits(t, Config{PlainTopics: &toldPlain{}}, 0, never)
	s.QueueRetained("p/#", []string{"p/a", "p/b"}, PlainOptions{QoS: 0})
	s.QueueRetained("q/#", []string{"q/a"}, PlainOptions{QoS: 0})
	s.ForgetPlain(map[string]struct{}{"p/a": {}, "q/a": {}})
	if _, waits := s.plain.asked["p/#"]; !waits || len(s.plain.asked) != 1 {
		t.Errorf("filters %v have something waiting, want p/#", s.plain.asked)
	}
	s.Start(s.Attached())
	waitfor.MustHold(t, "what is retained is sent", s.Live)
	if s.plain.asked != nil || s.plain.bytes != 0 {
		t.Errorf("filters %v have something waiting, %d bytes", s.plain.asked, s.plain.bytes)
	}
}

// What a full session does not take is refused without a walk through what waits for it: the
// publisher waits meanwhile, for each session and with each message. Forty full sessions
// brought 6,000 messages a second down to 80.
func TestFullSessionsAreCheap(t *testing.T) {
	const start = 1_800_000_000_000
	for name, expires := range map[string]func(int) int64{
		"never":       never,
		"late":        func(i int) int64 { return start + 3_600_000 + int64(i) },
		"one by one":  func(i int) int64 { return start + 60_000 + int64(i) },
		"all but one": func(i int) int64 { return int64(i&1) * (start + 60_000 + int64(i)) },
	} {
		var now atomic.Int64
		cost := func(n int) time.Duration {
			now.Store(start)
			s := waits(t, Config{PlainMessages: n, PlainBytes: 1 << 30, PlainTotal: 1 << 32, Now: func() time.Time { return time.UnixMilli(now.Load()) }}, n, expires)
			now.Store(start + 60_000)
			return quickest(func() {}, func() {
				for range 1000 {
					now.Add(1) // one more expires
					s.Queue(&PlainMessage{Topic: "p/x", QoS: 1}, PlainOptions{QoS: 1})
				}
			})
		}
		if few, many := cost(200), cost(20_000); many > 20*few {
			t.Errorf("messages that expire %s: with 20,000 waiting 1,000 take %v, with 200 %v", name, many, few)
		}
	}
}
