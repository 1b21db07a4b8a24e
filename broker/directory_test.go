package broker_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"mynah/authhook"
	"mynah/broker"
	"mynah/internal/mqttest"
)

// directory is a directory that a test directs.
type directory struct {
	authhook.OpenDirectory
	asked func(subject string) // called when groups are asked for, before the change is seen

	mu     sync.Mutex
	groups map[string][]string
	err    error
	blind  chan struct{} // MaySee waits until it is closed, if not nil, whatever its context says
	watch  func(authhook.Change)
}

func (d *directory) Groups(_ context.Context, subject string) ([]string, error) {
	d.mu.Lock()
	groups, err, asked := slices.Clone(d.groups[subject]), d.err, d.asked
	d.asked = nil
	d.mu.Unlock()
	if asked != nil {
		asked(subject)
	}
	return groups, err
}

func (d *directory) MaySpeak(_ context.Context, subject, group string, member bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if member || slices.Contains(d.groups[subject], group) {
		return nil
	}
	return d.OpenDirectory.MaySpeak(context.Background(), subject, group, false)
}

func (d *directory) MaySee(context.Context, string, string) error {
	d.mu.Lock()
	blind := d.blind
	d.mu.Unlock()
	if blind != nil {
		<-blind
	}
	return nil
}

func (d *directory) Watch(fn func(authhook.Change)) (stop func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.watch == nil { // the auth hook's comes second in this order; it has no part in groups
		d.watch = fn
	} else {
		first := d.watch
		d.watch = func(c authhook.Change) { first(c); fn(c) }
	}
	return func() {}
}

// join makes somebody a member and tells.
func (d *directory) join(subject, group string) {
	d.mu.Lock()
	d.groups[subject] = append(slices.Clone(d.groups[subject]), group)
	watch := d.watch
	d.mu.Unlock()
	watch(authhook.Change{Kind: authhook.ChangeJoined, Subject: subject, Group: group})
}

func withDirectory(d *directory) func(*broker.Config) {
	return func(c *broker.Config) { c.Directory = d; c.PresenceSettle = -1 }
}

// A broker that starts while the database is away does not take members out of their
// groups: they get what they missed, from the place where they were.
func TestDirectoryAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := &directory{groups: map[string][]string{"alice": {"room"}, "bob": {"room"}}}
	b := mustStart(t, dir, withDirectory(d))
	o := keep(user(t, "alice", "phone"))
	alice := mqttest.Dial(t, b.MQTTAddr().String(), o)
	alice.Subscribe(1, "group/+")
	alice.Disconnect()
	bob := mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "phone"))
	bob.PublishAcked("group/room", 1, "one")
	ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
	defer cancel()
	if err := b.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.err, d.watch = errors.New("no database"), nil
	d.mu.Unlock()
	b = mustStart(t, dir, withDirectory(d))
	alice = mqttest.Dial(t, b.MQTTAddr().String(), o)
	if m := alice.ReceiveAcked(); m.Body != "one" {
		t.Errorf("got %v", m.Body)
	}
	if codes := alice.Subscribe(1, "user/alice"); codes[0] != 1 {
		t.Errorf("SUBACK %#x for one's own topic", codes[0])
	}
	bob = mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "phone"))
	bob.PublishAcked("group/room", 1, "two")
	if m := alice.ReceiveAcked(); m.Body != "two" {
		t.Errorf("got %v: the SUBSCRIBE took the group away", m.Body)
	}
}

// A fresh token with fewer groups takes them away also while the database cannot be asked,
// which leaves what the database has said.
func TestRenewalWhileTheDirectoryIsAway(t *testing.T) {
	t.Parallel()
	d := &directory{groups: map[string][]string{"alice": {"room"}}}
	b := mustStart(t, t.TempDir(), withDirectory(d))
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, v5(user(t, "alice", "phone", "club", "old")))
	alice.Subscribe(1, "group/+")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone", "room", "club", "old"))
	d.mu.Lock()
	d.err = errors.New("no database")
	d.mu.Unlock()
	fresh := mustToken(t, authhook.TokenClaims{Subject: "alice", Groups: []string{"club"}})
	if ack := alice.PublishAcked("$mynah/token", 1, fresh); ack.ReasonCode != 0 {
		t.Fatalf("the fresh token got %#x %q", ack.ReasonCode, ack.Properties.ReasonString)
	}
	for _, group := range []string{"old", "club", "room"} {
		bob.PublishAcked("group/"+group, 1, group)
	}
	for _, want := range []string{"club", "room"} {
		if m := alice.ReceiveAcked(); m.Body != want {
			t.Errorf("got %v, want %s", m.Body, want)
		}
	}
	alice.ExpectNothing()
}

// Somebody is taken into a group in the very moment in which the broker looks up the
// groups of its connection or of its SUBSCRIBE: the older answer must not win.
func TestJoinWhileConnecting(t *testing.T) {
	t.Parallel()
	d := &directory{groups: map[string][]string{"bob": {"one", "two"}}}
	b := mustStart(t, t.TempDir(), withDirectory(d))
	bob := mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "phone"))
	o := keep(user(t, "alice", "phone"))
	mqttest.Dial(t, b.MQTTAddr().String(), o).Subscribe(1, "group/+")
	during := func(group string) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.asked = func(string) { d.join("alice", group) }
	}
	during("one")
	alice := mqttest.Dial(t, b.MQTTAddr().String(), o)
	bob.PublishAcked("group/one", 1, "hello")
	if m := alice.ReceiveAcked(); m.To != "group/one" {
		t.Errorf("got %s", m.To)
	}
	during("two")
	alice.Subscribe(1, "user/alice")
	bob.PublishAcked("group/two", 1, "hello")
	if m := alice.ReceiveAcked(); m.To != "group/two" {
		t.Errorf("got %s", m.To)
	}
}

// A directory that takes its time to say who may see whom holds up presence, and nobody
// who connects.
func TestSlowDirectoryHoldsUpNobody(t *testing.T) {
	t.Parallel()
	d := &directory{groups: map[string][]string{}}
	b := mustStart(t, t.TempDir(), withDirectory(d))
	addr := b.MQTTAddr().String()
	watch := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	watch.Subscribe(0, "presence/bob")
	blind := make(chan struct{})
	see := sync.OnceFunc(func() { close(blind) })
	t.Cleanup(see) // before the broker is stopped
	d.mu.Lock()
	d.blind = blind
	d.mu.Unlock()
	for _, who := range []string{"bob", "carol", "dave"} { // who would wait for ever
		mqttest.Dial(t, addr, user(t, who, "phone")).ExpectNothing()
	}
	see()
	if m := watch.Next(); m.TopicName != "presence/bob" {
		t.Errorf("got %q", m.TopicName)
	}
}

// Somebody who was an administrator comes back as a user and reads no more than one.
func TestDemotion(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := keep(mqttest.Options{ClientID: "c", Token: mustToken(t, authhook.TokenClaims{Subject: "carol", Role: authhook.RoleAdmin})})
	admin := mqttest.Dial(t, addr, o)
	admin.Subscribe(1, "user/#", "group/#", "user/alice")
	admin.Disconnect()
	carol := mqttest.Dial(t, addr, keep(user(t, "carol", "c")))
	if !carol.Connack.SessionPresent {
		t.Fatal("no session")
	}
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone", "room"))
	bob.PublishAcked("user/alice", 1, "secret")
	bob.PublishAcked("group/room", 1, "secret")
	carol.ExpectNothing()
}
