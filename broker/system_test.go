package broker_test

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker"
	"mynah/internal/mqttest"
)

// What $SYS/broker tells is so: every value of it is read, and there is none that is not.
func TestSystemFigures(t *testing.T) {
	t.Parallel()
	before := time.Now()
	b := mustStart(t, t.TempDir(), func(c *broker.Config) { c.Version, c.SystemInterval = "v9", 20*time.Millisecond })
	addr := b.MQTTAddr().String()

	// Six clients come, of which four are there in the end, five at most; and one session is
	// there without its client.
	away := mqttest.Dial(t, addr, keep(plain(t, "away")))
	away.Subscribe(1, "plant/#", "user/away")
	alice, bob := mqttest.Dial(t, addr, user(t, "alice", "phone")), mqttest.Dial(t, addr, user(t, "bob", "phone", "room"))
	bob.Subscribe(1, "user/bob", "group/+", "user/bob/signal", "presence/zoe")
	pub := mqttest.Dial(t, addr, plain(t, "pub"))
	mqttest.Dial(t, addr, user(t, "guest", "phone")).Disconnect()
	_, _ = mqttest.TryDial(t, addr, mqttest.Options{ClientID: "x", Token: "forged"}) // is no client
	pub.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Retain: true}, TopicName: "plant/a", Payload: []byte("1")})
	pub.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Retain: true}, TopicName: "plant/b", Payload: []byte("2")})
	pub.Sync()
	mustGet(t, away, "1")
	mustGet(t, away, "2")
	away.Disconnect()
	alice.PublishAcked("user/bob", 1, "hello")
	bob.ReceiveAcked()
	alice.Publish("user/bob/signal", 0, "typing")
	if m := bob.Receive(); m.TopicName != "user/bob/signal" {
		t.Fatalf("got %s", m.TopicName)
	}
	alice.PublishAcked("group/none", 1, "refused")

	admin := mqttest.Dial(t, addr, mqttest.Options{ClientID: "a", Token: mustToken(t, authhook.TokenClaims{Subject: "admin", Role: authhook.RoleAdmin})})
	admin.Subscribe(0, "$SYS/broker/#")
	want := map[string]string{
		"version": "v9", "clients/connected": "4", "clients/maximum": "5", "clients/total": "5", "clients/disconnected": "1",
		"messages/received": "5", "messages/dropped": "0", "retained": "2", "subscriptions": "7",
		// two to away, two to bob, and what the administrator is told, of which there is more and more
		"messages/sent": "4 or more",
	}
	got := map[string]string{}
	right := func() bool {
		sent, _ := strconv.Atoi(got["messages/sent"])
		told := maps.Clone(got)
		if sent >= 4 {
			told["messages/sent"] = want["messages/sent"]
		}
		for _, other := range []string{"time", "started", "uptime", "system/memory", "system/threads"} {
			delete(told, other)
		}
		return maps.Equal(told, want)
	}
	mustDrain(t, func(_ *mqttest.Client, m packets.Packet) {
		topic, ok := strings.CutPrefix(m.TopicName, "$SYS/broker/")
		if !ok {
			t.Errorf("got %s", m.TopicName)
		}
		got[topic] = string(m.Payload)
	}, func() bool { return right() && got["uptime"] >= "1" }, admin)
	if !right() {
		t.Errorf("got %v, want %v", got, want)
	}

	number := func(name string, low, high int64) {
		t.Helper()
		if n, err := strconv.ParseInt(got[name], 10, 64); err != nil || n < low || n > high {
			t.Errorf("%s is %q, want %d to %d", name, got[name], low, high)
		}
	}
	now := time.Now()
	up := int64(now.Sub(before).Seconds())
	number("started", before.Unix(), before.Unix()+up)
	number("time", now.Unix()-up, now.Unix())
	number("uptime", 1, up)
	number("system/memory", 1<<20, 16<<30)
	number("system/threads", 10, 100_000)
	if names := slices.Sorted(maps.Keys(got)); len(names) != len(want)+5 {
		t.Errorf("there are %v", names)
	}
}
