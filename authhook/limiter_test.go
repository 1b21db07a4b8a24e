package authhook_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"mynah/authhook"
	"mynah/chat"
)

// TestPublishRate guards the rate: a burst goes at once, then one after the other
// waits for its turn, and who would have to wait for too long is refused without
// making those after him wait any longer.
func TestPublishRate(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	l := authhook.NewLimiter(authhook.LimiterConfig{PublishRate: 2, PublishBurst: 3, Now: func() time.Time { return now }})
	// publish returns the waits of so many publishes at the same time, and how many
	// more were refused.
	publish := func(id *authhook.Identity, n int) (waits []time.Duration, refused int) {
		for range n {
			wait, err := l.Publish(id)
			if err == nil {
				waits = append(waits, wait)
				continue
			}
			if refusal, ok := errors.AsType[*chat.Error](err); !ok || refusal.Code != chat.CodeRateLimited || wait != 0 {
				t.Fatalf("got %v, %v", wait, err)
			}
			refused++
		}
		return waits, refused
	}
	user := &authhook.Identity{Subject: "alice", Role: authhook.RoleUser}
	waits, refused := publish(user, 20)
	if len(waits) != 13 || refused != 7 { // the burst, and ten in the five seconds after it
		t.Fatalf("waits of %v, and %d refused", waits, refused)
	}
	for i, wait := range waits {
		if want := time.Duration(max(0, i-2)) * time.Second / 2; wait != want {
			t.Errorf("publish %d waits for %v, want %v", i, wait, want)
		}
	}
	if waits, refused := publish(&authhook.Identity{Subject: "bob", Role: authhook.RoleUser}, 3); refused != 0 || waits[2] != 0 {
		t.Errorf("bob pays for alice: waits of %v, and %d refused", waits, refused)
	}
	now = now.Add(time.Second)
	if waits, refused := publish(user, 3); len(waits) != 2 || refused != 1 || waits[1] != 5*time.Second {
		t.Errorf("a second later: waits of %v, and %d refused", waits, refused)
	}
	now = now.Add(time.Hour)
	if waits, _ := publish(user, 4); waits[2] != 0 || waits[3] != time.Second/2 {
		t.Errorf("an hour later: waits of %v", waits)
	}
	if waits, _ := publish(&authhook.Identity{Subject: "alice", Role: authhook.RoleService}, 100); len(waits) != 100 || waits[99] != 0 {
		t.Errorf("a service was limited: waits of %v", waits)
	}
	// Off by default, and a nil limiter limits nothing.
	for _, l := range []*authhook.Limiter{nil, authhook.NewLimiter(authhook.LimiterConfig{})} {
		for range 10_000 {
			if wait, err := l.Publish(user); wait != 0 || err != nil {
				t.Fatal(wait, err)
			}
		}
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	l := authhook.NewLimiter(authhook.LimiterConfig{FailureRate: 1, FailureBurst: 2, Now: func() time.Time { return now }})
	exhaust := func(remote string) {
		t.Helper()
		if l.Failed(remote) || !l.AllowConnect(remote) {
			t.Errorf("%s: throttled after one", remote)
		}
		if !l.Failed(remote) || l.AllowConnect(remote) {
			t.Errorf("%s: not throttled after two", remote)
		}
		if l.Failed(remote) {
			t.Errorf("%s: throttled twice", remote)
		}
	}
	exhaust("192.0.2.1:1000")
	if l.AllowConnect("192.0.2.1:2000") || l.AllowConnect("192.0.2.1") || l.AllowConnect("[::ffff:192.0.2.1]:5") {
		t.Error("another port is another address")
	}
	if !l.AllowConnect("192.0.2.2:1000") {
		t.Error("a neighbour is throttled")
	}
	now = now.Add(time.Second)
	if !l.AllowConnect("192.0.2.1:1000") {
		t.Error("throttled for ever")
	}
	// A /64 is one host.
	exhaust("[2001:db8::1]:1000")
	if l.AllowConnect("[2001:db8::2]:1000") || !l.AllowConnect("[2001:db8:0:1::1]:1000") {
		t.Error("IPv6 is counted by /64")
	}
	for _, loopback := range []string{"127.0.0.1:1", "[::1]:1", "127.9.9.9"} {
		for range 10 {
			l.Failed(loopback)
		}
		if !l.AllowConnect(loopback) {
			t.Errorf("%s is throttled", loopback)
		}
	}
	var none *authhook.Limiter
	off := authhook.NewLimiter(authhook.LimiterConfig{FailureRate: -1})
	for range 1000 {
		none.Failed("192.0.2.1:1")
		off.Failed("192.0.2.1:1")
	}
	if !none.AllowConnect("192.0.2.1:1") || !off.AllowConnect("192.0.2.1:1") {
		t.Error("switched off and throttled")
	}
}

// TestLimiterIsBounded guards the memory against an attacker with many addresses.
func TestLimiterIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	l := authhook.NewLimiter(authhook.LimiterConfig{PublishRate: 1, Entries: 160, Now: func() time.Time { return now }})
	for i := range 5000 {
		l.Failed(fmt.Sprintf("10.0.%d.%d:1", i/256, i%256))
		_, _ = l.Publish(&authhook.Identity{Subject: fmt.Sprintf("u%d", i), Role: authhook.RoleUser}) // counted, that is all
		now = now.Add(time.Millisecond)
	}
	if subjects, addresses := l.Size(); subjects > 160 || addresses > 160 {
		t.Errorf("%d subjects and %d addresses are held", subjects, addresses)
	}
}

func BenchmarkPublish(b *testing.B) {
	l := authhook.NewLimiter(authhook.LimiterConfig{PublishRate: 1e9, PublishBurst: 1e9})
	id := &authhook.Identity{Subject: "alice", Role: authhook.RoleUser}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Publish(id); err != nil {
			b.Fatal(err)
		}
	}
}
