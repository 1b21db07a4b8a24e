package authhook_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"mynah/authhook"
	"mynah/chat"
)

func TestPublishRate(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	l := authhook.NewLimiter(authhook.LimiterConfig{PublishRate: 2, PublishBurst: 3, Now: func() time.Time { return now }})
	user := &authhook.Identity{Subject: "alice", Role: authhook.RoleUser}
	sent := func(id *authhook.Identity) (n int) {
		for range 10 {
			err := l.AllowPublish(id)
			if err == nil {
				n++
				continue
			}
			if refusal, ok := errors.AsType[*chat.Error](err); !ok || refusal.Code != chat.CodeRateLimited {
				t.Fatalf("got %v", err)
			}
		}
		return n
	}
	if n := sent(user); n != 3 {
		t.Errorf("a burst of %d", n)
	}
	if n := sent(&authhook.Identity{Subject: "bob", Role: authhook.RoleUser}); n != 3 {
		t.Errorf("bob pays for alice: %d", n)
	}
	now = now.Add(time.Second)
	if n := sent(user); n != 2 {
		t.Errorf("%d in a second", n)
	}
	if n := sent(&authhook.Identity{Subject: "alice", Role: authhook.RoleService}); n != 10 {
		t.Errorf("a service was limited to %d", n)
	}
	// Off by default, and a nil limiter limits nothing.
	for _, l := range []*authhook.Limiter{nil, authhook.NewLimiter(authhook.LimiterConfig{})} {
		for range 10_000 {
			if err := l.AllowPublish(user); err != nil {
				t.Fatal(err)
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
		_ = l.AllowPublish(&authhook.Identity{Subject: fmt.Sprintf("u%d", i), Role: authhook.RoleUser}) // counted, that is all
		now = now.Add(time.Millisecond)
	}
	if subjects, addresses := l.Size(); subjects > 160 || addresses > 160 {
		t.Errorf("%d subjects and %d addresses are held", subjects, addresses)
	}
}

func BenchmarkAllowPublish(b *testing.B) {
	l := authhook.NewLimiter(authhook.LimiterConfig{PublishRate: 1e9, PublishBurst: 1e9})
	id := &authhook.Identity{Subject: "alice", Role: authhook.RoleUser}
	b.ReportAllocs()
	for b.Loop() {
		if err := l.AllowPublish(id); err != nil {
			b.Fatal(err)
		}
	}
}
