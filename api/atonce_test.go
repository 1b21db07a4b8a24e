package api_test

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"mynah/api"
	"mynah/authhook"
	"mynah/internal/waitfor"
	"mynah/schema"
)

// meanwhile begins the calls while the statement lock, whose argument is id, holds what
// they need, waits until all of them wait, runs the SQL in the same transaction and lets
// go. It fails the test if one does not wait.
func (w *world) meanwhile(lock, id, sql string, calls ...func() *reply) []*reply {
	w.tb.Helper()
	ctx := context.Background()
	tx, err := w.db.Begin(ctx)
	must(w.tb, err)
	defer func() { _ = tx.Rollback(ctx) }() // does nothing once it is committed
	_, err = tx.Exec(ctx, lock, id)
	must(w.tb, err)
	replies := make([]*reply, len(calls))
	var all sync.WaitGroup
	for i, call := range calls {
		all.Go(func() { replies[i] = call() })
	}
	waitfor.MustHold(w.tb, "all calls wait for what is locked", func() bool {
		var waiting int
		must(w.tb, w.db.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting))
		return waiting == len(calls)
	})
	_, err = tx.Exec(ctx, sql)
	must(w.tb, err)
	must(w.tb, tx.Commit(ctx))
	all.Wait()
	return replies
}

// Guards against Anna and anna, whom people cannot tell apart: both register at once.
func TestRegisterTwinsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	register := func(id string) func() *reply {
		return func() *reply {
			return w.do(http.MethodPost, "/v1/accounts", "", map[string]any{"id": id, "password": goodPassword})
		}
	}
	device := func() *reply {
		return w.do(http.MethodPost, "/v1/devices", w.token("boss", authhook.RoleAdmin), map[string]any{"id": "ANNA"})
	}
	w.do(http.MethodGet, "/v1/me", w.token("boss", authhook.RoleAdmin), nil).want(http.StatusOK)
	made := 0
	for _, r := range w.meanwhile(schema.LockID, "anna", `SELECT 1`, register("anna"), register("Anna"), device) {
		if r.Status == http.StatusCreated {
			made++
		} else {
			r.problem(http.StatusConflict, "conflict")
		}
	}
	if made != 1 {
		t.Errorf("%d accounts whose ids differ in upper and lower case only, want 1", made)
	}
}

const lockRow = `SELECT FROM accounts WHERE id = $1 FOR UPDATE`

// Guards against an account that nobody can sign in to any more: its last two ways to
// sign in are removed at once.
func TestUnlinkAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.register("anna")
	w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).want(http.StatusOK)
	w.exec(`INSERT INTO identities (provider, subject, account) VALUES ('phone', '+4912345678', 'anna')`)
	unlink := func(provider string) func() *reply {
		return func() *reply {
			return w.do(http.MethodDelete, "/v1/me/identities/"+provider, anna.AccessToken, nil)
		}
	}
	replies := w.meanwhile(lockRow, "anna", `SELECT 1`, unlink("password"), unlink("phone"))
	statuses := []int{replies[0].Status, replies[1].Status}
	slices.Sort(statuses)
	if !slices.Equal(statuses, []int{http.StatusNoContent, http.StatusConflict}) {
		t.Errorf("statuses %v, want 204 and 409", statuses)
	}
	if left := w.column(`SELECT provider FROM identities WHERE account = 'anna'`); len(left) != 1 {
		t.Errorf("left are %v, want one", left)
	}
}

// Guards against a password, or a phone number that nobody can use again, that is left
// behind by a request beside the deletion of the account.
func TestLinkWhileDeleting(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withWeChat(newWeChat(t).URL, "wxsecret"), func(c *api.Config) { c.Timeout = 15 * time.Second })
	anna := w.register("anna")
	w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).want(http.StatusOK)
	for _, r := range w.meanwhile(lockRow, "anna", `UPDATE accounts SET deleted_at = now(); DELETE FROM identities`,
		func() *reply {
			return w.do(http.MethodPost, "/v1/me/identities/wechat", anna.AccessToken, map[string]any{"code": "bert"})
		},
		func() *reply {
			return w.do(http.MethodPut, "/v1/me/password", anna.AccessToken, map[string]any{"current": goodPassword, "new": "another " + goodPassword})
		},
		func() *reply {
			return w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": "anna", "password": goodPassword})
		},
	) {
		r.problem(http.StatusUnauthorized, "unauthenticated")
	}
	if left := w.column(`SELECT provider FROM identities`); len(left) != 0 {
		t.Errorf("the deleted account has %v", left)
	}
}

// Guards against people who are shut out after an outage of PostgreSQL, when all sign in
// again: right passwords that could not be looked at counted as wrong ones.
func TestPasswordsDuringAnOutage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *api.Config) { c.Timeout, c.AddressLimits = 5*time.Second, 0.05 }) // 15 sign-ins of an address
	w.register("anna")
	signIn := func() *reply {
		return w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": "anna", "password": goodPassword})
	}
	tx, err := w.db.Begin(context.Background())
	must(t, err)
	_, err = tx.Exec(context.Background(), `LOCK TABLE identities`)
	must(t, err)
	for range 2 {
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if r := signIn(); r.Status != http.StatusServiceUnavailable {
					t.Errorf("during the outage: status %d: %s", r.Status, r.Body)
				}
			})
		}
		all.Wait()
	}
	must(t, tx.Rollback(context.Background()))
	signIn().want(http.StatusCreated)
}

// Somebody can be disabled before they first come, with a token that others signed; the
// server's own parts cannot be.
func TestDisableWhoHasNotCome(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin, mallory := w.token("boss", authhook.RoleAdmin), w.token("mallory", authhook.RoleUser)
	// A slip of the pen is none of these: it is told, and takes nobody's id.
	if r := w.do(http.MethodPost, "/v1/admin/accounts/mallory/disable", admin, nil).problem(http.StatusNotFound, "not_found"); !contains(r.get("detail"), `{"unknown": true}`) {
		t.Errorf("the answer does not say how: %s", r.Body)
	}
	if got := w.column(`SELECT id FROM accounts WHERE id = 'mallory'`); len(got) != 0 {
		t.Error("an account was made")
	}
	w.do(http.MethodPost, "/v1/admin/accounts/archiver/disable", admin, `{"unknown":true}`).problem(http.StatusForbidden, "not_allowed")
	w.do(http.MethodPost, "/v1/admin/accounts/mallory/disable", admin, `{"unknown":true}`).want(http.StatusNoContent)
	w.do(http.MethodGet, "/v1/me", mallory, nil).problem(http.StatusUnauthorized, "unauthenticated")
	if got := w.column(`SELECT kind FROM changes WHERE subject = 'mallory'`); !slices.Equal(got, []string{"disabled"}) {
		t.Errorf("the feed has %v of mallory, want that they are disabled", got)
	}
	w.do(http.MethodPost, "/v1/admin/accounts/mallory/enable", admin, nil).want(http.StatusNoContent)
	w.do(http.MethodGet, "/v1/me", mallory, nil).want(http.StatusOK)
	w.do(http.MethodPost, "/v1/admin/accounts/nobody/enable", admin, nil).problem(http.StatusNotFound, "not_found")
	w.do(http.MethodPost, "/v1/admin/accounts/archiver/disable", admin, nil).problem(http.StatusForbidden, "not_allowed")
}

// Guards against a sign-in with the old password that survives the change of it: the
// password was right when it was looked at.
func TestSignInWhileThePasswordChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.register("anna")
	signIn := func() *reply {
		return w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": "anna", "password": goodPassword})
	}
	w.meanwhile(lockRow, "anna", `UPDATE identities SET secret = 'another'; DELETE FROM sessions`, signIn)[0].
		problem(http.StatusUnauthorized, "unauthenticated")
	if left := w.column(`SELECT id FROM sessions`); len(left) != 0 {
		t.Errorf("%d sessions with the old password", len(left))
	}
}
