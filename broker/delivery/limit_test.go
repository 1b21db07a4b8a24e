package delivery_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/session"
)

// Nobody can make sessions without end: of those of one subject, the ones that have been
// offline for longest give way, and never one that is connected. The archiver's stays.
func TestSessionsOfASubjectAreLimited(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	r := mustRig(t, delivery.Config{MaxSessions: 5, Now: func() time.Time { return now }})
	attach := func(client string, archiver bool) *peer {
		t.Helper()
		p := r.attach(delivery.Attachment{
			Key: session.Key{Subject: "alice", ClientID: client}, Expiry: time.Hour, Archiver: archiver,
		})
		if p.session == nil {
			t.FailNow()
		}
		t.Cleanup(func() { _, _ = p.out.Close(), p.conn.Close() })
		return p
	}
	attach("archiver", true).offline(time.Hour)
	attach("connected", false)
	for i := range 20 {
		now = now.Add(time.Second)
		attach(fmt.Sprint("device", i), false).offline(time.Hour)
	}
	left := map[string]bool{}
	for _, s := range r.engine.Sessions("alice") {
		left[s.ClientID] = true
	}
	if len(left) != 5 || !left["archiver"] || !left["connected"] || !left["device17"] || !left["device18"] || !left["device19"] {
		t.Errorf("left are %v, want the archiver's, the connected one and the last three", left)
	}
}

// The bound holds also for sessions that were all connected at once and then go, and for
// those that an engine finds when it starts: nobody need attach for that. The sessions of a
// service, which may read any topic, are not bounded and not counted.
func TestSessionsAreLimitedWhenTheyGo(t *testing.T) {
	t.Parallel()
	r := mustRig(t, delivery.Config{MaxSessions: 5})
	leave := func(n int, client string, anyTopic bool) {
		t.Helper()
		peers := make([]*peer, n)
		for i := range peers {
			peers[i] = r.attach(delivery.Attachment{
				Key: session.Key{Subject: "alice", ClientID: fmt.Sprint(client, i)}, Expiry: time.Hour, AnyTopic: anyTopic,
			})
		}
		for _, p := range peers {
			p.offline(time.Hour)
		}
	}
	want := func(when string, devices, instances int) {
		t.Helper()
		n := map[string]int{}
		for _, s := range r.engine.Sessions("alice") {
			n[s.ClientID[:6]]++
		}
		if n["device"] != devices || n["servic"] != instances {
			t.Errorf("%s: %v, want %d devices and %d instances of a service", when, n, devices, instances)
		}
	}
	leave(20, "service", true)
	want("a service's have gone", 0, 20)
	leave(30, "device", false)
	want("all have gone", 5, 20)
	r.cfg.MaxSessions = 3
	r.restart()
	want("after a start with a lower bound", 3, 20)
	r.cfg.MaxSessions = 5
	r.restart()
	want("after another start", 3, 20) // they have ended on disk, too
}

// Those that go at the same time end no more than are too many.
func TestSessionsGoAtOnce(t *testing.T) {
	t.Parallel()
	const bound = 100
	r := mustRig(t, delivery.Config{MaxSessions: bound})
	for round := range 8 {
		subject := fmt.Sprint("alice", round)
		var wg sync.WaitGroup
		all := make(chan struct{})
		for i := range 5 * bound {
			p := r.attach(delivery.Attachment{Key: session.Key{Subject: subject, ClientID: fmt.Sprint(i)}, Expiry: time.Hour})
			wg.Go(func() {
				<-all
				p.offline(time.Hour)
			})
		}
		close(all)
		wg.Wait()
		if n := len(r.engine.Sessions(subject)); n != bound {
			t.Errorf("%d sessions are left, want %d", n, bound)
		}
	}
}
