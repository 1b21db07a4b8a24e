package broker_test

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/internal/mqttest"
	"mynah/internal/mqttwire"
)

// publishesWith publishes at QoS 1 with properties that packets.Properties cannot say and
// returns the PUBACK.
func publishesWith(c *mqttest.Client, topic, payload string, retain bool, props mqttwire.Properties) packets.Packet {
	p := mqttwire.Packet{
		Type: packets.Publish, QoS: 1, ID: c.ID(), Topic: topic, Payload: []byte(payload), Retain: retain, Properties: props,
	}
	c.SendBytes(p.Append(nil, 5))
	return c.Expect(packets.Puback)
}

// noTime is a Message Expiry Interval of 0.
func noTime() mqttwire.Properties {
	return mqttwire.Properties(nil).WithInt(mqttwire.MessageExpiryInterval, 0)
}

// A Message Expiry Interval of 0 was taken for none. Who is there gets the message, by
// whatever subscription, also many of them; who is away, or has no room, does not; the
// archive has it (MQTT 5, 3.3.2.3.3).
func TestExpiresAtOnce(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	away := v5(keep(user(t, "alice", "away", "room")))
	for _, o := range []mqttest.Options{away} {
		c := mqttest.Dial(t, addr, o)
		c.Subscribe(1, "group/room", "user/alice")
		c.Disconnect()
	}
	busy := mqttest.Dial(t, addr, withReceiveMaximum(v5(user(t, "carol", "busy", "room")), 1))
	busy.Subscribe(1, "group/room")
	here := map[string]*mqttest.Client{}
	for name, subscribe := range map[string]func(c *mqttest.Client){
		"qos0": func(c *mqttest.Client) { c.Subscribe(0, "group/room") },
		"qos1": func(c *mqttest.Client) { c.Subscribe(1, "group/room") },
		"qos2": func(c *mqttest.Client) { c.Subscribe(2, "group/+") },
		"ids": func(c *mqttest.Client) {
			c.SubscribeWith(packets.Properties{SubscriptionIdentifier: []int{5}}, packets.Subscription{Filter: "group/room", Qos: 1})
		},
		"nolocal": func(c *mqttest.Client) {
			c.SubscribeWith(packets.Properties{}, packets.Subscription{Filter: "group/room", Qos: 1, NoLocal: true})
		},
	} {
		here[name] = mqttest.Dial(t, addr, v5(user(t, "alice", name, "room")))
		subscribe(here[name])
	}
	old := mqttest.Dial(t, addr, user(t, "alice", "old", "room"))
	old.Subscribe(1, "group/room")
	here["3.1.1"] = old

	bob := mqttest.Dial(t, addr, v5(user(t, "bob", "phone", "room")))
	bob.PublishAcked("group/room", 1, "before")
	for i := range 30 {
		publishesWith(bob, "group/room", fmt.Sprint("n", i), false, noTime())
	}
	bob.PublishAcked("group/room", 1, "after")
	want := []string{"before"}
	for i := range 30 {
		want = append(want, fmt.Sprint("n", i))
	}
	want = append(want, "after")
	for name, c := range here {
		for _, body := range want {
			m := c.ReceiveAcked()
			if m.Body != body {
				t.Fatalf("%s: got %v, want %s", name, m.Body, body)
			}
		}
		c.ExpectNothing()
	}
	for _, body := range []string{"before", "after"} {
		if m := busy.ReceiveAcked(); m.Body != body {
			t.Errorf("a client without room got %v, want %s", m.Body, body)
		}
	}
	c := mqttest.Dial(t, addr, away)
	for _, body := range []string{"before", "after"} {
		if m := c.ReceiveAcked(); m.Body != body {
			t.Errorf("a client that was away got %v, want %s", m.Body, body)
		}
	}
	c.ExpectNothing()
	archiver := mqttest.Dial(t, addr, mqttest.Options{
		ClientID: "archiver", KeepSession: true, Token: mustToken(t, authhook.TokenClaims{Subject: "archiver", Role: authhook.RoleArchiver}),
	})
	archiver.Subscribe(1, "user/#", "group/#")
	for _, body := range want {
		if m := archiver.ReceiveAcked(); m.Body != body {
			t.Fatalf("the archiver got %v, want %s", m.Body, body)
		}
	}
}

// The same for topics outside the chat, and for what is retained there: it takes back what
// was retained before.
func TestPlainExpiresAtOnce(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	away := mqttest.Dial(t, addr, v5(keep(wide(t, "away"))))
	away.Subscribe(1, "plant/#")
	away.Disconnect()
	busy := mqttest.Dial(t, addr, withReceiveMaximum(v5(wide(t, "busy")), 1))
	busy.Subscribe(1, "plant/#")
	var here []*mqttest.Client
	for qos := range byte(3) {
		c := mqttest.Dial(t, addr, v5(wide(t, fmt.Sprint("here", qos))))
		c.Subscribe(qos, "plant/#")
		here = append(here, c)
	}
	bob := mqttest.Dial(t, addr, v5(wide(t, "bob")))
	sends(bob, "plant/a", "before", true, packets.Properties{})
	for i := range 10 {
		if ack := publishesWith(bob, "plant/a", fmt.Sprint(i), true, noTime()); ack.ReasonCode != 0 {
			t.Errorf("reason %#x", ack.ReasonCode)
		}
	}
	sends(bob, "plant/b", "after", false, packets.Properties{})
	for qos, c := range here {
		mustGet(t, c, "before")
		for i := range 10 {
			mustGet(t, c, fmt.Sprint(i))
		}
		mustGet(t, c, "after")
		if c.ExpectNothing(); t.Failed() {
			t.Fatalf("at qos %d", qos)
		}
	}
	mustGet(t, busy, "before")
	mustGet(t, busy, "after")
	back := mqttest.Dial(t, addr, v5(keep(wide(t, "away"))))
	mustGet(t, back, "before")
	mustGet(t, back, "after")
	back.ExpectNothing()
	late := mqttest.Dial(t, addr, v5(wide(t, "late")))
	late.Subscribe(1, "plant/#")
	late.ExpectNothing()
}

// A will may have an interval of 0 as well.
func TestWillExpiresAtOnce(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := v5(keep(user(t, "alice", "phone")))
	alice := mqttest.Dial(t, addr, o)
	alice.Subscribe(1, "user/alice")
	alice.Disconnect()
	connect := mqttwire.Connect{
		Version: 5, ClientID: "phone", Password: user(t, "bob", "phone").Token, Clean: true,
		Will: &mqttwire.Will{Topic: "user/alice", Payload: []byte("bob is gone"), QoS: 1, Properties: noTime()},
	}
	conn := mustConnect(t, addr, connect)
	watch := mqttest.Dial(t, addr, mqttest.Options{
		ClientID: "w", Token: mustToken(t, authhook.TokenClaims{Subject: "watch", Role: authhook.RoleAdmin}),
	})
	watch.Subscribe(1, "user/#")
	_ = conn.Close()
	if m := watch.ReceiveAcked(); m.Body != "bob is gone" {
		t.Errorf("got %v", m.Body)
	}
	mqttest.Dial(t, addr, o).ExpectNothing()
}

// seqOf returns the seq that a PUBACK tells.
func seqOf(tb testing.TB, ack packets.Packet) string {
	tb.Helper()
	for _, u := range ack.Properties.User {
		if u.Key == "seq" {
			return u.Val
		}
	}
	tb.Fatalf("reason %#x %q, no seq", ack.ReasonCode, ack.Properties.ReasonString)
	return ""
}

// A client that publishes a message again, with the same mid and the same value in other
// bytes, got a conflict.
func TestSameValueIsDuplicate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	bob := mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "bob", "phone")))
	first := `{"mid":"m1","type":"x-a","body":{"n":1,"t":"你/","f":-0}}`
	seq := seqOf(t, bob.PublishAcked("user/alice", 1, first))
	b = restart(t, b, dir)
	bob = mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "bob", "phone")))
	for _, again := range []string{
		first,
		`{"body":{"t":"\u4f60\/","f":0,"n":1.0},"type":"x-a","mid":"m1"}`,
		` {"type":"x-a", "mid":"\u006d1", "seq":77, "body" : {"n":1e0,"f":0.0,"t":"你/"}}`,
	} {
		if got := seqOf(t, bob.PublishAcked("user/alice", 1, again)); got != seq {
			t.Errorf("%s has seq %s, want the first one's %s", again, got, seq)
		}
	}
	for topic, other := range map[string]string{
		"user/alice":  `{"mid":"m1","type":"x-a","body":{"n":"1","t":"你/","f":0}}`,
		"user/carol":  first,
		"user/alice2": `{"mid":"m1","type":"x-a","body":{"n":1,"t":"你/","f":0},"x":1}`,
	} {
		if ack := bob.PublishAcked(topic, 1, other); !strings.HasPrefix(ack.Properties.ReasonString, "conflict") {
			t.Errorf("%s on %s: reason %#x %q, want a conflict", other, topic, ack.ReasonCode, ack.Properties.ReasonString)
		}
	}
}

// Anyone in a group could edit and recall anyone's message.
func TestWhoMayChange(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, v5(user(t, "alice", "phone", "room", "hall")))
	bob := mqttest.Dial(t, addr, v5(user(t, "bob", "phone", "room")))
	system := mqttest.Dial(t, addr, v5(mqttest.Options{
		ClientID: "s", Token: mustToken(t, authhook.TokenClaims{Subject: "system", Role: authhook.RoleService}),
	}))
	inRoom := seqOf(t, alice.PublishAcked("group/room", 1, "in the room"))
	inHall := seqOf(t, alice.PublishAcked("group/hall", 1, "in the hall"))
	direct := seqOf(t, alice.PublishAcked("user/bob", 1, "to bob"))
	fromBob := seqOf(t, bob.PublishAcked("user/alice", 1, "to alice"))
	notice := seqOf(t, system.PublishAcked("group/room", 1, `{"type":"notice.group.renamed","body":{}}`))
	edited := seqOf(t, alice.PublishAcked("group/room", 1, `{"type":"edit","of":`+inRoom+`,"body":"better"}`))

	type attempt struct {
		by            *mqttest.Client
		topic, change string
		code          string // "" if it is accepted
		reason        string
	}
	attempts := []attempt{
		{alice, "user/bob", `"recall","of":` + direct, "", ""},
		{alice, "user/bob", `"edit","body":1,"of":` + direct, "", ""},
		{bob, "user/alice", `"edit","body":1,"of":` + direct, "not_allowed", "is not yours to edit"},
		{bob, "group/room", `"edit","body":1,"of":` + inRoom, "not_allowed", "is not yours to edit"},
		{bob, "group/room", `"recall","of":` + inRoom, "not_allowed", "is not yours to recall"},
		{alice, "group/hall", `"recall","of":` + inRoom, "not_allowed", "is not in group/hall"},
		{alice, "user/bob", `"recall","of":` + inHall, "not_allowed", "is not in dm/alice/bob"},
		{alice, "user/bob", `"recall","of":` + fromBob, "not_allowed", "is not yours to recall"},
		{alice, "user/carol", `"recall","of":` + direct, "not_allowed", "is not in dm/alice/carol"},
		{alice, "group/room", `"recall","of":9007199254740991`, "not_allowed", "there is no message"},
		{alice, "group/room", `"recall","of":1`, "not_allowed", "is too old"},
		{alice, "group/room", `"recall","of":` + edited, "not_allowed", "is of type edit, which only changes others; of is the seq of one that people read"},
		{system, "group/room", `"recall","of":` + notice, "not_allowed", "is a notice"},
		{bob, "group/room", `"recall"`, "bad_message", "needs of"},
		{bob, "group/room", `"edit","of":5`, "bad_message", "needs body"},
		{bob, "group/room", `"read","seq":5`, "bad_message", "needs upto"},
		{bob, "group/room", `"reaction","of":` + inRoom, "bad_message", "needs key"},
		{bob, "group/room", `"reaction","key":"👍","of":` + inRoom, "", ""},
		{bob, "group/room", `"reaction","key":"👍","remove":true,"of":` + inRoom, "", ""},
		{bob, "group/room", `"reaction","key":"👍","of":` + inHall, "not_allowed", "is not in group/room"},
		{bob, "group/room", `"reaction","key":"👍","of":` + edited, "not_allowed", "is of type edit"},
		{bob, "group/room", `"reaction","key":"👍","of":1`, "", ""}, // only the archive can tell
		{bob, "group/room", `"pin","of":` + inRoom, "", ""},
		{bob, "group/room", `"pin","of":` + notice, "", ""},
		{bob, "group/room", `"pin","of":` + direct, "not_allowed", "is not in group/room"},
		{bob, "group/room", `"read","upto":` + inRoom, "", ""},
		{bob, "group/room/signal", `"read","upto":` + inRoom, "bad_message", "not signals"},
		{alice, "group/room/signal", `"recall","of":` + inRoom, "bad_message", "not signals"},
	}
	for _, a := range attempts {
		ack := a.by.PublishAcked(a.topic, 1, `{"type":`+a.change+`}`)
		if !strings.HasPrefix(ack.Properties.ReasonString, a.code) || !strings.Contains(ack.Properties.ReasonString, a.reason) ||
			(ack.ReasonCode >= 0x80) != (a.code != "") {
			t.Errorf("%s on %s: reason %#x %q, want %s: …%s…", a.change, a.topic, ack.ReasonCode, ack.Properties.ReasonString, a.code, a.reason)
		}
	}

	// A retry of what is stored is told so, whatever has become of the message since.
	again := `{"type":"recall","mid":"r1","of":` + inRoom + `}`
	seq := seqOf(t, alice.PublishAcked("group/room", 1, again))
	b = restart(t, b, dir)
	alice = mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "alice", "phone", "room", "hall")))
	if got := seqOf(t, alice.PublishAcked("group/room", 1, again)); got != seq {
		t.Errorf("the retry has seq %s, want %s", got, seq)
	}
}

// MQTT 5 properties of chat messages were dropped.
func TestPropertiesTravel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	addr := b.MQTTAddr().String()
	live := mqttest.Dial(t, addr, v5(user(t, "alice", "live")))
	live.Subscribe(1, "user/alice", "user/alice/signal")
	old := mqttest.Dial(t, addr, user(t, "alice", "old"))
	old.Subscribe(1, "user/alice", "user/alice/signal")
	late := v5(keep(user(t, "alice", "late")))
	c := mqttest.Dial(t, addr, late)
	c.Subscribe(2, "user/alice")
	c.Disconnect()
	bob := mqttest.Dial(t, addr, v5(user(t, "bob", "phone")))
	props := packets.Properties{
		ContentType: "text/plain", ResponseTopic: "user/bob", CorrelationData: []byte{0, 0xff},
		User: []packets.UserProperty{{Key: "a", Val: `"<1>"`}, {Key: "a", Val: "2"}},
	}
	const want = `"ext":{"mqtt":{"content_type":"text/plain","response_topic":"user/bob","correlation_data":"AP8=",` +
		`"user_properties":[["a","\"<1>\""],["a","2"]]}`
	check := func(what string, m mqttest.Message, v5 bool, ext string) {
		t.Helper()
		if !strings.Contains(string(m.Payload), want+ext+"}") {
			t.Errorf("%s: got %s", what, m.Payload)
		}
		if p := m.Properties; v5 && (p.ContentType != props.ContentType || p.ResponseTopic != props.ResponseTopic ||
			string(p.CorrelationData) != string(props.CorrelationData) || !slices.Equal(p.User, props.User)) {
			t.Errorf("%s: properties %+v", what, p)
		}
	}
	payloads := map[string]string{
		"hello": "", "\xff": "", "21.5": "", `{"a":1}`: "",
		`{"body":1}`: "",
		`{ "ext" : { "\u006dqtt" : 1 , "mine" : [ 1 ] , "mqtt" : {} } , "body" : 1 }`: `,"mine":[1]`,
	}
	for payload, ext := range payloads {
		if code := sends(bob, "user/alice", payload, false, props); code != 0 {
			t.Fatalf("%q: reason %#x", payload, code)
		}
		check("live", live.ReceiveAcked(), true, ext)
		check("3.1.1", old.ReceiveAcked(), false, ext)
		if code := sends(bob, "user/alice/signal", payload, false, props); code != 0 {
			t.Fatalf("%q as a signal: reason %#x", payload, code)
		}
		check("live signal", live.ReceiveAcked(), true, ext)
		check("3.1.1 signal", old.ReceiveAcked(), false, ext)
	}
	// Without properties the application's own ext.mqtt is left alone.
	sends(bob, "user/alice", `{"body":1,"ext":{"mqtt":7}}`, false, packets.Properties{})
	if m := live.ReceiveAcked(); !strings.Contains(string(m.Payload), `"ext":{"mqtt":7}`) || m.Properties.ContentType != "" {
		t.Errorf("got %s", m.Payload)
	}
	// They are on disk.
	b = restart(t, b, dir)
	c = mqttest.Dial(t, b.MQTTAddr().String(), late)
	for range payloads {
		m := c.ReceiveAcked()
		if m.Properties.ResponseTopic != "user/bob" || !strings.Contains(string(m.Payload), want) {
			t.Errorf("late: got %s, %+v", m.Payload, m.Properties)
		}
	}

	bob = mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "bob", "phone")))
	for _, size := range []int{8192, 8193} {
		data := make([]byte, size-3)
		bob.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: bob.ID(), TopicName: "user/alice",
			Payload: []byte("x"), Properties: packets.Properties{CorrelationData: data},
		})
		ack := bob.Expect(packets.Puback)
		if refused := strings.HasPrefix(ack.Properties.ReasonString, "too_large"); refused != (size > 8192) {
			t.Errorf("%d bytes of properties: reason %#x %q", size, ack.ReasonCode, ack.Properties.ReasonString)
		}
	}
}

// A device that sends a request and waits for the response on a topic where its own
// messages come back took the request for the response.
func TestRequestIsNotItsOwnResponse(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, v5(user(t, "alice", "phone", "room")))
	laptop := mqttest.Dial(t, addr, v5(user(t, "alice", "laptop", "room")))
	bob := mqttest.Dial(t, addr, v5(user(t, "bob", "phone", "room")))
	for _, c := range []*mqttest.Client{alice, laptop, bob} {
		c.Subscribe(1, "group/room")
	}
	alice.Subscribe(1, "user/alice")
	laptop.Subscribe(1, "user/alice")
	bob.Subscribe(1, "user/bob")
	request := packets.Properties{ResponseTopic: "user/alice", CorrelationData: []byte("7")}
	for _, topic := range []string{"user/bob", "group/room"} {
		sends(alice, topic, "what time is it?", false, request)
		m := bob.ReceiveAcked()
		if m.Properties.ResponseTopic != "user/alice" {
			t.Errorf("bob got %s, %+v", m.Payload, m.Properties)
		}
		sends(bob, m.Properties.ResponseTopic, "late", false, packets.Properties{CorrelationData: m.Properties.CorrelationData})
		if m := alice.ReceiveAcked(); m.Body != "late" || string(m.Properties.CorrelationData) != "7" {
			t.Errorf("alice got %s, %+v", m.Payload, m.Properties)
		}
		for _, body := range []string{"what time is it?", "late"} {
			if m := laptop.ReceiveAcked(); m.Body != body {
				t.Errorf("her laptop got %s, want %s", m.Payload, body)
			}
		}
		if m := bob.ReceiveAcked(); topic == "user/bob" && m.Body != "late" {
			t.Errorf("bob got %s", m.Payload)
		}
	}
	alice.ExpectNothing()
}

// A retained publish to a chat topic was not retained without a word.
func TestNotRetained(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	for _, version := range []byte{4, 5} {
		o := user(t, "alice", "phone")
		o.Version = version
		alice := mqttest.Dial(t, b.MQTTAddr().String(), o)
		alice.Subscribe(0, "user/alice/error")
		publish := func(topic, payload string) packets.Packet {
			p := mqttwire.Packet{Type: packets.Publish, QoS: 1, ID: alice.ID(), Topic: topic, Payload: []byte(payload), Retain: true}
			alice.SendBytes(p.Append(nil, version))
			return packets.Packet{}
		}
		publish("user/bob", `{"mid":"m1","body":"hi"}`)
		if r := mustRefusal(t, alice); r.Code != "not_retained" || r.Mid == "" || r.Topic != "user/bob" {
			t.Errorf("explained as %+v", r)
		}
		if ack := alice.Expect(packets.Puback); ack.ReasonCode != 0 {
			t.Errorf("reason %#x", ack.ReasonCode)
		}
		publish("user/bob", "again")
		if ack := alice.Expect(packets.Puback); ack.ReasonCode != 0 {
			t.Errorf("reason %#x", ack.ReasonCode)
		}
		alice.ExpectNothing()
		alice.Disconnect()
	}
}

// An empty payload, by which MQTT takes back what is retained, was stored as an empty text.
func TestEmptyIsRefused(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	alice := mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "alice", "phone")))
	for _, topic := range []string{"user/bob", "user/bob/signal"} {
		if ack := alice.PublishAcked(topic, 1, ""); ack.ReasonCode != 0x99 || !strings.HasPrefix(ack.Properties.ReasonString, "bad_message") {
			t.Errorf("%s: reason %#x %q", topic, ack.ReasonCode, ack.Properties.ReasonString)
		}
	}
}

// mustConnect connects with a CONNECT that mqttest cannot say.
func mustConnect(tb testing.TB, addr string, c mqttwire.Connect) net.Conn {
	tb.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	if _, err := conn.Write(c.Append(nil)); err != nil {
		tb.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(mqttest.Timeout))
	head := make([]byte, 4)
	if _, err := io.ReadFull(conn, head); err != nil || head[0]>>4 != packets.Connack || head[3] != 0 {
		tb.Fatalf("CONNACK % x: %v", head, err)
	}
	return conn
}
