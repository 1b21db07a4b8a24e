package api_test

import (
	"fmt"
	"net/http"
	"testing"

	"mynah/authhook"
	"mynah/groups"
)

// Guards against a flood of messages to somebody who takes none from strangers: each
// request that is made again was a notice, in the log for ever.
func TestAskingAgainIsNoNotice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	eve := w.token("eve", authhook.RoleUser)
	notices := func() int { return len(w.column(`SELECT id::text FROM outbox`)) }
	ask := func(note string) {
		t.Helper()
		w.do(http.MethodPost, "/v1/contacts/requests", eve, map[string]string{"id": "bob", "note": note}).want(http.StatusCreated)
	}
	ask("hi")
	ask("hi")
	if n := notices(); n != 1 {
		t.Errorf("asking twice: %d notices, want 1", n)
	}
	ask("it is me, from school")
	if n := notices(); n != 2 {
		t.Errorf("with another note: %d notices, want 2", n)
	}
	// While she is blocked she is not told; afterwards she may ask in the same words.
	bob := w.token("bob", authhook.RoleUser)
	w.do(http.MethodPut, "/v1/blocks/eve", bob, nil).want(http.StatusNoContent)
	ask("it is me, from school")
	w.do(http.MethodDelete, "/v1/blocks/eve", bob, nil).want(http.StatusNoContent)
	ask("it is me, from school")
	if n := notices(); n != 3 {
		t.Errorf("after the block: %d notices, want 3", n)
	}

	w.exec(`DELETE FROM outbox`)
	w.made("club", groups.JoinApproval) // with three who approve
	for _, note := range []string{"let me in", "let me in", "please"} {
		w.do(http.MethodPost, "/v1/groups/club/join", eve, map[string]string{"note": note}).want(http.StatusOK)
	}
	if n := notices(); n != 3 {
		t.Errorf("asking to be let in three times: %d notices, want 3", n)
	}
	if note := w.column(`SELECT note FROM join_requests WHERE account = 'eve'`); len(note) != 1 || note[0] != "please" {
		t.Errorf("the note is %q, want the last", note)
	}
}

// Guards against one account that makes notices for others as fast as it can. People
// do not come near the limits, and an operator's services have none.
func TestLimitsByAccount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	eve := w.token("eve", authhook.RoleUser)
	ask := func(token string, i int) *reply {
		return w.do(http.MethodPost, "/v1/contacts/requests", token, map[string]string{"id": fmt.Sprintf("p%d", i)})
	}
	for i := range 120 {
		ask(eve, i).want(http.StatusCreated)
	}
	if wait := ask(eve, 120).problem(http.StatusTooManyRequests, "rate_limited").Header.Get("Retry-After"); wait == "" {
		t.Error("no Retry-After")
	}
	frank := w.token("frank", authhook.RoleUser)
	for range 10 { // to one person
		ask(frank, 0).want(http.StatusCreated)
	}
	ask(frank, 0).problem(http.StatusTooManyRequests, "rate_limited")
	ask(frank, 1).want(http.StatusCreated)

	w.made("g", groups.JoinOpen)
	ids := make([]string, 100)
	for i := range ids {
		ids[i] = fmt.Sprintf("guest%d", i)
	}
	invite := func(who string, role authhook.Role) *reply {
		return w.do(http.MethodPost, "/v1/groups/g/invitations", w.token(who, role), map[string]any{"ids": ids})
	}
	for range 10 {
		invite("member", authhook.RoleUser).want(http.StatusNoContent)
	}
	invite("member", authhook.RoleUser).problem(http.StatusTooManyRequests, "rate_limited")
	w.do(http.MethodPost, "/v1/groups", w.token("member", authhook.RoleUser), map[string]any{"name": "x", "invite": ids}).
		problem(http.StatusTooManyRequests, "rate_limited")
	for range 11 {
		invite("ops", authhook.RoleAdmin).want(http.StatusNoContent)
	}
}
