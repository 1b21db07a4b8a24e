package delivery

import (
	"slices"
	"testing"
	"time"

	"mynah/broker/packet"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// asked is a time that the housekeeping wants to be woken after.
type asked struct {
	after time.Duration
	wake  chan time.Time
}

// alarm is the clock of a housekeeping that a test wakes by hand.
type alarm chan asked

func (a alarm) after(d time.Duration) <-chan time.Time {
	wake := make(chan time.Time, 1)
	a <- asked{d, wake}
	return wake
}

// set waits for the housekeeping to ask for just these times, in any order, and returns
// what wakes it for all of them.
func (a alarm) set(t *testing.T, want ...time.Duration) (wake func()) {
	t.Helper()
	var got []time.Duration
	var all []asked
	for range want {
		select {
		case one := <-a:
			got, all = append(got, one.after), append(all, one)
		case <-time.After(30 * time.Second):
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("the housekeeping wants to be woken after %v, want %v", got, want)
	}
	return func() {
		for _, one := range all {
			one.wake <- time.Time{}
		}
	}
}

// wants is set and wakes it at once.
func (a alarm) wants(t *testing.T, want ...time.Duration) {
	t.Helper()
	a.set(t, want...)()
}

// sleeps fails if the housekeeping wants to be woken for anything: what it is asked for
// here is the next that it does.
func (a alarm) sleeps(t *testing.T, e *Engine) {
	t.Helper()
	e.refillSoon.add(&newSession(e, session.Key{}, 0).feed)
	a.wants(t, refillInterval)
	waitfor.MustHold(t, "the housekeeping is done", func() bool {
		e.refillSoon.mu.Lock()
		defer e.refillSoon.mu.Unlock()
		return len(e.refillSoon.list) == 0
	})
}

// A broker without anything to do is not woken, and with something to do it is woken for
// that: twenty times a second it looked for sessions to be filled up again.
func TestHouseSleeps(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000_000_000)
	e := mustNew(t, Config{Now: func() time.Time { return now }})
	a := make(alarm, 100)
	e.after = a.after
	e.Start()
	a.wants(t, expireSoonest) // for what the store may have had
	a.sleeps(t, e)

	s := mustFill(t, e, 100)
	a.sleeps(t, e)
	for id := range uint16(90) {
		s.Acknowledged(s.Attached(), packet.Puback, id+1, false)
	}
	a.wants(t, saveInterval, fitInterval)
	a.wants(t, fitInterval) // the first time it has just been needed
	a.sleeps(t, e)

	s.Detach(s.Attached(), time.Hour)
	a.wants(t, saveInterval, expireSoonest)
	a.wants(t, expireLatest)
	wake := a.set(t, expireLatest)
	mustAttach(t, e, Attachment{Key: s.Key, Expiry: time.Hour})
	wake()
	a.wants(t, saveInterval)
	a.sleeps(t, e)
	s.Detach(s.Attached(), 20*time.Second)
	a.wants(t, saveInterval, expireSoonest)
	a.wants(t, 20*time.Second)
}

// Who leaves does not put off the look for sessions that have expired, and an archiver's
// session, which never does, is nothing to look for.
func TestHouseLooksForExpired(t *testing.T) {
	t.Parallel()
	e := mustNew(t, Config{})
	a := make(alarm, 100)
	e.after = a.after
	e.Start()
	wake := a.set(t, expireSoonest)
	e.checkExpirySoon()
	waitfor.MustHold(t, "it has been heard", func() bool { return len(e.left) == 0 })
	a.sleeps(t, e)
	wake()

	s := mustAttach(t, e, Attachment{Key: session.Key{Subject: "archiver", ClientID: "c"}, Expiry: time.Nanosecond, Archiver: true})
	s.Detach(s.Attached(), time.Nanosecond)
	a.wants(t, saveInterval, expireSoonest)
	a.sleeps(t, e)
}

// When very many positions have been stored, the next wait for longer.
func TestHouseSavesManyLessOften(t *testing.T) {
	t.Parallel()
	e := mustNew(t, Config{})
	a := make(alarm, 100)
	e.after = a.after
	e.Start()
	a.wants(t, expireSoonest)
	saved := func() bool {
		e.dirty.mu.Lock()
		defer e.dirty.mu.Unlock()
		return len(e.dirty.list) == 0
	}
	for _, round := range []struct {
		sessions int
		after    time.Duration
	}{{1, saveInterval}, {saveMany + 1, saveInterval}, {1, saveManyInterval}, {1, saveInterval}} {
		for range round.sessions {
			e.dirty.add(&newSession(e, session.Key{}, 0).feed) // of which nothing is stored
		}
		a.wants(t, round.after)
		waitfor.MustHold(t, "they are stored", saved)
	}
}
