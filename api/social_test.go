package api_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"mynah/api"
	"mynah/authhook"
	"mynah/groups"
)

// deed is a call that takes an action of the table of rights.
type deed struct {
	action             groups.Action
	method, path, body string
}

// deeds have an example for each action that HTTP has. GROUP and LINK stand for
// the group and a link's token.
var deeds = []deed{
	{groups.ViewGroup, http.MethodGet, "/v1/groups/GROUP", ""},
	{groups.ViewMembers, http.MethodGet, "/v1/groups/GROUP/members", ""},
	{groups.ViewMembers, http.MethodGet, "/v1/groups/GROUP/members?staff=true", ""},
	{groups.ViewMembers, http.MethodGet, "/v1/groups/GROUP/members/member2", ""},
	{groups.EditGroup, http.MethodPatch, "/v1/groups/GROUP", `{"name":"new"}`},
	{groups.EditGroup, http.MethodPatch, "/v1/groups/GROUP", `{"announcement":"new","ext":{"a":1}}`},
	{groups.SetJoin, http.MethodPatch, "/v1/groups/GROUP", `{"join":"approval"}`},
	{groups.MuteAll, http.MethodPatch, "/v1/groups/GROUP", `{"muted":true}`},
	{groups.Dissolve, http.MethodDelete, "/v1/groups/GROUP", ""},
	{groups.Transfer, http.MethodPost, "/v1/groups/GROUP/transfer", `{"to":"member2"}`},
	{groups.SetAdmins, http.MethodPatch, "/v1/groups/GROUP/members/member2", `{"role":"admin"}`},
	{groups.JoinByLink, http.MethodPost, "/v1/links/join", `{"token":"LINK"}`},
	{groups.Leave, http.MethodPost, "/v1/groups/GROUP/leave", ""},
	{groups.Invite, http.MethodPost, "/v1/groups/GROUP/invitations", `{"ids":["guest"]}`},
	{groups.ManageInvitations, http.MethodGet, "/v1/groups/GROUP/invitations", ""},
	{groups.ManageInvitations, http.MethodDelete, "/v1/groups/GROUP/invitations/guest", ""},
	{groups.ManageLinks, http.MethodPost, "/v1/groups/GROUP/links", `{}`},
	{groups.ManageLinks, http.MethodGet, "/v1/groups/GROUP/links", ""},
	{groups.ManageLinks, http.MethodDelete, "/v1/groups/GROUP/links/LINKID", ""},
	{groups.DecideRequests, http.MethodGet, "/v1/groups/GROUP/requests", ""},
	{groups.DecideRequests, http.MethodPost, "/v1/groups/GROUP/requests/asker/approve", ""},
	{groups.DecideRequests, http.MethodDelete, "/v1/groups/GROUP/requests/asker", ""},
	{groups.RemoveMember, http.MethodDelete, "/v1/groups/GROUP/members/member2", ""},
	{groups.RemoveAdmin, http.MethodDelete, "/v1/groups/GROUP/members/admin2", ""},
	{groups.RemoveMember, http.MethodPut, "/v1/groups/GROUP/bans/member2", `{"reason":"spam"}`},
	{groups.RemoveAdmin, http.MethodPut, "/v1/groups/GROUP/bans/admin2", `{}`},
	{groups.ManageBans, http.MethodGet, "/v1/groups/GROUP/bans", ""},
	{groups.ManageBans, http.MethodDelete, "/v1/groups/GROUP/bans/banned", ""},
	{groups.MuteMember, http.MethodPatch, "/v1/groups/GROUP/members/member2", `{"mute":60}`},
	{groups.MuteAdmin, http.MethodPatch, "/v1/groups/GROUP/members/admin2", `{"mute":60}`},
	{groups.SetNicknames, http.MethodPatch, "/v1/groups/GROUP/members/member2", `{"nickname":"m"}`},
	{groups.ManageDevices, http.MethodGet, "/v1/devices?group=GROUP", ""},
}

// made makes a group in which everybody of the table is.
func (w *world) made(id string, join groups.JoinPolicy) {
	w.tb.Helper()
	w.exec(strings.NewReplacer("GROUP", id, "JOIN", string(join)).Replace(`
		INSERT INTO groups (id, name, join_policy) VALUES ('GROUP', 'old', 'JOIN');
		INSERT INTO members (grp, account, role) VALUES ('GROUP', 'owner', 'owner'), ('GROUP', 'admin', 'admin'),
			('GROUP', 'admin2', 'admin'), ('GROUP', 'member', 'member'), ('GROUP', 'member2', 'member');
		INSERT INTO bans (grp, account) VALUES ('GROUP', 'banned');
		INSERT INTO invitations (grp, account, by, expires_at) VALUES ('GROUP', 'invited', 'owner', now() + '1 day');
		INSERT INTO join_requests (grp, account) VALUES ('GROUP', 'asker');
		INSERT INTO invitation_links (id, grp, token, by, expires_at)
		VALUES ('ID' || upper('GROUP'), 'GROUP', sha256(('link' || chr(10) || 'LINK' || upper('GROUP'))::bytea), 'owner', now() + '1 day')`))
}

// Every role takes every action, over HTTP, in groups of every way to join: what
// the table allows succeeds, and what it refuses is refused in its words.
func TestEveryRoleEveryAction(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tokens := map[groups.Role]string{}
	for _, role := range groups.Roles() {
		kind := authhook.RoleUser
		switch role {
		case groups.Operator:
			kind = authhook.RoleAdmin
		case groups.Device:
			kind = authhook.RoleDevice
		}
		tokens[role] = w.token(string(role), kind)
	}
	statuses := map[string]int{"not_allowed": 403, "not_member": 403, "not_found": 404}
	n := 0
	for _, d := range deeds {
		for _, join := range groups.JoinPolicies() {
			for _, role := range groups.Roles() {
				n++
				group := fmt.Sprintf("x%d", n)
				w.made(group, join)
				w.exec(`INSERT INTO members (grp, account, role) VALUES ($1, 'device', 'admin')`, group) // whatever the row says
				replace := strings.NewReplacer("GROUP", group, "LINKID", "ID"+strings.ToUpper(group), "LINK", "LINK"+strings.ToUpper(group))
				var body any
				if d.body != "" {
					body = replace.Replace(d.body)
				}
				r := w.do(d.method, replace.Replace(d.path), tokens[role], body)
				acting := role
				if role == groups.Operator && (d.action == groups.JoinByLink || d.action == groups.Leave) {
					acting = groups.Outsider // operators come and go as anybody does
				}
				err := groups.May(acting, d.action, join)
				if err == nil {
					if r.Status/100 != 2 {
						t.Errorf("%s %s by %s in a group of join %s: status %d: %s", d.method, d.path, role, join, r.Status, r.Body)
					}
					continue
				}
				want, _, _ := strings.Cut(err.Error(), ":")
				if d.action == groups.ManageDevices {
					want = "not_allowed" // of any group that is not one's own
				}
				if r.Status != statuses[want] || r.get("code") != want {
					t.Errorf("%s %s by %s in a group of join %s: status %d %s, want %s", d.method, d.path, role, join, r.Status, r.Body, want)
				}
			}
		}
	}
	covered := map[groups.Action]bool{groups.Speak: true, groups.SpeakWhenMuted: true} // on MQTT: package directory
	for _, d := range deeds {
		covered[d.action] = true
	}
	for _, a := range []groups.Action{groups.JoinGroup, groups.AskToJoin, groups.SetOwnNickname} { // TestJoining
		covered[a] = true
	}
	for _, a := range groups.Actions() {
		if !covered[a] {
			t.Errorf("no call takes the action %q", a)
		}
	}
}

// Joining: at once, with approval, with an invitation, and not at all.
func TestJoining(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i, row := range []struct {
		who, join string
		status    int
		state     string
	}{
		{"outsider", "open", 200, "member"},
		{"outsider", "approval", 200, "asked"},
		{"outsider", "invitation", 404, ""},
		{"invited", "open", 200, "member"},
		{"invited", "approval", 200, "member"},
		{"invited", "invitation", 200, "member"},
		{"banned", "open", 404, ""},
		{"banned", "approval", 404, ""},
		{"member", "invitation", 200, "member"},
	} {
		group := fmt.Sprintf("j%d", i)
		w.made(group, groups.JoinPolicy(row.join))
		r := w.do(http.MethodPost, "/v1/groups/"+group+"/join", w.token(row.who, authhook.RoleUser), `{}`).want(row.status)
		if row.status == 200 && r.get("state") != row.state {
			t.Errorf("%s joins %s: %s", row.who, row.join, r.Body)
		}
		if row.state == "member" {
			w.do(http.MethodPatch, "/v1/groups/"+group+"/members/"+row.who, w.token(row.who, authhook.RoleUser), `{"nickname":"me"}`).want(200)
		}
		if row.state == "asked" {
			w.do(http.MethodPost, "/v1/groups/"+group+"/requests/"+row.who+"/approve", w.token("admin", authhook.RoleUser), nil).want(204)
			w.do(http.MethodGet, "/v1/groups/"+group+"/members/"+row.who, w.token("owner", authhook.RoleUser), nil).want(200)
		}
	}
	// A group that was dissolved is not there, and its id is not had again.
	w.made("gone", groups.JoinOpen)
	w.do(http.MethodDelete, "/v1/groups/gone", w.token("owner", authhook.RoleUser), nil).want(204)
	for _, who := range []string{"owner", "member", "outsider"} {
		w.do(http.MethodGet, "/v1/groups/gone", w.token(who, authhook.RoleUser), nil).problem(404, "not_found")
		w.do(http.MethodPost, "/v1/groups/gone/join", w.token(who, authhook.RoleUser), `{}`).problem(404, "not_found")
	}
	w.do(http.MethodPost, "/v1/groups", w.token("root", authhook.RoleAdmin), `{"id":"gone","name":"x"}`).problem(409, "conflict")
	w.do(http.MethodPost, "/v1/groups", w.token("outsider", authhook.RoleUser), `{"id":"mine","name":"x"}`).problem(403, "not_allowed")
}

// Limits hold although all come at once; without the locks more get in.
func TestLimitsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *api.Config) { c.Groups = groups.Config{MaxMembers: 5, MaxGroups: 3} })
	ctx := context.Background()
	w.exec(`INSERT INTO groups (id, join_policy) SELECT 'g' || i, 'open' FROM generate_series(1, 12) i`)
	atOnce := func(n int, call func(i int) *reply) (ok int) {
		var mu sync.Mutex
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				r := call(i)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case r.Status == http.StatusOK:
					ok++
				case r.get("code") != "limit":
					t.Errorf("status %d: %s", r.Status, r.Body)
				}
			})
		}
		all.Wait()
		return ok
	}
	tokens := make([]string, 12)
	for i := range tokens {
		tokens[i] = w.token(fmt.Sprintf("p%d", i), authhook.RoleUser)
		w.do(http.MethodGet, "/v1/me", tokens[i], nil).want(200)
	}
	if ok := atOnce(12, func(i int) *reply { return w.do(http.MethodPost, "/v1/groups/g1/join", tokens[i], `{}`) }); ok != 5 {
		t.Errorf("%d joined a group for 5", ok)
	}
	greedy := w.token("greedy", authhook.RoleUser)
	w.do(http.MethodGet, "/v1/me", greedy, nil).want(200)
	if ok := atOnce(11, func(i int) *reply {
		return w.do(http.MethodPost, fmt.Sprintf("/v1/groups/g%d/join", i+2), greedy, `{}`)
	}); ok != 3 {
		t.Errorf("one is in %d groups, want 3", ok)
	}
	// A link for two.
	w.exec(`INSERT INTO groups (id) VALUES ('linked');
		INSERT INTO invitation_links (id, grp, token, by, expires_at, max_uses)
		VALUES ('L', 'linked', sha256(('link' || chr(10) || 'TWO')::bytea), 'x', now() + '1 day', 2)`)
	used := 0
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range tokens {
		all.Go(func() {
			if w.do(http.MethodPost, "/v1/links/join", tokens[i], `{"token":"TWO"}`).Status == http.StatusOK {
				mu.Lock()
				used++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if used != 2 {
		t.Errorf("a link for 2 was used by %d", used)
	}
	var counted, really int
	if err := w.db.QueryRow(ctx, `SELECT sum(members), (SELECT count(*) FROM members) FROM groups`).Scan(&counted, &really); err != nil || counted != really {
		t.Errorf("groups count %d members, there are %d (%v)", counted, really, err)
	}
}

// Contacts over HTTP, and that nothing tells of a block or of who exists.
func TestContacts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	alice, bob, eve := w.token("alice", authhook.RoleUser), w.token("bob", authhook.RoleUser), w.token("eve", authhook.RoleUser)
	ask := func(token, id string) *reply {
		return w.do(http.MethodPost, "/v1/contacts/requests", token, map[string]string{"id": id, "note": "hi"})
	}
	ask(alice, "bob").want(201)
	ask(alice, "bob").want(201) // again: the note may be another
	if r := ask(bob, "alice").want(201); r.get("state") != "contact" {
		t.Errorf("asking who has asked: %s", r.Body)
	}
	ask(alice, "bob").problem(409, "conflict")
	ask(alice, "alice").problem(422, "invalid")
	w.do(http.MethodPatch, "/v1/contacts/bob", alice, `{"remark":"Bob from work"}`).want(200)
	if r := w.do(http.MethodGet, "/v1/contacts/bob", alice, nil).want(200); r.get("remark") != "Bob from work" {
		t.Errorf("remark: %s", r.Body)
	}
	w.do(http.MethodPatch, "/v1/contacts/alice", eve, `{"remark":"x"}`).problem(404, "not_found")
	w.do(http.MethodPost, "/v1/contacts/requests/alice/accept", eve, nil).problem(404, "not_found")

	// Blocked, not blocked and not there look alike.
	w.do(http.MethodPut, "/v1/blocks/eve", bob, nil).want(204)
	var answers []string
	for _, id := range []string{"bob", "alice", "nobody-at-all"} {
		answers = append(answers, string(ask(eve, id).want(201).Body))
	}
	if answers[0] != answers[1] || answers[1] != answers[2] {
		t.Errorf("the answers differ: %q", answers)
	}
	if r := w.do(http.MethodGet, "/v1/contacts/requests", bob, nil).want(200); strings.Contains(string(r.Body), "eve") {
		t.Errorf("a blocked one's request came through: %s", r.Body)
	}
	if r := w.do(http.MethodGet, "/v1/contacts/requests?direction=outgoing", eve, nil).want(200); strings.Count(string(r.Body), `"id"`) != 3 {
		t.Errorf("eve's own requests: %s", r.Body)
	}
	w.do(http.MethodDelete, "/v1/contacts/requests/eve", alice, nil).want(204) // declined
	w.do(http.MethodDelete, "/v1/contacts/requests/bob", eve, nil).want(204)   // withdrawn
	w.do(http.MethodDelete, "/v1/contacts/bob", alice, nil).want(204)
	w.do(http.MethodGet, "/v1/contacts/alice", bob, nil).problem(404, "not_found")

	// Pages, and an ETag for who polls.
	for i := range 7 {
		ask(alice, fmt.Sprintf("friend%d", i)).want(201)
		w.exec(`UPDATE contacts SET state = 'contact' WHERE state <> 'contact'`)
	}
	seen, cursor := 0, ""
	for pages := 0; pages == 0 || cursor != ""; pages++ {
		r := w.do(http.MethodGet, "/v1/contacts?limit=3&cursor="+cursor, alice, nil).want(200)
		seen += strings.Count(string(r.Body), `"id"`)
		cursor = r.get("next")
	}
	if seen != 7 {
		t.Errorf("the pages have %d contacts, want 7", seen)
	}
	tag := w.do(http.MethodGet, "/v1/contacts", alice, nil).Header.Get("ETag")
	w.do(http.MethodGet, "/v1/contacts", alice, nil, "If-None-Match", tag).want(http.StatusNotModified)
	w.do(http.MethodPatch, "/v1/me/privacy", alice, `{"write":"contacts"}`).want(200)
	if r := w.do(http.MethodGet, "/v1/me/privacy", alice, nil).want(200); r.get("write") != "contacts" {
		t.Errorf("privacy: %s", r.Body)
	}
}

// Who deletes their account leaves their groups to a successor.
func TestSuccession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	token := w.do(http.MethodPost, "/v1/accounts", "", `{"id":"anna","password":"a long password"}`).want(201).get("access_token")
	group := w.do(http.MethodPost, "/v1/groups", token, `{"name":"a","join":"open"}`, "Idempotency-Key", "k1").want(201).get("id")
	if again := w.do(http.MethodPost, "/v1/groups", token, `{"name":"a","join":"open"}`, "Idempotency-Key", "k1").want(201).get("id"); again != group {
		t.Errorf("the same key made a second group: %s, %s", group, again)
	}
	alone := w.do(http.MethodPost, "/v1/groups", token, `{"name":"alone"}`).want(201).get("id")
	bob := w.token("bob", authhook.RoleUser)
	w.do(http.MethodPost, "/v1/groups/"+group+"/join", bob, `{}`).want(200)
	w.do(http.MethodDelete, "/v1/me", token, nil).want(204)
	if r := w.do(http.MethodGet, "/v1/groups/"+group, bob, nil).want(200); r.get("me.role") != "owner" {
		t.Errorf("bob: %s", r.Body)
	}
	w.do(http.MethodGet, "/v1/groups/"+alone, w.token("root", authhook.RoleAdmin), nil).problem(404, "not_found")
}
