package authhook_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"mynah/authhook"
)

func TestRevoked(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	clock := now
	r := authhook.NewRevoked(func() time.Time { return clock })
	id := &authhook.Identity{Subject: "alice", TokenID: "t", Session: "s", Issued: now}
	var told []authhook.Revocation
	stop := r.Watch(func(v authhook.Revocation) { told = append(told, v) })
	revoke := func(v authhook.Revocation) {
		t.Helper()
		if err := r.Revoke(v); err != nil {
			t.Fatal(err)
		}
	}
	hour := now.Add(time.Hour)
	for _, v := range []authhook.Revocation{
		{TokenID: "s", Until: hour},
		{Session: "t", Until: hour},
		{Subject: "bob", Until: hour},
		{TokenID: "alice", Until: hour},
		{Subject: "alice", Before: now, Until: hour},
	} {
		revoke(v)
		if r.Has(id) {
			t.Errorf("%+v must not concern %+v", v, id)
		}
	}
	if r.Has(&authhook.Identity{Subject: "carol"}) {
		t.Error("a token without jti and sid was revoked by others'")
	}
	if !r.Has(&authhook.Identity{Subject: "alice", Issued: now.Add(-time.Second)}) || !r.Has(&authhook.Identity{Subject: "alice"}) {
		t.Error("tokens issued before, or nobody knows when, are revoked")
	}
	for _, v := range []authhook.Revocation{{TokenID: "t", Until: hour}, {Session: "s", Until: hour}, {Subject: "alice", Until: hour}} {
		revoke(v)
		if !r.Has(id) {
			t.Errorf("%+v is not held", v)
		}
	}
	// A narrower or shorter one takes nothing back.
	revoke(authhook.Revocation{Subject: "alice", Before: now, Until: now.Add(time.Minute)})
	clock = now.Add(2 * time.Minute)
	if !r.Has(&authhook.Identity{Subject: "alice", Issued: clock}) {
		t.Error("a later revocation undid an earlier one")
	}
	clock = hour
	if r.Has(id) {
		t.Error("held beyond its time")
	}
	if len(told) != 9 {
		t.Errorf("the watcher was told %d times", len(told))
	}
	stop()
	revoke(authhook.Revocation{TokenID: "x", Until: hour.Add(time.Hour)})
	if len(told) != 9 {
		t.Error("a watcher that stopped was told")
	}

	for name, v := range map[string]authhook.Revocation{
		"nothing":  {Until: hour},
		"two":      {TokenID: "t", Subject: "alice", Until: hour},
		"no until": {TokenID: "t"},
	} {
		if r.Revoke(v) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	var none *authhook.Revoked
	if none.Has(id) {
		t.Error("a nil set holds something")
	}
}

// TestRevokedIsBounded: expired entries go, valid ones are never dropped.
func TestRevokedIsBounded(t *testing.T) {
	t.Parallel()
	clock := time.Unix(1_800_000_000, 0)
	r := authhook.NewRevoked(func() time.Time { return clock })
	for i := range 10_000 {
		if err := r.Revoke(authhook.Revocation{TokenID: fmt.Sprint(i), Until: clock.Add(time.Second)}); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(100 * time.Millisecond)
	}
	if n := r.Len(); n > 100 {
		t.Errorf("%d are held, ten of them valid", n)
	}
	for i := 0; ; i++ {
		err := r.Revoke(authhook.Revocation{Session: fmt.Sprint(i), Until: clock.Add(time.Hour)})
		if err == nil {
			continue
		}
		if !errors.Is(err, authhook.ErrRevokedFull) || i < authhook.MaxRevocations-100 {
			t.Errorf("after %d: %v", i, err)
		}
		break
	}
	if !r.Has(&authhook.Identity{Session: "0"}) {
		t.Error("a valid one was dropped")
	}
}

// TestVerifyRevoked: Verify asks the set.
func TestVerifyRevoked(t *testing.T) {
	t.Parallel()
	r := authhook.NewRevoked(nil)
	v := newVerifier(t, authhook.VerifierConfig{Secret: secret, Revoked: r})
	token := goodToken(authhook.TokenClaims{Subject: "alice", Session: "s"})
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	if err := r.Revoke(authhook.Revocation{Session: "s", Until: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), token); !errors.Is(err, authhook.ErrRevoked) {
		t.Errorf("got %v", err)
	}
}
