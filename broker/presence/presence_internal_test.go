package presence

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"mynah/broker/msglog"
	"mynah/broker/state"
	"mynah/internal/waitfor"
)

// mustTracker returns a Tracker whose subjects settle at once, with a store on disk.
func mustTracker(tb testing.TB, now func() time.Time) *Tracker {
	tb.Helper()
	l, err := msglog.Open(tb.TempDir(), msglog.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	p, err := New(Config{
		Store: l.State(), Logger: slog.New(slog.DiscardHandler), Now: now, Notify: func(string) {},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		p.Stop()
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	return p
}

// When somebody was last seen is told from memory or from disk, the same; whoever was online
// when the broker was killed was seen until it is started again, and not at each later start.
// Memory is bounded, whoever has ever been here.
func TestLastSeen(t *testing.T) {
	t.Parallel()
	clock := time.UnixMilli(1_800_000_000_000)
	p := mustTracker(t, func() time.Time { return clock })
	want := func(subject string, online bool, at time.Time) {
		t.Helper()
		for _, from := range []string{"memory", "disk", "memory again"} {
			state, known := p.lookUp(subject)
			if !known || state != (State{User: subject, Online: online, LastSeen: at.UnixMilli()}) {
				t.Errorf("from %s: %+v, known %t", from, state, known)
			}
			if from == "memory" {
				clear(p.lastSeen)
			}
		}
	}
	away := func(subject string) {
		p.Connected(subject)
		p.Disconnected(subject)
		// It settles at once, but on a goroutine of its own.
		waitfor.MustHold(t, subject+" is offline", func() bool { return p.Online() == 0 })
	}
	away("ann")
	away("anna")
	left := clock
	clock = clock.Add(time.Hour)
	p.Connected("bob")
	want("ann", false, left)
	want("bob", true, clock)
	var subjects []string
	p.Subjects(func(subject string) { subjects = append(subjects, subject) })
	if slices.Sort(subjects); !slices.Equal(subjects, []string{"ann", "anna", "bob"}) {
		t.Errorf("%q have been seen", subjects)
	}
	for _, nobody := range []string{"an", "annab", "carol"} {
		if state, known := p.lookUp(nobody); known {
			t.Errorf("%s is known: %+v", nobody, state)
		}
	}

	stored := func() {
		waitfor.MustHold(t, "who has come and gone is stored", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return !p.notifying
		})
	}
	stored()
	// Somebody comes and goes while it is looked up on disk when they were here before.
	clear(p.lastSeen)
	clock = clock.Add(time.Minute)
	store := p.store
	p.store = meanwhile{store, func() { p.store = store; p.Connected("ann"); p.leaveLocked("ann", &tracked{leftAt: clock}) }}
	if state, _ := p.lookUp("ann"); state.LastSeen != clock.UnixMilli() {
		t.Errorf("%+v was the time before", state)
	}
	want("ann", false, clock)

	stored()
	killed := clock.Add(time.Hour) // and started again
	for clock = killed; clock.Before(killed.Add(3 * time.Hour)); clock = clock.Add(time.Hour) {
		clear(p.online)
		clear(p.lastSeen)
		if err := p.restore(); err != nil {
			t.Fatal(err)
		}
		want("bob", false, killed)
		want("anna", false, left)
	}
	for i := range maxLastSeen + 10 {
		p.rememberLocked(fmt.Sprint("guest", i), 1)
	}
	if len(p.lastSeen) > maxLastSeen {
		t.Errorf("%d are remembered", len(p.lastSeen))
	}
}

// meanwhile is a store in which something happens after a scan.
type meanwhile struct {
	state.Store
	happens func()
}

func (m meanwhile) Scan(prefix string, fn func(key string, value []byte) bool) error {
	defer m.happens()
	return m.Store.Scan(prefix, fn)
}

// hung is a store on a disk that hangs until the channel is closed.
type hung struct {
	state.Store
	disk chan struct{}
}

func (h hung) Apply(ops []state.Op, sync bool) error {
	<-h.disk
	return h.Store.Apply(ops, sync)
}

func (h hung) Scan(prefix string, fn func(string, []byte) bool) error {
	<-h.disk
	return h.Store.Scan(prefix, fn)
}

// Who comes and goes does not wait for the disk, and neither does whoever is to be told of
// somebody in memory: a session asks while it is locked. Both did, under presence's lock.
func TestPresenceDoesNotWaitForTheDisk(t *testing.T) {
	t.Parallel()
	p := mustTracker(t, time.Now)
	disk := make(chan struct{})
	p.store = hung{p.store, disk}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 3 {
			subject := fmt.Sprint("ann", i)
			p.Connected(subject)
			if payload, known := p.InMemory(subject); !known || payload == nil {
				t.Errorf("%s is online, and that is not known", subject)
			}
			p.Disconnected(subject)
		}
		if _, known := p.InMemory("nobody"); known {
			t.Error("it is known, without looking, that somebody was never here")
		}
	}()
	select {
	case <-done:
	case <-time.After(waitfor.Timeout):
		t.Fatal("it waits for the disk")
	}
	waitfor.MustHold(t, "all are offline", func() bool { return p.Online() == 0 })
	for i := range 3 {
		if state, known := p.inMemory(fmt.Sprint("ann", i)); !known || state.Online {
			t.Errorf("%+v, known %t, want offline", state, known)
		}
	}
	close(disk)
	waitfor.MustHold(t, "all is stored", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		clear(p.lastSeen)
		return len(p.unsaved) == 0
	})
	if state, known := p.lookUp("ann1"); !known || state.Online || state.LastSeen == 0 {
		t.Errorf("from disk: %+v, known %t, want offline", state, known)
	}
	if payload := p.LookUp("nobody"); payload != nil {
		t.Errorf("somebody who was never here: %s", payload)
	}
}
