package ratelimit_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"mynah/chat"
	"mynah/internal/ratelimit"
)

// Several count as so many, or not at all.
func TestAllowN(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	l := ratelimit.New(10, time.Minute, func() time.Time { return now })
	if err := l.AllowN("a", 8); err != nil {
		t.Fatal(err)
	}
	err := l.AllowN("a", 4)
	wait, ok := err.(interface{ RetryAfter() time.Duration })
	if !ok || wait.RetryAfter() != 12*time.Second { // two at one every six seconds
		t.Fatalf("four where there is room for two: %v", err)
	}
	if err := l.AllowN("a", 2); err != nil {
		t.Errorf("the refused four were counted: %v", err)
	}
	l.RefundN("a", 10)
	if err := l.AllowN("a", 10); err != nil {
		t.Errorf("after all were taken back: %v", err)
	}
}

func TestAllow(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	l := ratelimit.New(3, time.Minute, func() time.Time { return now })
	for range 3 {
		if err := l.Allow("a"); err != nil {
			t.Fatal(err)
		}
	}
	err := l.Allow("a")
	refusal, ok := errors.AsType[*chat.Error](err)
	if !ok || refusal.Code != chat.CodeRateLimited {
		t.Fatalf("the fourth: %v", err)
	}
	wait, ok := err.(interface{ RetryAfter() time.Duration })
	if !ok || wait.RetryAfter() <= 0 || wait.RetryAfter() > 20*time.Second {
		t.Fatalf("Retry-After of %v", err)
	}
	if err := l.Allow("b"); err != nil {
		t.Errorf("another key: %v", err)
	}
	now = now.Add(wait.RetryAfter())
	if err := l.Allow("a"); err != nil {
		t.Errorf("after the wait: %v", err)
	}
	if err := l.Allow("a"); err == nil {
		t.Error("two after the wait for one")
	}
	l.Refund("a")
	l.Refund("nobody")
	if err := l.Allow("a"); err != nil {
		t.Errorf("after one was forgiven: %v", err)
	}
	now = now.Add(time.Hour)
	for range 3 {
		if err := l.Allow("a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Allow("a"); err == nil {
		t.Error("an hour's rest allows more than the burst")
	}
}

// Guards against memory that grows with the addresses of an attack, and against
// an attack that has its own counts forgotten while it lasts.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	l := ratelimit.New(1, time.Hour, func() time.Time { return now })
	for i := range 200_000 {
		if err := l.Allow(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.Len(); n > 50_000 {
		t.Errorf("%d keys remembered", n)
	}
	if err := l.Allow("199999"); err == nil {
		t.Error("one of the last is forgotten")
	}
}

// Guards against an owner of an IPv6 network that counts as 2^64 people.
func TestAddress(t *testing.T) {
	t.Parallel()
	for a, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "fe80::1%eth0": "fe80::",
	} {
		if got := ratelimit.AddressKey(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s counts as %s, want %s", a, got, want)
		}
	}
}
