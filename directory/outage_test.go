package directory_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"mynah/authhook"
	"mynah/chat"
	"mynah/directory"
	"mynah/internal/pgtest"
	"mynah/internal/waitfor"
	"mynah/schema"
)

// PostgreSQL is stopped during chat: nobody notices, and what is not known is
// refused without waiting. A broker that starts meanwhile knows what was kept.
// What was changed by SQL is seen when PostgreSQL is back.
func TestOutage(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	ctx := context.Background()
	must(t, schema.Migrate(ctx, server.URL()))
	file := filepath.Join(t.TempDir(), "cache", "directory")
	kept := func(c *directory.Config) { c.CacheFile, c.SaveEvery = file, 50*time.Millisecond }
	w := newWorld(t, server.URL(), kept)
	w.exec(`INSERT INTO accounts (id) VALUES ('alice'), ('bob')`)
	w.exec(`INSERT INTO blocks (owner, peer) VALUES ('alice', 'mallory')`)
	w.group("g", "invitation", "alice", "bob")
	w.group("later", "invitation")
	alice, bob := w.listen("alice", "group/+", "user/alice"), w.listen("bob", "group/+", "user/bob")
	mallory := w.connect("mallory")
	talk := func(text string) {
		t.Helper()
		began := w.watch.Elapsed()
		for _, topic := range []string{"group/g", "user/alice"} {
			if ack := bob.PublishAcked(topic, 1, text); ack.ReasonCode != 0 {
				t.Fatalf("%s to %s: reason %#x", text, topic, ack.ReasonCode)
			}
			if m := alice.ReceiveAcked(); m.Body != text {
				t.Fatalf("received %v, want %q", m.Body, text)
			}
			bob.ReceiveAcked()
		}
		if took := w.watch.Since(began); took > 2*time.Second {
			t.Errorf("%s: took %v", text, took)
		}
	}
	talk("before")
	must(t, w.dir.MayWrite(ctx, "bob", "late")) // and so it knows that late has no account
	if ack := mallory.PublishAcked("user/alice", 1, "x"); ack.ReasonCode != 0x87 {
		t.Fatalf("mallory: reason %#x", ack.ReasonCode)
	}
	last := &authhook.Identity{Subject: "asked-for-last"} // who is kept with all before
	waitfor.MustHold(t, "what is known is kept", func() bool {
		_ = w.dir.MayConnect(ctx, last) // of no interest
		content, err := os.ReadFile(file)
		return err == nil && bytes.Contains(content, []byte(last.Subject))
	})

	w.db.Reset() // the test's own connections would keep a smart stop waiting
	server.Stop(syscall.SIGINT)
	waitfor.MustHold(t, "the directory knows", w.dir.Away)
	talk("during")
	if ack := mallory.PublishAcked("user/alice", 1, "x"); ack.ReasonCode != 0x87 {
		t.Errorf("mallory during the outage: reason %#x, want 0x87", ack.ReasonCode)
	}
	began := w.watch.Elapsed()
	if got := code(w.dir.MayWrite(ctx, "bob", "somebody-unknown")); got != chat.CodeUnavailable {
		t.Errorf("to somebody unknown: %q, want unavailable", got)
	}
	if took := w.watch.Since(began); took > time.Second {
		t.Errorf("the refusal took %v", took)
	}
	if err := w.dir.MayConnect(ctx, &authhook.Identity{Subject: "mynah-archiver", Role: authhook.RoleArchiver}); err != nil {
		t.Errorf("the archiver during the outage: %v", err)
	}

	if err := w.dir.MayConnect(ctx, &authhook.Identity{Subject: "late"}); err != nil {
		t.Errorf("who has no account, during the outage: %v", err)
	}

	// Another broker, started from what was kept.
	copied := file + ".2"
	content, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(copied, content, 0o600))
	second, err := directory.New(directory.Config{DatabaseURL: server.URL(), CacheFile: copied})
	must(t, err)
	began = w.watch.Elapsed()
	must(t, second.Start(ctx))
	t.Cleanup(func() { stop(t, second) })
	if took := w.watch.Since(began); took > 5*time.Second {
		t.Errorf("starting without PostgreSQL took %v", took)
	}
	for _, known := range []struct {
		got, want chat.Code
	}{
		{code(second.MaySpeak(ctx, "bob", "g", false)), ""},
		{code(second.MayWrite(ctx, "bob", "alice")), ""},
		{code(second.MayWrite(ctx, "mallory", "alice")), chat.CodeNotAllowed},
		{code(second.MayConnect(ctx, &authhook.Identity{Subject: "alice"})), ""},
		{code(second.MayConnect(ctx, &authhook.Identity{Subject: "nobody"})), chat.CodeUnavailable},
	} {
		if known.got != known.want {
			t.Errorf("after a restart: %q, want %q", known.got, known.want)
		}
	}

	server.Start()
	waitfor.MustHold(t, "late has an account, which nobody else can register", func() bool { return w.kind("late") == "user" })
	w.exec(`DELETE FROM members WHERE account = 'alice' AND grp = 'g'`)
	w.exec(`INSERT INTO members (grp, account) VALUES ('later', 'alice')`)
	for _, d := range []*directory.Directory{w.dir, second} {
		waitfor.MustHold(t, "the changes made meanwhile are seen", func() bool {
			groups, err := d.Groups(ctx, "alice")
			return err == nil && len(groups) == 1 && groups[0] == "later"
		})
	}
	waitfor.MustHold(t, "the broker has followed", func() bool { return alice.PublishAcked("group/g", 1, "am I in?").ReasonCode == 0x87 })
	bob.PublishAcked("group/g", 1, "without alice")
	operator := w.operator()
	operator.PublishAcked("group/later", 1, "hello alice")
	for m := alice.ReceiveAcked(); m.Body != "hello alice"; m = alice.ReceiveAcked() {
		if m.Body == "without alice" {
			t.Error("alice received what was said after she was removed")
		}
	}
}

// A change that happens while the directory is not running is seen by the one that
// starts from the file, although nothing notifies it.
func TestRestart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	url := pgtest.New(t)
	file := filepath.Join(t.TempDir(), "directory")
	kept := func(c *directory.Config) { c.CacheFile = file }
	pool := mustPool(t, url)
	_, err := pool.Exec(ctx, `INSERT INTO groups (id) VALUES ('g'); INSERT INTO members (grp, account) VALUES ('g', 'alice'), ('g', 'bob')`)
	must(t, err)
	first := startDirectory(t, url, kept)
	for _, id := range []string{"alice", "bob"} {
		if err := first.MaySpeak(ctx, id, "g", false); err != nil {
			t.Fatal(err)
		}
	}
	stop(t, first)
	_, err = pool.Exec(ctx, `DELETE FROM members WHERE account = 'bob'`)
	must(t, err)
	second := startDirectory(t, url, kept)
	if got := code(second.MaySpeak(ctx, "alice", "g", false)); got != "" {
		t.Errorf("alice: %q", got)
	}
	if got := code(second.MaySpeak(ctx, "bob", "g", false)); got != chat.CodeNotMember {
		t.Errorf("bob: %q, want not_member", got)
	}
	stop(t, second)

	// A damaged file, and that of another database, are not used.
	content, err := os.ReadFile(file)
	must(t, err)
	content[len(content)/2] ^= 1
	must(t, os.WriteFile(file, content, 0o600))
	third := startDirectory(t, url, kept)
	if got := code(third.MaySpeak(ctx, "alice", "g", false)); got != "" {
		t.Errorf("alice, after damage: %q", got)
	}
	stop(t, third)
	other := startDirectory(t, pgtest.New(t), kept)
	if got := code(other.MaySpeak(ctx, "alice", "g", false)); got != chat.CodeNotMember {
		t.Errorf("alice in another database: %q, want not_member", got)
	}
}
