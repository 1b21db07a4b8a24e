package api_test

import (
	"net/http"
	"testing"

	"mynah/authhook"
)

// Guards against a group's owner, who anybody may be, that gets the token of a service,
// or of a device with more rights, which an operator has made for the group; and enables
// what an operator has disabled.
func TestDevicesOfOperators(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin, owner := w.token("boss", authhook.RoleAdmin), w.token("owner", authhook.RoleUser)
	group := w.do(http.MethodPost, "/v1/groups", owner, `{"name":"g"}`).want(http.StatusCreated).get("id")
	for id, spec := range map[string]map[string]any{
		"bot":   {"role": "service"},
		"door":  {"groups": []string{"board"}},
		"meter": {"acl_pub": []string{"meters/#"}},
		"ear":   {"acl_sub": []string{"meters/#"}},
	} {
		spec["id"], spec["group"] = id, group
		w.do(http.MethodPost, "/v1/devices", admin, spec).want(http.StatusCreated)
		for _, call := range []struct{ method, path, body string }{
			{http.MethodPost, "/credential", `{}`},
			{http.MethodPatch, "", `{"name":"mine"}`},
			{http.MethodPost, "/disable", ``},
			{http.MethodPost, "/enable", ``},
			{http.MethodDelete, "", ``},
		} {
			var body any
			if call.body != "" {
				body = call.body
			}
			w.do(call.method, "/v1/devices/"+id+call.path, owner, body).problem(http.StatusForbidden, "not_allowed")
		}
		w.do(http.MethodGet, "/v1/devices/"+id, owner, nil).want(http.StatusOK)
		w.do(http.MethodPost, "/v1/devices/"+id+"/credential", admin, `{}`).want(http.StatusCreated)
	}

	plain := "/v1/devices/" + w.do(http.MethodPost, "/v1/devices", owner, map[string]any{"group": group}).want(http.StatusCreated).get("device.id")
	w.do(http.MethodPost, plain+"/credential", owner, `{}`).want(http.StatusCreated)
	for _, by := range []struct {
		token   string
		enables int // what the owner gets who enables what they have disabled
	}{{owner, http.StatusNoContent}, {admin, http.StatusForbidden}} {
		w.do(http.MethodPost, plain+"/disable", owner, nil).want(http.StatusNoContent)
		w.do(http.MethodPost, plain+"/disable", by.token, nil).want(http.StatusNoContent)
		w.do(http.MethodPost, plain+"/disable", owner, nil).want(http.StatusNoContent) // changes nothing
		w.do(http.MethodPost, plain+"/enable", owner, nil).want(by.enables)
	}
	w.do(http.MethodPost, plain+"/enable", admin, nil).want(http.StatusNoContent)
}

// Guards against somebody who takes the id of a person that has not come yet, for a
// device, whatever --registration says.
func TestOwnersChooseNoDeviceIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	thief := w.token("thief", authhook.RoleUser)
	group := w.do(http.MethodPost, "/v1/groups", thief, `{"name":"g"}`).want(http.StatusCreated).get("id")
	w.do(http.MethodPost, "/v1/devices", thief, map[string]any{"group": group, "id": "ceo"}).problem(http.StatusForbidden, "not_allowed")
	w.do(http.MethodPost, "/v1/devices", w.token("boss", authhook.RoleAdmin), map[string]any{"group": group, "id": "lamp"}).want(http.StatusCreated)
}
