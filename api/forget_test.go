package api_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"mynah/api/pgtx"
	"mynah/api/social"
	"mynah/authhook"
	"mynah/schema"
)

// meanwhile begins call while the person is locked, as somebody is who is being
// forgotten, waits until call waits for that, runs the SQL and lets go. It fails the
// test if call does not wait.
func (w *world) meanwhile(person, sql string, call func() *reply) *reply {
	w.tb.Helper()
	ctx := context.Background()
	tx, err := w.db.Begin(ctx)
	must(w.tb, err)
	defer func() { _ = tx.Rollback(ctx) }() // does nothing once it is committed
	_, err = tx.Exec(ctx, schema.LockPerson, person)
	must(w.tb, err)
	done := make(chan *reply, 1)
	go func() { done <- call() }()
	eventually(w.tb, "the call waits for the person's lock", func() bool {
		select {
		case r := <-done:
			w.tb.Fatalf("%s did not wait: status %d: %s", r.what, r.Status, r.Body)
		default:
		}
		var waits bool
		must(w.tb, w.db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waits))
		return waits
	})
	_, err = tx.Exec(ctx, sql)
	must(w.tb, err)
	must(w.tb, tx.Commit(ctx))
	return <-done
}

// Guards against a group that has no owner, or one who is gone, for ever: it is handed
// to somebody who is deleting their account at that moment.
func TestTransferToWhoIsLeaving(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.made("g", social.JoinOpen)
	owner := w.token("owner", authhook.RoleUser)
	r := w.meanwhile("member", `DELETE FROM members WHERE account = 'member'`, func() *reply {
		return w.do(http.MethodPost, "/v1/groups/g/transfer", owner, `{"to":"member"}`)
	})
	r.problem(http.StatusNotFound, "not_found")
	if got := w.do(http.MethodGet, "/v1/groups/g", owner, nil).want(http.StatusOK).get("me.role"); got != "owner" {
		t.Errorf("the owner is %q now", got)
	}
}

// Guards against requests that were under way while their account was deleted, and
// bring it back into groups and lists of contacts.
func TestRequestsOfWhoIsLeaving(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.made("room", social.JoinOpen)
	w.made("club", social.JoinApproval)
	for i, call := range []struct{ path, body string }{
		{"/v1/groups", `{"name":"mine"}`},
		{"/v1/groups/room/join", `{}`},
		{"/v1/groups/club/join", `{}`},
		{"/v1/links/join", `{"token":"LINKROOM"}`},
		{"/v1/contacts/requests", `{"id":"member"}`},
	} {
		id := fmt.Sprintf("leaving%d", i)
		token := w.token(id, authhook.RoleUser)
		r := w.meanwhile(id, `UPDATE accounts SET deleted_at = now() WHERE id = '`+id+`'`, func() *reply {
			return w.do(http.MethodPost, call.path, token, call.body)
		})
		r.problem(http.StatusUnauthorized, "unauthenticated")
	}
	var left int
	must(t, w.db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM members WHERE account LIKE 'leaving%') +
		(SELECT count(*) FROM join_requests WHERE account LIKE 'leaving%') + (SELECT count(*) FROM contacts)`).Scan(&left))
	if left != 0 {
		t.Errorf("%d traces of accounts that are deleted", left)
	}
}

// Guards against two who leave at once and wait for each other: each owns a group that
// the other is in.
func TestForgettingAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := social.New(pgtx.New(w.db), social.Config{})
	for range 10 {
		w.exec(`TRUNCATE groups, members CASCADE;
			INSERT INTO groups (id) VALUES ('g1'), ('g2');
			INSERT INTO members (grp, account, role) VALUES ('g1', 'x', 'member'), ('g1', 'y', 'owner'), ('g2', 'x', 'owner'), ('g2', 'y', 'member'),
				('g1', 'z', 'member'), ('g2', 'z', 'member')`)
		var both sync.WaitGroup
		for _, id := range []string{"x", "y"} {
			both.Go(func() {
				if err := people.Forget(context.Background(), id); err != nil {
					t.Errorf("forget %s: %v", id, err)
				}
			})
		}
		both.Wait()
		rows, err := w.db.Query(t.Context(), `SELECT account || ' ' || role FROM members ORDER BY grp, account`)
		must(t, err)
		left, err := pgx.CollectRows(rows, pgx.RowTo[string])
		must(t, err)
		if fmt.Sprint(left) != "[z owner z owner]" {
			t.Fatalf("left are %v, want z as the owner of both", left)
		}
	}
}
