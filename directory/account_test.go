package directory_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/authhook"
	"mynah/internal/waitfor"
)

// kind returns the kind of the account, "" for none.
func (w *world) kind(id string) string {
	w.tb.Helper()
	rows, err := w.db.Query(context.Background(), `SELECT kind FROM accounts WHERE id = $1`, id)
	must(w.tb, err)
	kinds, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(w.tb, err)
	if len(kinds) == 0 {
		return ""
	}
	return kinds[0]
}

// Guards against strangers who register the id of somebody who is known by token
// only, and so become them: when a connection is let in its subject has an account,
// which nobody else can make any more. Who is only written to has none.
func TestWhoConnectsHasAnAccount(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	vic := w.connect("vic")
	if got := w.kind("vic"); got != "user" {
		t.Errorf("vic's account: %q, want a user's", got)
	}
	w.connect("thermometer", func(c *authhook.TokenClaims) { c.Role = authhook.RoleDevice })
	if got := w.kind("thermometer"); got != "device" {
		t.Errorf("the thermometer's account: %q, want a device's", got)
	}
	vic.PublishAcked("user/somebody", 1, "are you there?")
	if got := w.kind("somebody"); got != "" {
		t.Errorf("who was written to has an account: %q", got)
	}

	// It is theirs like any other: an operator can disable it.
	w.exec(`UPDATE accounts SET disabled_at = now() WHERE id = 'vic'`)
	waitfor.MustHold(t, "vic is refused", func() bool {
		return w.dir.MayConnect(context.Background(), &authhook.Identity{Subject: "vic"}) != nil
	})
}

// Chat does not wait for PostgreSQL: who cannot be given an account now is let in
// all the same, and gets it when that is possible.
func TestClaimThatHasToWait(t *testing.T) {
	t.Parallel()
	w := fresh(t)
	tx, err := w.db.Begin(context.Background())
	must(t, err)
	_, err = tx.Exec(context.Background(), `LOCK TABLE accounts IN SHARE MODE`) // who writes waits, who reads does not
	must(t, err)
	began := w.watch.Elapsed()
	vic := w.connect("vic")
	if took := w.watch.Since(began); took > 4*time.Second {
		t.Errorf("connecting took %v", took)
	}
	if ack := vic.PublishAcked("user/bob", 1, "hello"); ack.ReasonCode != 0 {
		t.Errorf("vic's publish: reason %#x", ack.ReasonCode)
	}
	must(t, tx.Rollback(context.Background()))
	waitfor.MustHold(t, "vic has an account", func() bool { return w.kind("vic") == "user" })
}
