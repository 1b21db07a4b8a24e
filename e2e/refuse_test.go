package e2e_test

import (
	"fmt"
	"testing"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/golang-jwt/jwt/v5"
)

// Publishes that are not allowed: a reason code for MQTT 5, an explanation on the
// error topic for 3.1.1; nothing is kept and the connection stays.
func TestPublishRefused(t *testing.T) {
	t.Parallel()
	n := shared(t)
	alice, bob, mine, others := unique("alice"), unique("bob"), unique("mine"), unique("others")
	member := token(t, alice, groups(mine), jwt.MapClaims{"acl": map[string]any{"pub": []string{"sensors/+/temp"}}})
	js := connectJS(t, n, member, nil)
	old := dial(t, n, "old", member)
	old.sub(t, "user/"+alice+"/error", 1)
	// Whoever may be reached by mistake.
	victim := dial(t, n, "bob", token(t, bob, groups(others)))
	for _, topic := range []string{"user/" + bob, "user/" + bob + "/signal", "user/" + bob + "/error", "group/+"} {
		victim.sub(t, topic, 1)
	}

	cases := []struct{ topic, code string }{
		{"group/" + others, "not_member"},
		{"group/" + others + "/signal", "not_member"},
		{"user/" + bob + "/error", "not_allowed"},
		{"presence/" + alice, "not_allowed"},
		{"presence/" + bob, "not_allowed"},
		{"$SYS/broker/uptime", "not_allowed"},
		{"user/" + bob + "/other", "bad_topic"},
		{"user/no spaces", "bad_topic"},
		{"group", "bad_topic"},
		{"sensors/kitchen/humidity", "not_allowed"},
		{"anything/else", "not_allowed"},
	}
	for i, test := range cases {
		for _, qos := range []int{1, 2} {
			ack := js.publish(t, test.topic, qos, "let me in")
			reason := ack.Packet.Properties.ReasonString
			// Which of the two words it is for a topic that does not exist is
			// not promised.
			if ack.Packet.ReasonCode < 0x80 || reason == "" {
				t.Errorf("%s, MQTT 5 QoS %d: reason %#x %q, want a refusal with a reason", test.topic, qos, ack.Packet.ReasonCode, reason)
			}
		}
		old.pub(t, test.topic, 1, fmt.Sprintf(`{"body":"let me in","mid":"m%d"}`, i))
		d := old.wait(t, "explanation for "+test.topic, func(d delivery) bool { return d.open(t).Topic == test.topic })
		e := d.open(t)
		if e.Code != test.code && (test.code != "bad_topic" || e.Code != "not_allowed") {
			t.Errorf("%s, 3.1.1: code %s, want %s (%s)", test.topic, e.Code, test.code, d.Payload)
		}
		if e.Mid != "" && e.Mid != fmt.Sprintf("m%d", i) {
			t.Errorf("%s, 3.1.1: mid %q in %s", test.topic, e.Mid, d.Payload)
		}
	}

	// Both connections are alive, and the only thing that came through is what
	// may.
	js.publish(t, "user/"+bob, 1, "hello")
	old.pub(t, "user/"+bob, 1, "good bye")
	victim.waitText(t, "good bye")
	if got := victim.all(); len(got) != 2 {
		t.Errorf("the victim got %s", victim)
	}
	if rows := query(t, n.database, "sender = $1", alice); len(rows) > 2 {
		t.Errorf("refused messages are in the archive: %+v", rows)
	}
	// MQTT 5 clients have no use for the explanations: they had the reason.
	for _, d := range old.all() {
		if d.Topic != "user/"+alice+"/error" {
			t.Errorf("unexpected delivery %s %s", d.Topic, d.Payload)
		}
	}
}

// A topic with a wildcard cannot be published to: that is a protocol error in
// MQTT, and ours is not to fan it out whatever else happens.
func TestPublishToWildcard(t *testing.T) {
	t.Parallel()
	n := shared(t)
	bob := unique("bob")
	group := unique("group")
	victim := dial(t, n, "bob", token(t, bob, groups(group)))
	victim.sub(t, "user/"+bob, 1)
	victim.sub(t, "group/+", 1)
	for _, topic := range []string{"group/+", "user/#", "#"} {
		r := dialRaw(t, n.mqtt)
		r.write(t, connectPacket(4, "raw", token(t, unique("alice"), groups(group))))
		r.connack(t)
		r.write(t, publishPacket(4, topic, 1, 7, "everyone"))
		r.write(t, []byte{0xc0, 0}) // PINGREQ: answered if the connection stays
		r.readUntilAnswerOrEnd(t)
	}
	dial(t, n, "other", token(t, unique("carol"))).pub(t, "user/"+bob, 1, "end")
	victim.waitText(t, "end")
	if got := victim.all(); len(got) != 1 {
		t.Errorf("a publish to a wildcard arrived: %s", victim)
	}
}

// Subscriptions that are not allowed are refused in SUBACK, and the connection
// stays.
func TestSubscribeRefused(t *testing.T) {
	t.Parallel()
	n := shared(t)
	alice, bob, mine, others := unique("alice"), unique("bob"), unique("mine"), unique("others")
	tok := token(t, alice, groups(mine))
	js := connectJS(t, n, tok, nil)
	old := dial(t, n, "old", tok)
	for _, filter := range []string{
		"#", "+", "+/+", "user/+", "user/#", "user/" + bob, "user/" + bob + "/signal", "user/" + bob + "/error", "user/+/error",
		"$share/x/user/" + bob, "$share/x/user/" + alice, "$share/x/group/+", "group/#", "group/" + others, "group/" + others + "/signal",
		"$SYS/#", "presence/#", "presence/+", "$mynah/#", "$mynah/token", "sensors/#", "+/" + alice,
	} {
		if code := js.subscribe(t, filter, 1); code < 0x80 {
			t.Errorf("%s, MQTT 5: granted QoS %d", filter, code)
		} else if code != 0x87 && code != 0x9e && code != 0xa2 && code != 0x8f {
			t.Errorf("%s, MQTT 5: reason %#x, want 0x87", filter, code)
		}
		if code := subackCode(t, old, filter); code != 0x80 {
			t.Errorf("%s, 3.1.1: %#x, want 0x80", filter, code)
		}
	}
	old.sub(t, "user/"+alice, 1) // still connected
	js.publish(t, "user/"+alice, 1, "hello")
	old.waitText(t, "hello")
}

func subackCode(tb testing.TB, c *pahoClient, filter string) byte {
	tb.Helper()
	t, ok := c.Subscribe(filter, 1, nil).(*paho.SubscribeToken)
	if !ok || !t.WaitTimeout(deadline) {
		tb.Fatalf("no answer to SUBSCRIBE %s", filter)
	}
	// Under the filter, from which paho takes $share/x/ away.
	for _, code := range t.Result() {
		return code
	}
	tb.Fatalf("SUBSCRIBE %s: %v", filter, t.Error())
	return 0
}

// Roles archiver, service and admin see everything.
func TestSubscribeToEverything(t *testing.T) {
	t.Parallel()
	n := shared(t)
	group, alice := unique("group"), unique("alice")
	for _, role := range []string{"archiver", "service", "admin"} {
		c := dial(t, n, unique("all"), token(t, unique(role), jwt.MapClaims{"role": role}))
		c.sub(t, "user/#", 1)
		c.sub(t, "group/#", 1)
		sender := dial(t, n, "alice", token(t, alice, groups(group)))
		direct, group1 := unique("direct"), unique("group")
		sender.pub(t, "user/"+unique("bob"), 1, direct)
		sender.pub(t, "group/"+group, 1, group1)
		c.waitText(t, direct)
		c.waitText(t, group1)
		if got := c.count(direct); got != 1 {
			t.Errorf("%s: a direct message came %d times", role, got)
		}
	}
}

// A will on a forbidden topic refuses the CONNECT.
func TestForbiddenWill(t *testing.T) {
	t.Parallel()
	n := shared(t)
	tok := token(t, unique("alice"))
	for _, topic := range []string{"group/" + unique("others"), "user/bob/error", "presence/bob", "$SYS/x", "group/+", "user/#", "sensors/1", "$mynah/token"} {
		options := pahoOptions(n, "c", tok).SetWill(topic, "gone", 1, false)
		c := paho.NewClient(options)
		connect := c.Connect()
		if !connect.WaitTimeout(deadline) {
			t.Fatalf("will on %s: no answer to CONNECT", topic)
		}
		if connect.Error() == nil {
			c.Disconnect(0)
			t.Errorf("a will on %s was accepted", topic)
		}
		js := newJS(t)
		e := js.connect(t, "ws://"+n.http+"/mqtt", tok, map[string]any{"will": map[string]any{"topic": topic, "payload": "gone", "qos": 1}})
		if e.Event == "connect" {
			t.Errorf("MQTT 5: a will on %s was accepted", topic)
		}
	}
}

// Topics outside the chat are plain MQTT, by acl: retained, with wildcards.
func TestPlainTopics(t *testing.T) {
	t.Parallel()
	n := shared(t)
	room := unique("room")
	device := dial(t, n, "sensor", token(t, unique("sensor"), jwt.MapClaims{"role": "device", "acl": map[string]any{"pub": []string{"sensors/" + room + "/#"}}}))
	done(t, device.Publish("sensors/"+room+"/temp", 1, true, "21.5"), "publish retained")
	reader := token(t, unique("reader"), jwt.MapClaims{"acl": map[string]any{"sub": []string{"sensors/#"}}})
	sub := mosquittoSub(t, n.mqtt, reader, "mqttv5", "sensors/"+room+"/+", 1)
	d := sub.wait(t, "retained value", func(d delivery) bool { return d.Topic == "sensors/"+room+"/temp" })
	if !d.Retained || string(d.Payload) != "21.5" {
		t.Errorf("the retained value: %+v %s", d, d.Payload)
	}
	device.pub(t, "sensors/"+room+"/temp", 0, "22")
	sub.wait(t, "live value", func(d delivery) bool { return string(d.Payload) == "22" && !d.Retained })
	if rows := query(t, n.database, "topic LIKE 'sensors/%'"); len(rows) != 0 {
		t.Errorf("plain topics are in the archive: %+v", rows)
	}
	// A message to a chat topic is never retained.
	bob := unique("bob")
	sender := dial(t, n, "alice", token(t, unique("alice")))
	done(t, sender.Publish("user/"+bob, 1, true, "retained?"), "publish")
	late := dial(t, n, "bob", token(t, bob))
	late.sub(t, "user/"+bob, 1)
	sender.pub(t, "user/"+bob, 1, "end")
	late.waitText(t, "end")
	if late.count("retained?") != 0 {
		t.Error("a chat message was retained")
	}
}

// A web page of an origin that is not on the list may not open a WebSocket.
func TestWebSocketOrigin(t *testing.T) {
	t.Parallel()
	n := shared(t)
	tok := token(t, unique("alice"))
	for origin, want := range map[string]string{
		"https://chat.example.com":      "connect",
		"https://evil.example":          "close",
		"https://chat.example.com.evil": "close",
		"http://chat.example.com":       "close",
	} {
		e := newJS(t).connect(t, "ws://"+n.http+"/mqtt", tok, map[string]any{"wsOptions": map[string]any{"headers": map[string]string{"Origin": origin}}})
		if e.Event != want {
			t.Errorf("origin %s: %+v, want %s", origin, e, want)
		}
	}
}
