package pubsub

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"mynah/broker/session"
)

// A shared subscription to everything does not take in $SYS.
func TestSharedSubscriptionIsNotOfSystem(t *testing.T) {
	t.Parallel()
	p := &Topics{}
	p.Subscribed(&session.Session{}, session.Subscription{Filter: "$share/g/#", QoS: 1})
	if p.fanOut(&Message{Topic: "$SYS/broker/time"}) {
		t.Error("it has a subscriber")
	}
}

// A session with several filters that match gets a message once: at the highest QoS, with all
// identifiers, as any of them wants the retain flag, and by those without No Local if it is
// its own (MQTT 5, 3.3.4, 3.8.3.1).
func TestOverlappingSubscriptions(t *testing.T) {
	t.Parallel()
	p := &Topics{}
	s := &session.Session{Key: session.Key{Subject: "alice", ClientID: "phone"}}
	for _, f := range []session.Subscription{
		{Filter: "a/b", QoS: 0, Identifier: 7},
		{Filter: "a/+", QoS: 2, Identifier: 3, NoLocal: true},
		{Filter: "a/#", QoS: 1, Identifier: 7, RetainAsPublished: true},
		{Filter: "#", QoS: 1},
		{Filter: "b/#", QoS: 2, Identifier: 9},
		{Filter: "$share/g/a/b", QoS: 2, Identifier: 11},
	} {
		p.Subscribed(s, f)
	}
	for from, want := range map[session.Key]struct {
		qos byte
		ids int
	}{{Subject: "bob"}: {2, 2}, s.Key: {1, 1}} {
		a := p.audienceOf(&Message{Topic: "a/b", From: from})
		o := a.sessions[s]
		if len(a.sessions) != 1 || o.QoS != want.qos || len(o.IDs) != want.ids || !o.Retain {
			t.Errorf("from %q: %d sessions, %+v, want QoS %d and %d identifiers", from.Subject, len(a.sessions), o, want.qos, want.ids)
		}
		if len(a.shares) != 1 || a.shares["$share/g/a/b"][s].Identifier != 11 {
			t.Errorf("from %q: %d shared subscriptions", from.Subject, len(a.shares))
		}
	}
}

// online has some subjects online, and nobody else was ever here.
type online []string

func (on online) InMemory(subject string) (payload []byte, known bool) {
	if slices.Contains(on, subject) {
		return []byte(subject), true
	}
	return nil, false
}

func (on online) LookUp(subject string) []byte {
	payload, _ := on.InMemory(subject)
	return payload
}

func (on online) Subjects(fn func(string)) {
	for _, subject := range on {
		fn(subject)
	}
}

// Presence is found by filters that name it, and is a retained message like others. Nobody is
// looked up later of whom there is nothing to say at the time of the SUBSCRIBE.
func TestRetainedPresence(t *testing.T) {
	t.Parallel()
	p := &Topics{cfg: Config{
		Presence: online{"bob", "ann", "anna"},
		MayRead:  func(_ *session.Session, topic string) bool { return topic != "presence/anna" },
	}}
	for filter, found := range map[string][]string{
		"presence/+": {"presence/ann", "presence/bob"}, "presence/#": {"presence/ann", "presence/bob"},
		"#": nil, "+/ann": nil, "+/+": nil, "presence/bob": {"presence/bob"}, "plant/+": nil, "presence/+/+": nil, "presence": nil,
		"presence/anna": nil, "presence/nobody": nil,
	} {
		if got := p.RetainedFor(nil, filter); !slices.Equal(got, found) {
			t.Errorf("%s finds %q, want %q", filter, got, found)
		}
	}
	if m, known := p.Retained("presence/ann"); !known || m == nil || m.Topic != "presence/ann" || string(m.Payload) != "ann" || !m.Retain {
		t.Errorf("ann: %+v, known %t", m, known)
	}
	if m, known := p.Retained("presence/nobody"); known || m != nil {
		t.Errorf("nobody: %+v, known %t", m, known)
	}
	if m := p.LookUpRetained("presence/nobody"); m != nil {
		t.Errorf("nobody: %+v", m)
	}
}

// That each of many subscriptions that match has an identifier of its own costs little beside
// finding them. An identifier was looked for among all others, with the tree locked.
func TestIdentifiersCostLittle(t *testing.T) {
	t.Parallel()
	const levels = 15 // and 2^15 filters that match
	topic := &Message{Topic: strings.Repeat("/a", levels)}
	s := &session.Session{Key: session.Key{Subject: "alice", ClientID: "phone"}}
	var with, without Topics
	for i := range 1 << levels {
		filter := ""
		for at := range levels {
			filter += [2]string{"/a", "/+"}[i>>at&1]
		}
		with.Subscribed(s, session.Subscription{Filter: filter, Identifier: i + 1})
		without.Subscribed(s, session.Subscription{Filter: filter})
	}
	cost := func(p *Topics, ids int) time.Duration {
		began := time.Now()
		a := p.audienceOf(topic)
		took := time.Since(began)
		if got := a.sessions[s].IDs; len(got) != ids || !slices.IsSorted(got) {
			t.Fatalf("%d identifiers, want %d, sorted", len(got), ids)
		}
		return took
	}
	long, short := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
	for range 5 {
		long, short = min(long, cost(&with, 1<<levels)), min(short, cost(&without, 0))
	}
	t.Logf("with identifiers %v, without %v", long, short)
	if long > 3*short {
		t.Errorf("with identifiers it takes %v, without %v: more than 3 times as long", long, short)
	}
}
