package api_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"mynah/authhook"
)

// person is somebody who is signed in.
type person struct {
	Account      string `json:"account"`
	Session      string `json:"session"`
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	ExpiresIn    int    `json:"expires_in"`
	Created      bool   `json:"created"`
}

const goodPassword = "correct horse battery"

// register registers somebody with goodPassword.
func (w *world) register(id string) person {
	w.tb.Helper()
	var p person
	w.do(http.MethodPost, "/v1/accounts", "", map[string]any{"id": id, "password": goodPassword}).want(http.StatusCreated).into(&p)
	return p
}

func TestRegisterSignInRefreshEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.register("anna")
	if anna.Account != "anna" || anna.ExpiresIn != 900 {
		t.Fatalf("registered: %+v", anna)
	}
	if got := w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).want(http.StatusOK).get("id"); got != "anna" {
		t.Fatalf("me: %q", got)
	}
	var second person
	w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": "anna", "password": goodPassword, "device": "phone"}).
		want(http.StatusCreated).into(&second)
	var list struct {
		Items []struct {
			ID, Device string
			Current    bool
		}
		Next string
	}
	w.do(http.MethodGet, "/v1/me/sessions?limit=1", anna.AccessToken, nil).want(http.StatusOK).into(&list)
	if len(list.Items) != 1 || list.Items[0].ID != second.Session || list.Items[0].Device != "phone" || list.Next == "" {
		t.Fatalf("first page: %+v", list)
	}
	w.do(http.MethodGet, "/v1/me/sessions?limit=1&cursor="+list.Next, anna.AccessToken, nil).want(http.StatusOK).into(&list)
	if len(list.Items) != 1 || list.Items[0].ID != anna.Session || !list.Items[0].Current {
		t.Fatalf("second page: %+v", list)
	}

	// Ending a session refuses its access token at once, and tells the feed.
	w.do(http.MethodDelete, "/v1/me/sessions/"+second.Session, anna.AccessToken, nil).want(http.StatusNoContent)
	w.do(http.MethodGet, "/v1/me", second.AccessToken, nil).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodPost, "/v1/sessions/refresh", "", map[string]any{"refresh_token": second.RefreshToken}).problem(http.StatusUnauthorized, "unauthenticated")
	var changes int
	must(t, w.db.QueryRow(t.Context(), `SELECT count(*) FROM changes WHERE kind = 'disabled' AND subject = 'anna' AND session = $1`, second.Session).Scan(&changes))
	if changes != 1 {
		t.Errorf("%d changes in the feed, want 1", changes)
	}
	w.do(http.MethodDelete, "/v1/me/sessions/current", anna.AccessToken, nil).want(http.StatusNoContent)
	w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).problem(http.StatusUnauthorized, "unauthenticated")
}

// Guards against strangers who register an id that others have reason to trust: it was
// here with a token of another issuer, or was put into a group before it first comes.
func TestIDsInUseCannotBeRegistered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.do(http.MethodGet, "/v1/me", w.token("vic", authhook.RoleUser), nil).want(http.StatusOK)
	w.exec(`INSERT INTO groups (id) VALUES ('board'); INSERT INTO members (grp, account) VALUES ('board', 'director')`)
	for _, id := range []string{"vic", "VIC", "director"} {
		w.do(http.MethodPost, "/v1/accounts", "", map[string]any{"id": id, "password": goodPassword}).problem(http.StatusConflict, "conflict")
	}
}

// Guards against people and groups that no browser can kick, block or look up: it takes
// . and .. out of addresses.
func TestIDsThatNoAddressCanHold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.token("boss", authhook.RoleAdmin)
	for _, id := range []string{".", ".."} {
		w.do(http.MethodPost, "/v1/accounts", "", map[string]any{"id": id, "password": goodPassword}).problem(http.StatusConflict, "conflict")
		w.do(http.MethodPost, "/v1/devices", admin, map[string]any{"id": id}).problem(http.StatusConflict, "conflict")
		w.do(http.MethodPost, "/v1/groups", admin, map[string]any{"id": id, "name": "x"}).problem(http.StatusConflict, "conflict")
	}
	w.register("...")
}

// Guards against names that turn the line round in which others see them: whoever
// registers has no more freedom than whoever changes a name later.
func TestNamesAreOneLine(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const odd = "\u202eevil\u2028x"
	w.do(http.MethodPost, "/v1/accounts", "", map[string]any{"id": "eve", "password": goodPassword, "name": odd}).problem(http.StatusUnprocessableEntity, "invalid")
	var eve person
	w.do(http.MethodPost, "/v1/accounts", "", map[string]any{"id": "eve", "password": goodPassword, "name": "Eve", "device": odd}).want(http.StatusCreated).into(&eve)
	w.do(http.MethodPatch, "/v1/me", eve.AccessToken, map[string]any{"name": odd}).problem(http.StatusUnprocessableEntity, "invalid")
	if got := w.column(`SELECT device FROM sessions WHERE account = 'eve'`); len(got) != 1 || got[0] != "evilx" {
		t.Errorf("the device is called %q, want what is plain of it", got)
	}
}

// The access token is PROTOCOL.md's: the broker takes it.
func TestAccessTokenIsProtocols(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.register("anna")
	v, err := authhook.NewVerifier(authhook.VerifierConfig{JWKS: []string{w.url + "/.well-known/jwks.json"}})
	must(t, err)
	t.Cleanup(v.Close)
	id, err := v.Verify(t.Context(), anna.AccessToken)
	must(t, err)
	if id.Subject != "anna" || id.Role != authhook.RoleUser || id.Session != anna.Session || id.TokenID == "" {
		t.Errorf("identity: %+v", id)
	}
}

func TestProfile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna, bert := w.register("anna"), w.register("bert")
	w.do(http.MethodPatch, "/v1/me", anna.AccessToken, map[string]any{"name": "Anna <b>", "avatar": "https://example.com/a.png", "ext": map[string]any{"x": []int{1}}}).want(http.StatusOK)
	r := w.do(http.MethodPost, "/v1/people/lookup", bert.AccessToken, map[string]any{"ids": []string{"anna", "nobody"}}).want(http.StatusOK)
	var list struct{ Items []map[string]any }
	r.into(&list)
	if len(list.Items) != 2 || list.Items[0]["name"] != "Anna <b>" || list.Items[1]["id"] != "nobody" {
		t.Fatalf("looked up: %s", r.Body)
	}
	// What is small in JSON and large in jsonb is the caller's mistake, not ours.
	for _, ext := range []string{"[" + strings.Repeat("1e308,", 200) + "0]", "[" + strings.Repeat("1,", 7000) + "0]", `"` + strings.Repeat("x", 17000) + `"`} {
		w.do(http.MethodPatch, "/v1/me", anna.AccessToken, `{"ext":{"a":`+ext+`}}`).problem(http.StatusUnprocessableEntity, "invalid")
	}
	w.do(http.MethodPost, "/v1/people/find", bert.AccessToken, map[string]any{"by": "id", "key": "anna"}).want(http.StatusOK)
	w.do(http.MethodPatch, "/v1/me", anna.AccessToken, map[string]any{"settings": map[string]any{"find_by_id": false}}).want(http.StatusOK)
	hidden := w.do(http.MethodPost, "/v1/people/find", bert.AccessToken, map[string]any{"by": "id", "key": "anna"}).problem(http.StatusNotFound, "not_found")
	none := w.do(http.MethodPost, "/v1/people/find", bert.AccessToken, map[string]any{"by": "id", "key": "nobody"}).problem(http.StatusNotFound, "not_found")
	if string(hidden.Body) != string(none.Body) {
		t.Errorf("who hides and who does not exist are told apart:\n%s%s", hidden.Body, none.Body)
	}
	hidden = w.do(http.MethodGet, "/v1/people/anna", bert.AccessToken, nil).want(http.StatusOK)
	none = w.do(http.MethodGet, "/v1/people/none", bert.AccessToken, nil).want(http.StatusOK)
	if strings.ReplaceAll(string(hidden.Body), "anna", "none") != string(none.Body) {
		t.Errorf("who hides and who does not exist are told apart:\n%s%s", hidden.Body, none.Body)
	}
	// A list that has not changed costs no body.
	me := w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).want(http.StatusOK)
	tag := me.Header.Get("ETag")
	if tag == "" {
		t.Fatal("no ETag")
	}
	if r := w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil, "If-None-Match", tag).want(http.StatusNotModified); len(r.Body) != 0 {
		t.Errorf("304 with a body: %s", r.Body)
	}
}

func TestDeviceByToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.token("boss", authhook.RoleAdmin)
	anna := w.register("anna")
	w.do(http.MethodPost, "/v1/devices", anna.AccessToken, map[string]any{"group": "g1"}).problem(http.StatusForbidden, "not_allowed")
	r := w.do(http.MethodPost, "/v1/devices", admin, map[string]any{"id": "meter", "groups": []string{"g1"}, "acl_pub": []string{"meters/meter/#"}}).want(http.StatusCreated)
	token := r.get("credential.token")
	if token == "" || r.get("device.role") != "device" {
		t.Fatalf("made: %s", r.Body)
	}
	w.do(http.MethodGet, "/v1/me", token, nil).want(http.StatusOK)
	if id, err := w.verifier().Verify(t.Context(), token); err != nil || id.Session == "" || id.Role != authhook.RoleDevice || len(id.Pub) != 1 {
		t.Fatalf("the device's token says %+v, %v", id, err)
	}
	// A new token ends the old one.
	r = w.do(http.MethodPost, "/v1/devices/meter/credential", admin, map[string]any{}).want(http.StatusCreated)
	w.do(http.MethodGet, "/v1/me", token, nil).problem(http.StatusUnauthorized, "unauthenticated")
	token = r.get("token")
	w.do(http.MethodPost, "/v1/devices/meter/disable", admin, nil).want(http.StatusNoContent)
	w.do(http.MethodGet, "/v1/me", token, nil).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodPost, "/v1/devices/meter/enable", admin, nil).want(http.StatusNoContent)
	w.do(http.MethodGet, "/v1/me", token, nil).want(http.StatusOK)
	// It outlives a rotation of the signing key.
	w.do(http.MethodPost, "/v1/admin/keys/rotate", admin, map[string]any{}).want(http.StatusOK)
	w.do(http.MethodGet, "/v1/me", token, nil).want(http.StatusOK)
	w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).want(http.StatusOK)
	w.do(http.MethodPost, "/v1/admin/keys/rotate", admin, map[string]any{"distrust": true}).want(http.StatusOK)
	w.do(http.MethodGet, "/v1/me", token, nil).problem(http.StatusUnauthorized, "unauthenticated")
	var devices struct{ Items []json.RawMessage }
	w.do(http.MethodGet, "/v1/devices", admin, nil).want(http.StatusOK).into(&devices)
	if len(devices.Items) != 1 {
		t.Errorf("%d devices", len(devices.Items))
	}
}
