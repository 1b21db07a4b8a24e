package api_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"mynah/authhook"
	"mynah/groups"
)

// Guards against a list of invitations that tells who has blocked the inviter, in which
// they alone are missing, or alone change when they are invited once more.
func TestInvitationsTellNothingOfBlocks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.made("g", groups.JoinInvitation)
	owner, admin := w.token("owner", authhook.RoleUser), w.token("admin", authhook.RoleUser)
	bob, carl := w.token("bob", authhook.RoleUser), w.token("carl", authhook.RoleUser)
	w.do(http.MethodPut, "/v1/blocks/owner", bob, nil).want(http.StatusNoContent)
	invite := func(token string) {
		t.Helper()
		w.do(http.MethodPost, "/v1/groups/g/invitations", token, `{"ids":["bob","carl","nobody"]}`).want(http.StatusNoContent)
	}
	// What the owner is told of the three, less the times and the ids.
	list := func() []string {
		t.Helper()
		var page struct {
			Items []struct{ ID, By, At, Expires string }
		}
		w.do(http.MethodGet, "/v1/groups/g/invitations", owner, nil).want(http.StatusOK).into(&page)
		var all []string
		for _, i := range page.Items {
			if i.ID != "invited" {
				all = append(all, strings.Join([]string{i.ID, i.By, i.At}, " "))
			}
		}
		return all
	}
	invitedTo := func(token string) bool {
		t.Helper()
		return strings.Contains(string(w.do(http.MethodGet, "/v1/me/invitations", token, nil).want(http.StatusOK).Body), `"g"`)
	}
	told := func(id string) int {
		return len(w.column(`SELECT id::text FROM outbox WHERE topic = $1 AND type = 'notice.group.invited'`, "user/"+id))
	}

	invite(owner)
	first := list()
	if len(first) != 3 {
		t.Fatalf("the owner's list: %q, want all three", first)
	}
	invite(owner)
	if again := list(); !slices.Equal(again, first) {
		t.Errorf("after inviting them once more: %q, before: %q", again, first)
	}
	if invitedTo(bob) || told("bob") != 0 {
		t.Error("who has blocked the owner hears of the invitation")
	}
	w.do(http.MethodPost, "/v1/groups/g/join", bob, `{}`).problem(http.StatusNotFound, "not_found")
	if !invitedTo(carl) || told("carl") != 1 {
		t.Errorf("carl: invited %v, told %d times, want once", invitedTo(carl), told("carl"))
	}

	// Somebody else's invitation counts.
	invite(admin)
	if again := list(); !slices.Equal(again, first) {
		t.Errorf("after another has invited them: %q, before: %q", again, first)
	}
	if !invitedTo(bob) || told("bob") != 1 || told("carl") != 1 {
		t.Errorf("bob: invited %v, told %d times; carl %d times; want once each", invitedTo(bob), told("bob"), told("carl"))
	}
	invite(owner) // and is not hidden again
	w.do(http.MethodPost, "/v1/groups/g/join", bob, `{}`).want(http.StatusOK)
	w.do(http.MethodPost, "/v1/groups/g/join", carl, `{}`).want(http.StatusOK)
}
