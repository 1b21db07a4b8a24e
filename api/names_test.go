package api_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"mynah/authhook"
)

// Guards against people, groups and devices with names that show nothing: every field
// of every call that takes a name refuses them and cuts what shows nothing from the ends.
func TestNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin, anna, bert := w.token("boss", authhook.RoleAdmin), w.token("anna", authhook.RoleUser), w.token("bert", authhook.RoleUser)
	group := w.do(http.MethodPost, "/v1/groups", anna, `{"name":"g"}`).want(http.StatusCreated).get("id")
	device := w.do(http.MethodPost, "/v1/devices", admin, `{"id":"lamp"}`).want(http.StatusCreated).get("device.id")
	w.do(http.MethodPost, "/v1/contacts/requests", anna, `{"id":"bert"}`).want(http.StatusCreated)
	w.do(http.MethodPost, "/v1/contacts/requests/anna/accept", bert, nil).want(http.StatusOK)

	fields := []struct {
		method, pattern, path, field string
		token                        string
		more                         map[string]any
		status                       int
		shown                        string // where the answer has it, "" for nowhere
	}{
		{http.MethodPost, "/v1/accounts", "", "name", "", map[string]any{"password": "correct horse"}, http.StatusCreated, ""},
		{http.MethodPatch, "/v1/me", "", "name", anna, nil, http.StatusOK, "name"},
		{http.MethodPost, "/v1/devices", "", "name", admin, nil, http.StatusCreated, "device.name"},
		{http.MethodPost, "/v1/devices", "", "name", admin, map[string]any{"role": "service"}, http.StatusCreated, "device.name"},
		{http.MethodPatch, "/v1/devices/{id}", device, "name", admin, nil, http.StatusOK, "name"},
		{http.MethodPost, "/v1/groups", "", "name", anna, nil, http.StatusCreated, "name"},
		{http.MethodPatch, "/v1/groups/{id}", group, "name", anna, nil, http.StatusOK, "name"},
		{http.MethodPatch, "/v1/groups/{id}/members/{who}", group + " anna", "nickname", anna, nil, http.StatusOK, "nickname"},
		{http.MethodPatch, "/v1/contacts/{id}", "bert", "remark", anna, nil, http.StatusOK, "remark"},
	}
	tested := map[string]bool{}
	for _, f := range fields {
		tested[f.method+" "+f.pattern+" "+f.field] = true
		path := f.pattern
		for _, id := range strings.Fields(f.path) {
			begin, end := strings.IndexByte(path, '{'), strings.IndexByte(path, '}')
			path = path[:begin] + id + path[end+1:]
		}
		body := map[string]any{}
		for k, v := range f.more {
			body[k] = v
		}
		for _, name := range []string{"  ", "\u3000", "\u00a0", "\u200b", "\u200d", "\u2060", "\ufeff", "\u0301", "\u3164", "\u2800", "\u00ad", "\u202e"} {
			body[f.field] = name
			w.do(f.method, path, f.token, body).problem(http.StatusUnprocessableEntity, "invalid")
		}
		body[f.field] = "\u3000安娜 👨\u200d👩\u200d👧\u00a0\u200b"
		made := w.do(f.method, path, f.token, body).want(f.status)
		if f.shown != "" && made.get(f.shown) != "安娜 👨\u200d👩\u200d👧" {
			t.Errorf("%s %s: %s", f.method, path, made.Body)
		}
	}

	// The label of a device is the server's to clean: a sign-in does not fail for it.
	signed := w.do(http.MethodPost, "/v1/accounts", "", `{"password":"correct horse","device":"\u200b\u3000phone "}`).want(http.StatusCreated)
	var sessions struct{ Items []struct{ Device string } }
	w.do(http.MethodGet, "/v1/me/sessions", signed.get("access_token"), nil).into(&sessions)
	if len(sessions.Items) != 1 || sessions.Items[0].Device != "phone" {
		t.Errorf("sessions: %+v", sessions)
	}

	// A call that is new has to be above.
	for _, call := range namesInCalls(t, w) {
		if !tested[call] {
			t.Errorf("%s takes a name and is not tested here", call)
		}
	}
}

// namesInCalls returns method, path and field of all that take a name.
func namesInCalls(t *testing.T, w *world) []string {
	t.Helper()
	type schema struct {
		Ref        string                     `json:"$ref"`
		Properties map[string]json.RawMessage `json:"properties"`
	}
	var document struct {
		Paths map[string]map[string]struct {
			RequestBody struct {
				Content map[string]struct{ Schema schema }
			}
		}
		Components struct{ Schemas map[string]schema }
	}
	w.do(http.MethodGet, "/openapi.json", "", nil).into(&document)
	var found []string
	for path, methods := range document.Paths {
		for method, call := range methods {
			for _, content := range call.RequestBody.Content {
				body := content.Schema
				if body.Ref != "" {
					body = document.Components.Schemas[body.Ref[strings.LastIndexByte(body.Ref, '/')+1:]]
				}
				for field := range body.Properties {
					if slices.Contains([]string{"name", "nickname", "remark", "title"}, field) {
						found = append(found, strings.ToUpper(method)+" "+path+" "+field)
					}
				}
			}
		}
	}
	if len(found) < 8 {
		t.Fatalf("the document tells of %v alone", found)
	}
	return found
}

// Guards against who registers the id that the subject of a foreign token will have.
func TestEscapedIDsAreNobodys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for id, free := range map[string]bool{"auth0~7C5f": false, "~00": false, "a~FF": false, "a~7c": true, "a~b": true, "a~": true} {
		got := w.do(http.MethodPost, "/v1/accounts", "", map[string]string{"id": id, "password": "correct horse"})
		device := w.do(http.MethodPost, "/v1/devices", w.token("boss", authhook.RoleAdmin), map[string]string{"id": id + ".d"})
		if free {
			got.want(http.StatusCreated)
			device.want(http.StatusCreated)
		} else {
			got.problem(http.StatusConflict, "conflict")
			device.problem(http.StatusConflict, "conflict")
		}
	}
}
