package broker

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"mynah/authhook"
	"mynah/broker/state"
	"mynah/internal/waitfor"
)

// When somebody was last seen is told from memory or from disk, the same; whoever was online
// when the broker was killed was seen until it is started again, and not at each later start.
// Memory is bounded, whoever has ever been here.
func TestLastSeen(t *testing.T) {
	t.Parallel()
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: []byte("a secret for tests, 32 bytes or more")})
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	b, err := New(Config{DataDir: t.TempDir(), MQTTAddr: "127.0.0.1:0", Verifier: verifier, PresenceSettle: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Stop(t.Context()) //nolint:errcheck // it has not been started
	clock := time.UnixMilli(1_800_000_000_000)
	p := b.presence
	p.now = func() time.Time { return clock }
	want := func(subject string, online bool, at time.Time) {
		t.Helper()
		for _, from := range []string{"memory", "disk", "memory again"} {
			state, known := p.state(subject)
			if !known || state != (presenceState{User: subject, Online: online, LastSeen: at.UnixMilli()}) {
				t.Errorf("from %s: %+v, known %t", from, state, known)
			}
			if from == "memory" {
				clear(p.away)
			}
		}
	}
	away := func(subject string) {
		p.came(subject)
		p.gone(subject)
		// It settles at once, but on a goroutine of its own.
		waitfor.MustHold(t, subject+" is offline", func() bool { return p.online() == 0 })
	}
	away("ann")
	away("anna")
	left := clock
	clock = clock.Add(time.Hour)
	p.came("bob")
	want("ann", false, left)
	want("bob", true, clock)
	for filter, found := range map[string][]string{
		"presence/+": {"presence/ann", "presence/anna", "presence/bob"}, "presence/#": {"presence/ann", "presence/anna", "presence/bob"},
		"#": nil, "+/ann": nil, "+/+": nil, "presence/bob": {"presence/bob"}, "plant/+": nil, "presence/+/+": nil, "presence": nil,
	} {
		if got := p.topics(filter); !slices.Equal(got, found) {
			t.Errorf("%s finds %q, want %q", filter, got, found)
		}
	}
	for _, nobody := range []string{"an", "annab", "carol"} {
		if state, known := p.state(nobody); known {
			t.Errorf("%s is known: %+v", nobody, state)
		}
	}

	stored := func() {
		waitfor.MustHold(t, "who has come and gone is stored", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return !p.telling
		})
	}
	stored()
	// Somebody comes and goes while it is looked up on disk when they were here before.
	clear(p.away)
	clock = clock.Add(time.Minute)
	store := p.store
	p.store = meanwhile{store, func() { p.store = store; p.came("ann"); p.leave("ann", &seen{last: clock}) }}
	if state, _ := p.state("ann"); state.LastSeen != clock.UnixMilli() {
		t.Errorf("%+v was the time before", state)
	}
	want("ann", false, clock)

	stored()
	killed := clock.Add(time.Hour) // and started again
	for clock = killed; clock.Before(killed.Add(3 * time.Hour)); clock = clock.Add(time.Hour) {
		clear(p.subjects)
		clear(p.away)
		if err := p.restore(); err != nil {
			t.Fatal(err)
		}
		want("bob", false, killed)
		want("anna", false, left)
	}
	for i := range maxAway + 10 {
		p.rememberLocked(fmt.Sprint("guest", i), 1)
	}
	if len(p.away) > maxAway {
		t.Errorf("%d are remembered", len(p.away))
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
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: []byte("a secret for tests, 32 bytes or more")})
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	b, err := New(Config{DataDir: t.TempDir(), MQTTAddr: "127.0.0.1:0", Verifier: verifier, PresenceSettle: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Stop(t.Context()) //nolint:errcheck // it has not been started
	p := b.presence
	disk := make(chan struct{})
	p.store = hung{p.store, disk}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 3 {
			subject := fmt.Sprint("ann", i)
			p.came(subject)
			if m, known := b.plain.Retained("presence/" + subject); !known || m == nil {
				t.Errorf("%s is online, and that is not known", subject)
			}
			p.gone(subject)
		}
		if _, known := b.plain.Retained("presence/nobody"); known {
			t.Error("it is known, without looking, that somebody was never here")
		}
	}()
	select {
	case <-done:
	case <-time.After(waitfor.Timeout):
		t.Fatal("it waits for the disk")
	}
	waitfor.MustHold(t, "all are offline", func() bool { return p.online() == 0 })
	for i := range 3 {
		if state, known := p.remembered(fmt.Sprint("ann", i)); !known || state.Online {
			t.Errorf("%+v, known %t, want offline", state, known)
		}
	}
	close(disk)
	waitfor.MustHold(t, "all is stored", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		clear(p.away)
		return len(p.unsaved) == 0
	})
	if state, known := p.state("ann1"); !known || state.Online || state.LastSeen == 0 {
		t.Errorf("from disk: %+v, known %t, want offline", state, known)
	}
	if m := b.plain.LookUpRetained("presence/nobody"); m != nil {
		t.Errorf("somebody who was never here: %s", m.Payload)
	}
}
