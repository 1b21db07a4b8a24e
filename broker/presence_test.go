package broker_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker"
	"mynah/internal/mqttest"
)

// A filter that begins with a wildcard is about topics outside the chat: with acl "#" nobody
// is told who is there, by what is retained or live, alone or as a share. Who asks for presence
// by name gets it, if it may be seen.
func TestWildcardsAreNotToldOfPresence(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), func(c *broker.Config) { c.PresenceSettle = -1 })
	addr := b.MQTTAddr().String()
	mqttest.Dial(t, addr, user(t, "gone", "phone")).Disconnect()
	mqttest.Dial(t, addr, user(t, "alice", "phone")) // before and after which others ask

	filters := []string{"#", "+/#", "+/+", "+/alice", "+/bob", "$share/g/#", "$share/g/+/+", "$share/g/+/bob"}
	var watches []*mqttest.Client
	for _, role := range []authhook.Role{authhook.RoleUser, authhook.RoleDevice, authhook.RoleService, authhook.RoleAdmin} {
		for i, f := range filters {
			o := v5(mqttest.Options{ClientID: "d", Token: mustToken(t, authhook.TokenClaims{
				Subject: fmt.Sprint("watch-", role, i), Role: role, Sub: []string{"#"},
			})})
			w := mqttest.Dial(t, addr, o)
			if code := w.Subscribe(0, f)[0]; code != 0 {
				t.Fatalf("%s, %s: SUBACK %#x", role, f, code)
			}
			watches = append(watches, w)
		}
	}
	named := mqttest.Dial(t, addr, user(t, "named", "phone"))
	named.Subscribe(0, "presence/alice", "presence/gone", "presence/bob")
	every := mqttest.Dial(t, addr, mqttest.Options{ClientID: "d", Token: mustToken(t, authhook.TokenClaims{Subject: "admin", Role: authhook.RoleAdmin})})
	every.Subscribe(0, "presence/+")

	mqttest.Dial(t, addr, user(t, "bob", "phone")).Disconnect()
	for _, c := range []*mqttest.Client{named, every} {
		told := map[string]bool{}
		mustDrain(t, func(_ *mqttest.Client, m packets.Packet) {
			if !strings.HasPrefix(m.TopicName, "presence/") {
				t.Errorf("got %s", m.TopicName)
			}
			told[m.TopicName] = true
			if strings.Contains(string(m.Payload), `"user":"bob","online":false`) {
				told["bob has gone"] = true
			}
		}, func() bool {
			return told["presence/alice"] && told["presence/gone"] && told["presence/bob"] && told["bob has gone"]
		}, c)
		if !told["presence/alice"] || !told["presence/gone"] || !told["bob has gone"] {
			t.Errorf("who asks by name is told %v", told)
		}
	}
	for _, w := range watches { // what is live comes to all in the order in which it happens
		w.ExpectNothing()
	}
	pub := mqttest.Dial(t, addr, wide(t, "pub"))
	pub.PublishAcked("plant/alice", 1, "not presence")
	for _, i := range []int{0, 1, 2, 3} { // for these filters it is a topic like any
		mustGet(t, watches[i], "not presence")
	}
}
