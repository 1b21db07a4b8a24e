package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"mynah/internal/waitfor"
)

// visitor is somebody who uses Mynah from outside: HTTP with the token that the
// API issued, MQTT with the same.
type visitor struct {
	tb    testing.TB
	node  *node
	id    string
	token string
	mqtt  *pahoClient
}

// object is a JSON object.
type object map[string]any

// call calls the API and returns the answer. The status must be 2xx.
func (v *visitor) call(method, path string, body any) object {
	v.tb.Helper()
	status, answer := v.try(method, path, body)
	if status/100 != 2 {
		v.tb.Fatalf("%s %s: status %d: %v", method, path, status, answer)
	}
	return answer
}

// try calls the API and returns the status and the answer.
func (v *visitor) try(method, path string, body any) (int, object) {
	v.tb.Helper()
	var reader io.Reader = http.NoBody
	if body != nil {
		reader = strings.NewReader(mustMarshal(v.tb, body))
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+v.node.http+path, reader)
	if err != nil {
		v.tb.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if v.token != "" {
		req.Header.Set("Authorization", "Bearer "+v.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		v.tb.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		v.tb.Fatal(err)
	}
	answer := object{}
	if len(bytes.TrimSpace(text)) > 0 {
		if err := json.Unmarshal(text, &answer); err != nil {
			v.tb.Fatalf("%s %s: %v: %s", method, path, err, text)
		}
	}
	return resp.StatusCode, answer
}

// visit registers somebody and connects them.
func visit(tb testing.TB, n *node, name string) *visitor {
	tb.Helper()
	v := &visitor{tb: tb, node: n, id: unique(name)}
	session := v.call(http.MethodPost, "/v1/accounts", object{"id": v.id, "password": "a long password", "name": name})
	v.token, _ = session["access_token"].(string)
	v.mqtt = dial(tb, n, "tour", v.token)
	v.mqtt.sub(tb, "user/"+v.id, 1)
	v.mqtt.sub(tb, "user/"+v.id+"/error", 0)
	v.mqtt.sub(tb, "group/+", 1)
	return v
}

// notice waits for a notice on a topic of which the body has the field.
func (v *visitor) notice(kind, topic, field, value string) {
	v.tb.Helper()
	v.mqtt.wait(v.tb, kind+" on "+topic, func(d delivery) bool {
		m := d.open(v.tb)
		var body object
		return d.Topic == topic && m.Type == kind && m.From == "system" && json.Unmarshal(m.Body, &body) == nil && body[field] == value
	})
}

// The tour of what people and devices do, from outside and with tokens that the
// API issued: register, become contacts, chat; a group; a third joins by a link
// and receives, is removed and receives nothing; a device joins a room.
func TestTour(t *testing.T) {
	t.Parallel()
	n := shared(t)
	anna, ben := visit(t, n, "anna"), visit(t, n, "ben")

	// Contacts, with notices on the way.
	anna.call(http.MethodPost, "/v1/contacts/requests", object{"id": ben.id, "note": "It is Anna."})
	ben.notice("notice.contact.request", "user/"+ben.id, "who", anna.id)
	ben.call(http.MethodPost, "/v1/contacts/requests/"+anna.id+"/accept", nil)
	anna.notice("notice.contact.accepted", "user/"+anna.id, "who", ben.id)

	// Only contacts may write to ben, and anna is one.
	ben.call(http.MethodPatch, "/v1/me/privacy", object{"write": "contacts"})
	anna.mqtt.pub(t, "user/"+ben.id, 1, "Hello Ben")
	if m := ben.mqtt.waitText(t, "Hello Ben"); m.From != anna.id {
		t.Errorf("from %q, want %q", m.From, anna.id)
	}
	ben.mqtt.pub(t, "user/"+anna.id, 1, "Hello Anna")
	anna.mqtt.waitText(t, "Hello Anna")

	// A stranger is refused, and so is, in the same words, whom one has blocked.
	carl := visit(t, n, "carl")
	waitfor.MustHold(t, "carl is refused", func() bool {
		carl.mqtt.pub(t, "user/"+ben.id, 1, "Buy this")
		for _, d := range carl.mqtt.all() {
			if strings.Contains(string(d.Payload), `"not_allowed"`) {
				return true
			}
		}
		return false
	})
	ben.call(http.MethodPut, "/v1/blocks/"+anna.id, nil)
	waitfor.MustHold(t, "anna is blocked", func() bool {
		anna.mqtt.pub(t, "user/"+ben.id, 1, "Are you there?")
		for _, d := range anna.mqtt.all() {
			if strings.Contains(string(d.Payload), `"not_allowed"`) {
				return true
			}
		}
		return false
	})
	ben.call(http.MethodDelete, "/v1/blocks/"+anna.id, nil)

	// A group that the second is invited to and the third joins by a link. All of
	// them receive by group/+, to which they subscribed before it was there.
	group, _ := anna.call(http.MethodPost, "/v1/groups", object{"name": "Hiking", "invite": []string{ben.id}})["id"].(string)
	topic := "group/" + group
	anna.notice("notice.group.created", "user/"+anna.id, "group", group)
	ben.notice("notice.group.invited", "user/"+ben.id, "group", group)
	ben.call(http.MethodPost, "/v1/groups/"+group+"/join", object{})
	anna.notice("notice.group.joined", topic, "who", ben.id)
	if status, _ := carl.try(http.MethodPost, "/v1/groups/"+group+"/join", object{}); status != http.StatusNotFound {
		t.Errorf("joining without an invitation: status %d, want 404", status)
	}
	link, _ := anna.call(http.MethodPost, "/v1/groups/"+group+"/links", object{"uses": 1})["token"].(string)
	carl.call(http.MethodPost, "/v1/links/join", object{"token": link})
	carl.notice("notice.group.joined", "user/"+carl.id, "group", group)
	waitfor.MustHold(t, "carl receives", func() bool {
		anna.mqtt.pub(t, topic, 1, "Welcome")
		return carl.mqtt.count("Welcome") > 0
	})
	ben.mqtt.waitText(t, "Welcome")
	carl.mqtt.pub(t, topic, 1, "Thank you")
	anna.mqtt.waitText(t, "Thank you")

	// The third is removed. What is said after the notice about it does not come.
	anna.call(http.MethodDelete, "/v1/groups/"+group+"/members/"+carl.id, nil)
	anna.notice("notice.group.kicked", topic, "who", carl.id)
	carl.notice("notice.group.kicked", "user/"+carl.id, "who", carl.id)
	waitfor.MustHold(t, "carl may not speak", func() bool {
		carl.mqtt.pub(t, topic, 1, "Let me in")
		for _, d := range carl.mqtt.all() {
			if strings.Contains(string(d.Payload), `"not_member"`) {
				return true
			}
		}
		return false
	})
	anna.mqtt.pub(t, topic, 1, "Between us")
	ben.mqtt.waitText(t, "Between us")
	carl.mqtt.pub(t, "user/"+carl.id, 1, "A note after that") // what was to come has come before it
	carl.mqtt.waitText(t, "A note after that")
	if carl.mqtt.count("Between us") != 0 {
		t.Error("carl received what was said after he was removed")
	}
	if status, _ := carl.try(http.MethodPost, "/v1/links/join", object{"token": link}); status != http.StatusNotFound {
		t.Errorf("the used link: status %d, want 404", status)
	}

	// A room, which a device joins by subscribing to it. Its token comes from the
	// owner of another group.
	room, _ := ben.call(http.MethodPost, "/v1/groups", object{"name": "Greenhouse", "join": "open"})["id"].(string)
	made := ben.call(http.MethodPost, "/v1/devices", object{"group": room, "name": "Thermometer"})
	device, _ := made["device"].(map[string]any)
	credential, _ := made["credential"].(map[string]any)
	token, _ := credential["token"].(string)
	sensor := dial(t, n, "sensor", token)
	sensor.sub(t, "group/"+room, 1)
	// ben has the room for a moment only; its messages reach him from within a second
	// of that, by the group/+ that he subscribed to long before.
	measured := func(d delivery) bool { return strings.Contains(string(d.Payload), "21.5") }
	waitfor.MustHold(t, "ben hears the sensor", func() bool {
		sensor.pub(t, "group/"+room, 1, `{"celsius":21.5}`)
		return slices.ContainsFunc(ben.mqtt.all(), measured)
	})
	data := ben.mqtt.wait(t, "the measurement", measured).open(t)
	if data.From != device["id"] || data.To != "group/"+room {
		t.Errorf("the measurement is from %s to %s", data.From, data.To)
	}
	anna.mqtt.sub(t, "group/"+room, 1) // people join a room like that, too
	anna.mqtt.pub(t, "group/"+room, 1, "It is warm")
	sensor.waitText(t, "It is warm")
	if members := anna.call(http.MethodGet, "/v1/groups/"+room+"/members", nil)["items"].([]any); len(members) != 2 {
		t.Errorf("the room has %d members in its list, want ben and anna", len(members))
	}
}
