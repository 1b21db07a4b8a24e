package directory_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"mynah/authhook"
	"mynah/chat"
	"mynah/internal/waitfor"
)

// soon is how fast the issue wants a change to have its effect.
const soon = time.Second

// within fails the test unless ok becomes true within a second of the change.
func (w *world) within(t *testing.T, what string, change func(), ok func() bool) {
	t.Helper()
	change()
	began := w.watch.Elapsed()
	waitfor.MustHold(t, what, ok)
	if took := w.watch.Since(began); took > soon {
		t.Errorf("%s: %v after the change, want less than %v", what, took, soon)
	}
}

// A new member must receive the group, also by group/+, and a removed one must get
// nothing more.
func TestMembership(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	w.group("g", "invitation", "alice")
	alice := w.listen("alice", "group/+")
	bob := w.listen("bob", "group/+", "user/bob")
	alice.PublishAcked("group/g", 1, "before")
	alice.Receive()
	bob.ExpectNothing()

	in := func(id string) bool {
		groups, err := w.dir.Groups(context.Background(), id)
		return err == nil && len(groups) == 1
	}
	w.within(t, "bob is a member", func() { w.exec(`INSERT INTO members (grp, account) VALUES ('g', 'bob')`) }, func() bool { return in("bob") })
	// The watcher regroups right after the cache; publish until it arrives.
	began := w.watch.Elapsed()
	for {
		alice.PublishAcked("group/g", 1, "hello")
		bob.PublishAcked("user/bob", 1, "mark")
		if m := bob.ReceiveAcked(); m.To == "group/g" {
			break
		}
		if w.watch.Since(began) > soon {
			t.Fatal("bob does not receive within a second of joining")
		}
	}

	stranger := w.connect("carol")
	if ack := stranger.PublishAcked("group/g", 1, "hi"); ack.ReasonCode != 0x87 {
		t.Errorf("a stranger's publish: reason %#x, want 0x87", ack.ReasonCode)
	}

	var removed atomic.Bool
	unwatch := w.dir.Watch(func(c authhook.Change) {
		if c.Kind == authhook.ChangeLeft && c.Subject == "bob" {
			removed.Store(true)
		}
	})
	defer unwatch()
	// This watcher comes after the broker's: when it is told, bob has been regrouped.
	w.within(t, "the watchers are told", func() { w.exec(`DELETE FROM members WHERE account = 'bob'`) }, removed.Load)
	alice.PublishAcked("group/g", 1, "without bob")
	bob.PublishAcked("user/bob", 1, "end")
	for m := bob.ReceiveAcked(); m.Body != "end"; m = bob.ReceiveAcked() {
		if m.Body == "without bob" {
			t.Fatal("bob received what was said after he was removed")
		}
	}
}

func code(err error) chat.Code {
	refusal, _ := errors.AsType[*chat.Error](err)
	if refusal == nil {
		return ""
	}
	return refusal.Code
}

// Each right, asked before and after the change that concerns it. A cache that
// does not follow fails here.
func TestRightsFollow(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	ctx := context.Background()
	w.group("g", "invitation", "alice", "bob")
	w.group("room", "open")
	w.exec(`UPDATE members SET role = 'owner' WHERE account = 'alice'`)
	w.exec(`INSERT INTO accounts (id) VALUES ('alice'), ('bob'), ('carol')`)
	w.exec(`INSERT INTO identities (provider, subject, account) SELECT 'mail', id || '@example.com', id FROM accounts`)
	alice, bob := &authhook.Identity{Subject: "alice", Session: "s1"}, &authhook.Identity{Subject: "bob", TokenID: "j1"}
	speak := func(id, group string, member bool) func() chat.Code {
		return func() chat.Code { return code(w.dir.MaySpeak(ctx, id, group, member)) }
	}
	write := func(from, to string) func() chat.Code {
		return func() chat.Code { return code(w.dir.MayWrite(ctx, from, to)) }
	}
	see := func(viewer, id string) func() chat.Code {
		return func() chat.Code { return code(w.dir.MaySee(ctx, viewer, id)) }
	}
	connect := func(id *authhook.Identity) func() chat.Code {
		return func() chat.Code { return code(w.dir.MayConnect(ctx, id)) }
	}
	for _, step := range []struct {
		what   string
		ask    func() chat.Code
		before chat.Code
		change string
		after  chat.Code
	}{
		{"muted until later", speak("bob", "g", false), "", `UPDATE members SET muted_until = now() + '1 hour' WHERE account = 'bob'`, chat.CodeMuted},
		{"unmuted", speak("bob", "g", false), chat.CodeMuted, `UPDATE members SET muted_until = NULL WHERE account = 'bob'`, ""},
		{"all muted", speak("bob", "g", false), "", `UPDATE groups SET muted = true WHERE id = 'g'`, chat.CodeMuted},
		{"the owner may speak", speak("alice", "g", false), "", ``, ""},
		{"an admin may speak", speak("bob", "g", false), chat.CodeMuted, `UPDATE members SET role = 'admin' WHERE account = 'bob'`, ""},
		{"token members are muted too", speak("tok", "g", true), chat.CodeMuted, `UPDATE groups SET muted = false WHERE id = 'g'`, ""},
		{"a token member is banned", speak("tok", "g", true), "", `INSERT INTO bans (grp, account) VALUES ('g', 'tok')`, chat.CodeNotMember},
		{"and let in again", speak("tok", "g", true), chat.CodeNotMember, `DELETE FROM bans`, ""},
		{"a member is banned", speak("bob", "g", false), "", `INSERT INTO bans (grp, account) VALUES ('g', 'bob')`, chat.CodeNotMember},
		{"a group of tokens only", speak("tok", "nowhere", true), "", ``, ""},
		{"blocked", write("bob", "alice"), "", `INSERT INTO blocks (owner, peer) VALUES ('alice', 'bob')`, chat.CodeNotAllowed},
		{"not seen by who is blocked", see("bob", "alice"), chat.CodeNotAllowed, `DELETE FROM blocks`, chat.CodeNotAllowed},
		{"unblocked", write("bob", "alice"), "", ``, ""},
		{"contacts only", write("bob", "alice"), "", `UPDATE accounts SET write_policy = 'contacts' WHERE id = 'alice'`, chat.CodeNotAllowed},
		{"a contact", write("bob", "alice"), chat.CodeNotAllowed, `INSERT INTO contacts (owner, peer, state) VALUES ('alice', 'bob', 'contact'), ('bob', 'alice', 'contact')`, ""},
		{"a contact is seen", see("bob", "alice"), "", `DELETE FROM contacts`, chat.CodeNotAllowed},
		{"seen in a common group", see("carol", "alice"), chat.CodeNotAllowed, `INSERT INTO members (grp, account) VALUES ('g', 'carol')`, ""},
		{"not seen by wish", see("carol", "alice"), "", `UPDATE accounts SET presence_policy = 'nobody' WHERE id = 'alice'`, chat.CodeNotAllowed},
		{"an open room is no acquaintance", see("alice", "bob"), chat.CodeNotAllowed, `INSERT INTO members (grp, account) VALUES ('room', 'alice'), ('room', 'bob')`, chat.CodeNotAllowed},
		{"whom only tokens speak of is seen", see("carol", "tok"), "", ``, ""},
		{"a revoked session", connect(alice), "", `INSERT INTO revocations (session, account, expires_at) VALUES ('s1', 'alice', now() + '1 hour')`, chat.CodeNotAllowed},
		{"a revoked token", connect(bob), "", `INSERT INTO revocations (session, account, expires_at) VALUES ('j1', 'bob', now() + '1 hour')`, chat.CodeNotAllowed},
		{"an unknown subject", connect(&authhook.Identity{Subject: "nobody"}), "", ``, ""},
		{"disabled", connect(&authhook.Identity{Subject: "carol"}), "", `UPDATE accounts SET disabled_at = now() WHERE id = 'carol'`, chat.CodeNotAllowed},
		{"enabled", connect(&authhook.Identity{Subject: "carol"}), chat.CodeNotAllowed, `UPDATE accounts SET disabled_at = NULL WHERE id = 'carol'`, ""},
		{"dissolved", speak("alice", "g", false), "", `UPDATE groups SET dissolved_at = now() WHERE id = 'g'`, chat.CodeNotMember},
	} {
		waitfor.MustHold(t, step.what+", before", func() bool { return step.ask() == step.before })
		w.within(t, step.what, func() {
			if step.change != "" {
				w.exec(step.change)
			}
		}, func() bool { return step.ask() == step.after })
	}
}

// A muted member is refused and still reads; a disabled account's connections end.
func TestMutedAndDisabledOnMQTT(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	w.exec(`INSERT INTO accounts (id) VALUES ('bob')`)
	w.group("g", "invitation", "alice", "bob")
	alice, bob := w.listen("alice", "group/g"), w.listen("bob", "group/g")
	if ack := bob.PublishAcked("group/g", 1, "one"); ack.ReasonCode != 0 {
		t.Fatalf("reason %#x", ack.ReasonCode)
	}
	bob.ReceiveAcked()
	w.exec(`UPDATE members SET muted_until = now() + '1 hour' WHERE account = 'bob'`)
	began := w.watch.Elapsed()
	for bob.PublishAcked("group/g", 1, "two").ReasonCode == 0 {
		bob.ReceiveAcked()
		if w.watch.Since(began) > soon {
			t.Fatal("a muted member still speaks after a second")
		}
	}
	alice.PublishAcked("group/g", 1, "you can hear me")
	if m := bob.ReceiveAcked(); m.Body != "you can hear me" {
		t.Fatalf("the muted member received %v", m.Body)
	}
	began = w.watch.Elapsed()
	w.exec(`UPDATE accounts SET disabled_at = now() WHERE id = 'bob'`)
	bob.ExpectEnd()
	if took := w.watch.Since(began); took > soon {
		t.Errorf("a disabled account's connection ended after %v", took)
	}
}

// Subscribing to an open room joins it, and its next publish is allowed although
// the feed may not have told yet.
func TestJoinBySubscribing(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	w.group("room", "open")
	w.group("closed", "approval")
	device := w.connect("sensor", func(c *authhook.TokenClaims) { c.Role = authhook.RoleDevice })
	if codes := device.Subscribe(1, "group/room", "group/closed", "group/none"); codes[0] != 1 || codes[1] < 0x80 || codes[2] < 0x80 {
		t.Fatalf("SUBACK %#x, want the room only", codes)
	}
	if ack := device.PublishAcked("group/room", 1, "21.5"); ack.ReasonCode != 0 {
		t.Fatalf("reason %#x", ack.ReasonCode)
	}
	if m := device.ReceiveAcked(); m.From != "sensor" {
		t.Fatalf("from %q", m.From)
	}
	var members int
	must(t, w.db.QueryRow(context.Background(), `SELECT members FROM groups WHERE id = 'room'`).Scan(&members))
	if members != 1 {
		t.Errorf("the room has %d members, want 1", members)
	}
	w.exec(`INSERT INTO bans (grp, account) VALUES ('room', 'sensor')`)
	waitfor.MustHold(t, "the banned device cannot come back", func() bool { return device.Subscribe(1, "group/room")[0] >= 0x80 })
}
