package api_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"mynah/api"
	"mynah/authhook"
	"mynah/groups"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// Guards against a group that has no owner, or one who is gone, for ever: it is handed
// to somebody who is deleting their account at that moment.
func TestTransferToWhoIsLeaving(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.made("g", groups.JoinOpen)
	owner := w.token("owner", authhook.RoleUser)
	r := w.meanwhile(schema.LockPerson, "member", `DELETE FROM members WHERE account = 'member'`, func() *reply {
		return w.do(http.MethodPost, "/v1/groups/g/transfer", owner, `{"to":"member"}`)
	})[0]
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
	w.made("room", groups.JoinOpen)
	w.made("club", groups.JoinApproval)
	for i, call := range []struct{ path, body string }{
		{"/v1/groups", `{"name":"mine"}`},
		{"/v1/groups/room/join", `{}`},
		{"/v1/groups/club/join", `{}`},
		{"/v1/links/join", `{"token":"LINKROOM"}`},
		{"/v1/contacts/requests", `{"id":"member"}`},
	} {
		id := fmt.Sprintf("leaving%d", i)
		token := w.token(id, authhook.RoleUser)
		r := w.meanwhile(schema.LockPerson, id, `UPDATE accounts SET deleted_at = now() WHERE id = '`+id+`'`, func() *reply {
			return w.do(http.MethodPost, call.path, token, call.body)
		})[0]
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
	service := groups.New(pgtx.New(w.db), groups.Config{})
	for range 10 {
		w.exec(`TRUNCATE groups, members CASCADE;
			INSERT INTO groups (id) VALUES ('g1'), ('g2');
			INSERT INTO members (grp, account, role) VALUES ('g1', 'x', 'member'), ('g1', 'y', 'owner'), ('g2', 'x', 'owner'), ('g2', 'y', 'member'),
				('g1', 'z', 'member'), ('g2', 'z', 'member')`)
		var both sync.WaitGroup
		for _, id := range []string{"x", "y"} {
			both.Go(func() {
				if err := service.Forget(context.Background(), id); err != nil {
					t.Errorf("forget %s: %v", id, err)
				}
			})
		}
		both.Wait()
		if left := w.column(`SELECT account || ' ' || role FROM members ORDER BY grp, account`); fmt.Sprint(left) != "[z owner z owner]" {
			t.Fatalf("left are %v, want z as the owner of both", left)
		}
	}
}

// column returns the one column of a query as text.
func (w *world) column(sql string, args ...any) []string {
	w.tb.Helper()
	rows, err := w.db.Query(context.Background(), sql, args...)
	must(w.tb, err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(w.tb, err)
	return all
}

// Guards against clients that show a member, a contact or a request of somebody whose
// account is deleted: everybody concerned is told, but for groups that are too large
// to be told of anybody.
func TestFarewells(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *api.Config) { c.Groups = groups.Config{MaxMembersNotified: 3} })
	anna := w.register("anna")
	w.exec(`INSERT INTO groups (id) VALUES ('owned'), ('small'), ('large'), ('others');
		INSERT INTO members (grp, account, role) VALUES ('owned', 'anna', 'owner'), ('owned', 'bob', 'member'), ('small', 'anna', 'member'),
			('large', 'anna', 'member'), ('others', 'bob', 'owner');
		INSERT INTO members (grp, account) SELECT 'large', 'p' || i FROM generate_series(1, 3) i;
		INSERT INTO contacts (owner, peer, state) VALUES ('anna', 'carl', 'contact'), ('carl', 'anna', 'contact'),
			('anna', 'dora', 'asked'), ('dora', 'anna', 'incoming'), ('anna', 'emil', 'incoming'), ('emil', 'anna', 'asked'),
			('carl', 'dora', 'contact'), ('dora', 'carl', 'contact')`)
	w.do(http.MethodDelete, "/v1/me", anna.AccessToken, nil).want(http.StatusNoContent)
	want := []string{
		`group/owned notice.group.transferred {"by": "anna", "who": "bob", "group": "owned"}`,
		`group/owned notice.group.left {"who": "anna", "group": "owned"}`,
		`group/small notice.group.left {"who": "anna", "group": "small"}`,
		`user/carl notice.contact.removed {"who": "anna"}`,
		`user/dora notice.contact.withdrawn {"who": "anna"}`,
		`user/emil notice.contact.declined {"who": "anna"}`,
	}
	if got := w.column(`SELECT topic || ' ' || type || ' ' || body FROM outbox ORDER BY id`); !slices.Equal(got, want) {
		t.Errorf("notices:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if left := w.column(`SELECT account FROM members WHERE account = 'anna' UNION ALL SELECT peer FROM contacts WHERE peer = 'anna'`); len(left) != 0 {
		t.Errorf("of anna is left: %v", left)
	}
}

// Guards against a thermometer that inherits a group, and with it the right to make
// more devices: a person does, who can act, and the one who has been there for longest;
// a group without one is dissolved.
func TestHeirs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`INSERT INTO accounts (id, kind, disabled_at) VALUES ('meter', 'device', NULL), ('bot', 'service', NULL), ('asleep', 'user', now()), ('bob', 'user', NULL)`)
	service := groups.New(pgtx.New(w.db), groups.Config{})
	for i, test := range []struct{ others, heir string }{
		{`('meter', 'member', 1), ('zoe', 'member', 3), ('bob', 'member', 4)`, "zoe"}, // tokens only speak of her
		{`('meter', 'admin', 1), ('bot', 'admin', 2), ('bob', 'member', 4)`, "bob"},
		{`('asleep', 'admin', 1), ('bob', 'admin', 4), ('amy', 'admin', 5), ('zoe', 'member', 2)`, "bob"},
		{`('meter', 'member', 1), ('bot', 'member', 2), ('asleep', 'admin', 3)`, ""},
	} {
		group := fmt.Sprintf("g%d", i)
		w.exec(`INSERT INTO groups (id) VALUES ('` + group + `');
			INSERT INTO members (grp, account, role, joined_at) SELECT '` + group + `', who, role, '2026-01-01'::timestamptz + day * interval '1 day'
			FROM (VALUES ('gone', 'owner', 0), ` + test.others + `) m (who, role, day)`)
		must(t, service.Forget(context.Background(), "gone"))
		heir := strings.Join(w.column(`SELECT account FROM members WHERE grp = $1 AND role = 'owner'`, group), " ")
		if heir != test.heir {
			t.Errorf("of owner, %s: the heir is %q, want %q", test.others, heir, test.heir)
		}
		if dissolved := len(w.column(`SELECT id FROM groups WHERE id = $1 AND dissolved_at IS NOT NULL`, group)) == 1; dissolved != (test.heir == "") {
			t.Errorf("of owner, %s: dissolved %v", test.others, dissolved)
		}
	}

	// Nor is a device made an owner or an admin.
	w.made("room", groups.JoinOpen)
	w.exec(`INSERT INTO members (grp, account) VALUES ('room', 'meter')`)
	owner := w.token("owner", authhook.RoleUser)
	w.do(http.MethodPost, "/v1/groups/room/transfer", owner, `{"to":"meter"}`).problem(http.StatusUnprocessableEntity, "invalid")
	w.do(http.MethodPatch, "/v1/groups/room/members/meter", owner, `{"role":"admin"}`).problem(http.StatusUnprocessableEntity, "invalid")
}

// Guards against devices that nobody can take the token away from any more: the group
// whose owner made them was dissolved.
func TestDevicesEndWithTheirGroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.register("anna")
	group := w.do(http.MethodPost, "/v1/groups", anna.AccessToken, `{"name":"a"}`).want(http.StatusCreated).get("id")
	made := w.do(http.MethodPost, "/v1/devices", anna.AccessToken, map[string]any{"group": group, "days": 3650}).want(http.StatusCreated)
	token, id := made.get("credential.token"), made.get("device.id")
	w.do(http.MethodGet, "/v1/me", token, nil).want(http.StatusOK)

	w.do(http.MethodDelete, "/v1/groups/"+group, anna.AccessToken, nil).want(http.StatusNoContent)
	w.do(http.MethodGet, "/v1/me", token, nil).problem(http.StatusUnauthorized, "unauthenticated")
	if got := w.column(`SELECT session FROM changes WHERE kind = 'disabled' AND subject = $1`, id); len(got) != 1 {
		t.Errorf("%d changes that end what the device has connected, want 1", len(got))
	}
	w.do(http.MethodPost, "/v1/devices/"+id+"/credential", anna.AccessToken, `{}`).problem(http.StatusNotFound, "not_found")
	w.do(http.MethodPost, "/v1/devices", anna.AccessToken, map[string]any{"group": group}).problem(http.StatusForbidden, "not_allowed")
}
