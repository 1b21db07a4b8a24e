package api_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"mynah/authhook"
	"mynah/schema"
)

// What each role may call, written down a second time and by another hand. Who is not
// named may not.
var callers = map[string]string{
	"me": "user device service archiver admin",

	"editMe identities endOtherSessions endSession sessions profile lookUp find":                                       "user device service admin",
	"contactRequests endContactRequest contacts contact remarkContact removeContact blocks unblock privacy setPrivacy": "user device service admin",
	"myGroups group joinGroup leaveGroup members member editMember myInvitations declineInvitation joinByLink":         "user device service admin",

	"deleteMe unlink askContact acceptContact block":                                                       "user admin",
	"changePassword linkCode linkWeChat linkTicket":                                                        "user",
	"disableAccount enableAccount rotateKeys":                                                              "admin",
	"createDevice devices device renameDevice deleteDevice renewDevice disableDevice enableDevice":         "user service admin",
	"createGroup editGroup dissolveGroup transferGroup kickMember bans banMember unbanMember joinRequests": "user service admin",
	"approveJoin declineJoin invite invitations uninvite createLink links revokeLink":                      "user service admin",
}

// Every role, every call: whether the role may make it at all. What is refused is refused
// for that, before anything else is looked at.
func TestRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	may := map[string][]string{}
	for names, roles := range callers {
		for name := range strings.FieldsSeq(names) {
			may[name] = strings.Fields(roles)
		}
	}
	var document struct {
		Paths map[string]map[string]struct {
			OperationID string
			Security    []json.RawMessage
		}
	}
	w.do(http.MethodGet, "/openapi.json", "", nil).into(&document)
	refusals := []string{
		"This is for people", "A device is a member only: it makes", "This is for the role admin", "A token of role archiver", "with a token of role user",
	}
	tokens := map[authhook.Role]string{}
	for _, role := range []authhook.Role{authhook.RoleUser, authhook.RoleDevice, authhook.RoleService, authhook.RoleArchiver, authhook.RoleAdmin} {
		tokens[role] = w.token("a-"+string(role), role)
	}
	calls := 0
	for path, methods := range document.Paths {
		for method, call := range methods {
			if len(call.Security) == 0 {
				continue
			}
			calls++
			roles, known := may[call.OperationID]
			if !known {
				t.Errorf("%s is new and not in this test", call.OperationID)
			}
			for role, token := range tokens {
				url := strings.NewReplacer("{id}", "nobody", "{who}", "nobody", "{link}", "nothing", "{provider}", "mail").Replace(path)
				got := w.do(strings.ToUpper(method), url, token, nil)
				refused := got.Status == http.StatusForbidden && slices.ContainsFunc(refusals, func(text string) bool { return strings.Contains(string(got.Body), text) })
				if allowed := slices.Contains(roles, string(role)); allowed == refused {
					t.Errorf("%s by role %s: %d %s; want it allowed: %t", call.OperationID, role, got.Status, got.Body, allowed)
				}
			}
		}
	}
	if calls != len(may) {
		t.Errorf("%d calls, and %d in this test", calls, len(may))
	}
}

// Guards against a device's token, which hangs somewhere for ten years, that makes groups,
// owns them, and makes devices that outlive its being disabled.
func TestDevicesAreMembersOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin, owner := w.token("boss", authhook.RoleAdmin), w.token("owner", authhook.RoleUser)
	group := "/v1/groups/" + w.do(http.MethodPost, "/v1/groups", owner, `{"name":"g"}`).want(http.StatusCreated).get("id")
	lamp := w.do(http.MethodPost, "/v1/devices", admin, `{"id":"lamp"}`).want(http.StatusCreated).get("credential.token")
	w.do(http.MethodPost, "/v1/groups", lamp, `{"name":"mine"}`).problem(http.StatusForbidden, "not_allowed")
	w.do(http.MethodPost, "/v1/devices", lamp, `{}`).problem(http.StatusForbidden, "not_allowed")

	// Whatever a row says that plain SQL has written.
	id := strings.TrimPrefix(group, "/v1/groups/")
	w.exec(`INSERT INTO members (grp, account, role) VALUES ($1, 'lamp', 'admin'), ($1, 'guest', 'member')`, id)
	for _, call := range []struct{ method, path, body string }{
		{http.MethodPatch, "", `{"name":"x"}`},
		{http.MethodDelete, "", ""},
		{http.MethodPost, "/transfer", `{"to":"guest"}`},
		{http.MethodDelete, "/members/guest", ""},
		{http.MethodPatch, "/members/guest", `{"nickname":"x"}`},
		{http.MethodPatch, "/members/guest", `{"mute":60}`},
		{http.MethodPut, "/bans/guest", `{}`},
		{http.MethodGet, "/bans", ""},
		{http.MethodPost, "/invitations", `{"ids":["x"]}`},
		{http.MethodPost, "/links", `{}`},
		{http.MethodGet, "/requests", ""},
	} {
		var body any
		if call.body != "" {
			body = call.body
		}
		w.do(call.method, group+call.path, lamp, body).problem(http.StatusForbidden, "not_allowed")
	}
	w.do(http.MethodGet, group+"/members", lamp, nil).want(http.StatusOK)
	w.do(http.MethodPatch, group+"/members/lamp", lamp, `{"nickname":"the lamp"}`).want(http.StatusOK)
	w.do(http.MethodPost, group+"/leave", lamp, nil).want(http.StatusNoContent)
}

// What a device or service has made ends with it, however deep, by the API and by plain
// SQL; others' goes on.
func TestWhatADeviceMadeEndsWithIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.token("boss", authhook.RoleAdmin)
	for name, disable := range map[string]func(id string){
		"disabled": func(id string) {
			w.do(http.MethodPost, "/v1/devices/"+id+"/disable", admin, nil).want(http.StatusNoContent)
		},
		"account": func(id string) {
			w.do(http.MethodPost, "/v1/admin/accounts/"+id+"/disable", admin, nil).want(http.StatusNoContent)
		},
		"deleted": func(id string) { w.do(http.MethodDelete, "/v1/devices/"+id, admin, nil).want(http.StatusNoContent) },
		"sql":     func(id string) { w.exec(`UPDATE accounts SET disabled_at = now() WHERE id = $1`, id) },
	} {
		bot := w.do(http.MethodPost, "/v1/devices", admin, map[string]string{"id": name, "role": "service"}).want(http.StatusCreated).get("credential.token")
		group := w.do(http.MethodPost, "/v1/groups", bot, `{"name":"g"}`).want(http.StatusCreated).get("id")
		first := w.do(http.MethodPost, "/v1/devices", bot, map[string]string{"group": group}).want(http.StatusCreated)
		second := w.do(http.MethodPost, "/v1/devices", admin, map[string]string{}).want(http.StatusCreated)
		third := w.do(http.MethodPost, "/v1/devices", admin, map[string]string{}).want(http.StatusCreated)
		// As a device could before.
		w.exec(`UPDATE devices SET created_by = $1 WHERE account = $2`, first.get("device.id"), third.get("device.id"))
		disable(name)
		for _, gone := range []*reply{first, third} {
			w.do(http.MethodGet, "/v1/me", gone.get("credential.token"), nil).problem(http.StatusUnauthorized, "unauthenticated")
		}
		w.do(http.MethodGet, "/v1/me", second.get("credential.token"), nil).want(http.StatusOK)
		w.do(http.MethodPost, "/v1/devices/"+first.get("device.id")+"/enable", admin, nil).want(http.StatusNoContent)
	}
}

// What was so before is put right by the migration: groups of devices go to a person, or
// are left without an owner, and what disabled devices have made is disabled.
func TestDevicesOfBeforeAreMembersOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, statement := range []string{
		`DROP TRIGGER devices_disable_made ON accounts`, `DROP FUNCTION devices_disable_made`, `DROP INDEX devices_created_by`,
		`DELETE FROM mynah_migrations WHERE version_id = 110`,
		`INSERT INTO accounts (id, kind, disabled_at) VALUES ('lamp', 'device', now()), ('made', 'device', NULL), ('deep', 'device', NULL), ('other', 'device', NULL), ('gone', 'user', now()), ('anna', 'user', NULL)`,
		`INSERT INTO devices (account, created_by) VALUES ('lamp', 'boss'), ('made', 'lamp'), ('deep', 'made'), ('other', 'boss')`,
		`INSERT INTO groups (id) VALUES ('admins'), ('members'), ('devices'), ('people')`,
		`INSERT INTO members (grp, account, role, joined_at) VALUES
			('admins', 'lamp', 'owner', now()), ('admins', 'anna', 'member', now() - interval '9 h'), ('admins', 'chief', 'admin', now()), ('admins', 'other', 'admin', now() - interval '9 h'),
			('members', 'lamp', 'owner', now()), ('members', 'gone', 'member', now() - interval '9 h'), ('members', 'anna', 'member', now() - interval '1 h'), ('members', 'chief', 'member', now()),
			('devices', 'lamp', 'owner', now()), ('devices', 'other', 'member', now()),
			('people', 'anna', 'owner', now()), ('people', 'chief', 'admin', now())`,
	} {
		w.exec(statement)
	}
	must(t, schema.Migrate(t.Context(), w.db.Config().ConnString()))
	read := func(query string) string {
		t.Helper()
		rows, err := w.db.Query(t.Context(), query)
		must(t, err)
		all, err := pgx.CollectRows(rows, pgx.RowTo[string])
		must(t, err)
		return strings.Join(all, " ")
	}
	if got, want := read(`SELECT grp || '/' || account || '/' || role FROM members WHERE role <> 'member' ORDER BY 1`),
		"admins/chief/owner members/anna/owner people/anna/owner people/chief/admin"; got != want {
		t.Errorf("roles: %s; want %s", got, want)
	}
	if got, want := read(`SELECT topic || '/' || type || '/' || (body ->> 'who') FROM outbox ORDER BY 1`),
		"group/admins/notice.group.transferred/chief group/members/notice.group.transferred/anna"; got != want {
		t.Errorf("notices: %s; want %s", got, want)
	}
	if got, want := read(`SELECT id FROM accounts WHERE disabled_at IS NOT NULL ORDER BY 1`), "deep gone lamp made"; got != want {
		t.Errorf("disabled: %s; want %s", got, want)
	}
}
