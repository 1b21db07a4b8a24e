package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"mynah/internal/waitfor"
)

// The four forms of payload, and what a client may not decide.
func TestPayloadForms(t *testing.T) {
	t.Parallel()
	n := shared(t)
	group, alice := unique("group"), unique("alice")
	c := dial(t, n, "c", token(t, alice, groups(group)))
	c.sub(t, "group/"+group, 1)

	binary := "\xff\xfe\x00\x01"
	cases := []struct{ name, payload, wantType, wantBody string }{
		{"message with body", `{"body":"hello"}`, "text", `"hello"`},
		{"message with type", `{"type":"location","lat":1.5,"lon":2}`, "location", ``},
		{"application's own type", `{"type":"x-vote","body":[1,2]}`, "x-vote", `[1,2]`},
		{"other object", `{"temperature":21}`, "data", `{"temperature":21}`},
		{"type that is no string", `{"type":7}`, "data", `{"type":7}`},
		{"text", "héllo, 世界", "text", `"héllo, 世界"`},
		{"array", `[1,2,3]`, "data", `[1,2,3]`},
		{"number", `21.5`, "data", `21.5`},
		{"truth", `true`, "data", `true`},
		{"JSON string", `"x"`, "text", `"\"x\""`},
		{"malformed JSON", `{"body":`, "text", `"{\"body\":"`},
		{"binary", binary, "binary", `"` + base64.StdEncoding.EncodeToString([]byte(binary)) + `"`},
		{"broker's fields", `{"body":"mine","seq":1,"prev":2,"from":"eve","to":"user/eve","ts":3}`, "text", `"mine"`},
	}
	for i, test := range cases {
		c.pub(t, "group/"+group, 1, test.payload)
		waitfor.MustHold(t, test.name, func() bool { return len(c.all()) > i })
		d := c.all()[i]
		e := d.open(t)
		if e.Type != test.wantType || !sameJSON(string(e.Body), test.wantBody) {
			t.Errorf("%s: %s", test.name, d.Payload)
		}
		if e.From != alice || e.To != "group/"+group || e.Seq < 1e15 || e.TS < 1e12 {
			t.Errorf("%s: the broker's fields are not the broker's: %s", test.name, d.Payload)
		}
		// Each of them once: a second "from" behind the broker's would win in
		// most JSON readers.
		for _, key := range []string{"seq", "prev", "from", "to", "ts", "type"} {
			if got := strings.Count(string(d.Payload), `"`+key+`":`); got != 1 && test.name != "type that is no string" {
				t.Errorf("%s: key %s stands %d times in %s", test.name, key, got, d.Payload)
			}
		}
	}
}

// sameJSON compares values and treats "" as absent.
func sameJSON(a, b string) bool {
	if a == "" || b == "" {
		return a == b
	}
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && fmt.Sprint(x) == fmt.Sprint(y)
}

// The same mid is stored once; with another content it is refused.
func TestMid(t *testing.T) {
	t.Parallel()
	n := shared(t)
	group, alice := unique("group"), unique("alice")
	member := token(t, alice, groups(group))
	sub := mosquittoSub(t, n.mqtt, member, "mqttv5", "group/"+group, 1)
	js := connectJS(t, n, member, nil)

	first := js.publish(t, "group/"+group, 1, `{"body":"once","mid":"a"}`)
	seq := first.Packet.Properties.UserProperties["seq"]
	for _, qos := range []int{1, 2} {
		again := js.publish(t, "group/"+group, qos, `{"body":"once","mid":"a"}`)
		if got := again.Packet.Properties.UserProperties["seq"]; again.Packet.ReasonCode >= 0x80 || got != seq || seq == "" {
			t.Errorf("QoS %d repeated: reason %#x seq %q, want success and %s", qos, again.Packet.ReasonCode, got, seq)
		}
	}
	conflict := js.publish(t, "group/"+group, 1, `{"body":"other","mid":"a"}`)
	if conflict.Packet.ReasonCode < 0x80 || !strings.Contains(conflict.Packet.Properties.ReasonString, "conflict") {
		t.Errorf("another content under the same mid: %+v", conflict.Packet)
	}
	// From another device of the same sender it is the same message.
	dial(t, n, "second", member).pub(t, "group/"+group, 1, `{"body":"once","mid":"a"}`)
	// Another sender's mid is another.
	dial(t, n, "bob", token(t, unique("bob"), groups(group))).pub(t, "group/"+group, 1, `{"body":"bob's","mid":"a"}`)
	sub.waitText(t, "bob's")
	if got := sub.count("once"); got != 1 {
		t.Errorf("the message with a mid was delivered %d times", got)
	}
	if sub.count("other") != 0 {
		t.Error("the conflicting message was delivered")
	}
}

// What PostgreSQL could not hold, what only the system may say and what is over a
// limit is refused with a code, and the connection stays.
func TestBadMessages(t *testing.T) {
	t.Parallel()
	n := shared(t)
	group, alice := unique("group"), unique("alice")
	member := token(t, alice, groups(group))
	js := connectJS(t, n, member, nil)
	old := dial(t, n, "old", member) // 3.1.1
	old.sub(t, "user/"+alice+"/error", 0)
	old.sub(t, "group/"+group, 1)

	cases := []struct{ name, payload, code string }{
		{"U+0000 in text", "a\x00b", "bad_message"},
		{"U+0000 in JSON", `{"body":"a\u0000b"}`, "bad_message"},
		{"unpaired surrogate", `{"body":"\ud800"}`, "bad_message"},
		{"number beyond a double", `{"body":1e999}`, "bad_message"},
		{"system's type", `{"type":"notice.group.joined","body":{}}`, "bad_message"},
		{"bad type", `{"type":"No Spaces!","body":1}`, "bad_message"},
		{"mid too long", `{"body":"x","mid":"` + strings.Repeat("m", 65) + `"}`, "bad_message"},
		{"mid of the wrong kind", `{"body":"x","mid":7}`, "bad_message"},
		{"reply_to of the wrong kind", `{"body":"x","reply_to":"y"}`, "bad_message"},
		{"mentions of the wrong kind", `{"body":"x","mentions":"bob"}`, "bad_message"},
		{"nested too deep", strings.Repeat(`{"body":`, 40) + "1" + strings.Repeat("}", 40), "bad_message"},
		{"too large", `{"body":"` + strings.Repeat("x", 70_000) + `"}`, "too_large"},
	}
	for i, test := range cases {
		// MQTT 5: a reason code and a reason string in the acknowledgement.
		for _, qos := range []int{1, 2} {
			ack := js.publish(t, "group/"+group, qos, test.payload)
			if ack.Packet.ReasonCode < 0x80 || !strings.Contains(ack.Packet.Properties.ReasonString, test.code) {
				t.Errorf("%s, MQTT 5 QoS %d: %+v, want a refusal with %s", test.name, qos, ack.Packet, test.code)
			}
		}
		// 3.1.1: a positive acknowledgement and an explanation.
		old.pub(t, "group/"+group, 1, test.payload)
		errors := func() (n int) {
			for _, d := range old.all() {
				if d.Topic == "user/"+alice+"/error" {
					n++
				}
			}
			return n
		}
		waitfor.MustHold(t, "explanation of "+test.name, func() bool { return errors() > i })
		e := old.all()[len(old.all())-1].open(t)
		if e.Code != test.code || e.Topic != "group/"+group || e.Reason == "" {
			t.Errorf("%s, 3.1.1: %+v, want code %s", test.name, e, test.code)
		}
	}
	// The connections are still there, and nothing of all that came through.
	js.publish(t, "group/"+group, 1, "still here")
	old.waitText(t, "still here")
	for _, d := range old.all() {
		if d.Topic == "group/"+group && d.text() != "still here" {
			t.Errorf("a refused message was delivered: %s", d.Payload)
		}
	}
}
