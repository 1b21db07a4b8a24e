package directory_test

import (
	"context"
	"testing"

	"mynah/chat"
	"mynah/internal/pgtest"
	"mynah/internal/waitfor"
	"mynah/schema"
)

// A server that takes no writes is asked as before, and left after a while: another may
// have taken its place. Guards against a directory that follows a server which nobody
// writes to any more, for as long as the connection lives.
func TestReadOnlyServerIsLeft(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	ctx := context.Background()
	must(t, schema.Migrate(ctx, server.URL()))
	w := newWorld(t, server.URL())
	w.group("room", "open")
	w.exec(`INSERT INTO blocks (owner, peer) VALUES ('alice', 'mallory'), ('bob', 'mallory')`)
	must(t, w.dir.MayWrite(ctx, "bob", "alice"))
	follower := func() (pid int) {
		t.Helper()
		must(t, w.db.QueryRow(ctx, `SELECT coalesce((SELECT pid FROM pg_stat_activity WHERE application_name = 'mynah directory' ORDER BY backend_start LIMIT 1), 0)`).Scan(&pid))
		return pid
	}
	readOnly := func(mode string) {
		t.Helper()
		w.exec(`ALTER SYSTEM SET default_transaction_read_only = ` + mode)
		w.exec(`SELECT pg_reload_conf()`)
	}
	first := follower()
	readOnly("on")
	waitfor.MustHold(t, "the follower has another connection", func() bool { now := follower(); return now != 0 && now != first })
	// What is not known yet is read, and what needs a write is refused.
	if got := code(w.dir.MayWrite(ctx, "mallory", "bob")); got != chat.CodeNotAllowed {
		t.Errorf("read-only: %q, want not_allowed", got)
	}
	if _, err := w.dir.JoinBySubscribing(ctx, "alice", "room"); code(err) != chat.CodeUnavailable {
		t.Errorf("read-only, joining: %v, want unavailable", err)
	}
	readOnly("off")
	waitfor.MustHold(t, "writes work again", func() bool {
		member, err := w.dir.JoinBySubscribing(ctx, "alice", "room")
		return err == nil && member
	})
}
