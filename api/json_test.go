package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// Of two fields with one name some readers take the first and others the last: what looks at
// a request on its way (a proxy, a log) would see another than the server does. Messages are
// refused for the same.
func TestKeyTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.token("anna", "")
	w.do(http.MethodGet, "/v1/me", anna, nil).want(http.StatusOK)
	for body, key := range map[string]string{
		`{"name":"a","name":"b"}`:                                  `\"name\"`,
		`{"name":"a","avatar":"","name":"a"}`:                      `\"name\"`,
		`{"name":"a","n\u0061me":"b"}`:                             `\"name\"`,
		`{"ext":{"a":1,"b":{"c":[1,{"deep":1,"x":[],"deep":2}]}}}`: `\"deep\"`,
		`{"ext":{"a":{},"a":[]}}`:                                  `\"a\"`,
		`{"ext":{"":1,"":2}}`:                                      `\"\"`,
		`{"settings":{"find_by_id":true,"find_by_id":false}}`:      `\"find_by_id\"`,
		`{"ext":{"to\nto":1,"to\nto":1}}`:                          `to\\nto`,
		`{"ext":{"` + strings.Repeat("ä", 500) + `":1,"` + strings.Repeat("ä", 500) + `":1}}`: "ä…",
	} {
		r := w.do(http.MethodPatch, "/v1/me", anna, body).problem(http.StatusBadRequest, "invalid")
		if !contains(string(r.Body), key) || !contains(string(r.Body), "twice") {
			t.Errorf("%.60s: the answer does not name the key: %s", body, r.Body)
		}
	}
	for _, body := range []string{
		`{"name":"a","ext":{"name":"name","a":{"name":1},"b":[{"name":1},{"name":1}]}}`,
		`{"ext":{"a":"a","A":["a","a",{"a":[[]]},{"a":{}}]},"name":"ext"}`,
	} {
		w.do(http.MethodPatch, "/v1/me", anna, body).want(http.StatusOK)
	}
	// At sign-in, where nobody has proved who they are.
	w.do(http.MethodPost, "/v1/sessions/password", "", `{"id":"anna","id":"bert","password":"long enough"}`).problem(http.StatusBadRequest, "invalid")
}

// A field's name in a message is quoted: "expected required property to to be present" was
// read as a slip of the pen.
func TestMessagesQuoteNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.token("anna", "")
	group := w.do(http.MethodPost, "/v1/groups", anna, `{"name":"g"}`).want(http.StatusCreated).get("id")
	for call, want := range map[string]string{
		`POST /v1/groups/` + group + `/transfer {}`: `"message":"the property \"to\" is required"`,
		`POST /v1/people/find {"by":"x","key":"y"}`: `"location":"body.by","message":"must be one of: id, phone, mail"`,
		`PATCH /v1/me {"at":1}`:                     `"location":"body.at","message":"there is no such property"`,
		`POST /v1/contacts/requests {"id":"!"}`:     `"message":"must match the pattern \"^[A-Za-z0-9_.~-]+$\""`,
	} {
		method, rest, _ := strings.Cut(call, " ")
		path, body, _ := strings.Cut(rest, " ")
		r := w.do(method, path, anna, body).problem(http.StatusUnprocessableEntity, "invalid")
		if !contains(string(r.Body), want) {
			t.Errorf("%s: %s, want %s", call, r.Body, want)
		}
	}
}

// A body without a required field may be left out; the defaults of its fields hold then.
func TestBodiesThatMayBeLeftOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna, bert, boss := w.token("anna", ""), w.token("bert", ""), w.token("boss", "admin")
	group := w.do(http.MethodPost, "/v1/groups", anna, `{"name":"g","join":"open"}`).want(http.StatusCreated).get("id")
	path := func(rest string) string { return fmt.Sprintf("/v1/groups/%s/%s", group, rest) }
	if state := w.do(http.MethodPost, path("join"), bert, nil).want(http.StatusOK).get("state"); state != "member" {
		t.Errorf("state %q", state)
	}
	link := w.do(http.MethodPost, path("links"), anna, nil).want(http.StatusCreated)
	var valid struct {
		Link struct {
			Created, Expires string
			MaxUses          *int `json:"max_uses"`
		}
	}
	link.into(&valid)
	if valid.Link.MaxUses != nil || valid.Link.Created[:10] == valid.Link.Expires[:10] {
		t.Errorf("a link by default: %s", link.Body) // 168 hours
	}
	w.do(http.MethodPut, path("bans/carol"), anna, nil).want(http.StatusNoContent)
	w.do(http.MethodPatch, path("members/bert"), anna, nil).want(http.StatusOK)
	w.do(http.MethodPatch, "/v1/groups/"+group, anna, nil).want(http.StatusOK)
	w.do(http.MethodPatch, "/v1/me", anna, nil).want(http.StatusOK)
	w.do(http.MethodPatch, "/v1/me/privacy", anna, nil).want(http.StatusOK)
	device := w.do(http.MethodPost, "/v1/devices", boss, nil).want(http.StatusCreated).get("device.id")
	if token := w.do(http.MethodPost, "/v1/devices/"+device+"/credential", boss, nil).want(http.StatusCreated).get("token"); token == "" {
		t.Error("no new token")
	}
	w.do(http.MethodPost, "/v1/admin/keys/rotate", boss, nil).want(http.StatusOK)
	// A body of white space is none, but also no JSON.
	w.do(http.MethodPost, path("join"), bert, " ").problem(http.StatusBadRequest, "invalid")
	w.do(http.MethodPost, path("transfer"), anna, nil).problem(http.StatusBadRequest, "invalid")
}
