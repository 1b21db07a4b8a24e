package e2e_test

import (
	"encoding/json"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// A group's members receive it by its own topic and by group/+, a device by the
// room in its token, and nobody else at all.
func TestGroup(t *testing.T) {
	t.Parallel()
	n := shared(t)
	family, work := unique("family"), unique("work")
	alice, bob, sensor := unique("alice"), unique("bob"), unique("sensor")

	byName := mosquittoSub(t, n.mqtt, token(t, bob, groups(family)), "mqttv5", "group/"+family, 1)
	all := connectJS(t, n, token(t, bob, groups(family, work)), nil)
	if code := all.subscribe(t, "group/+", 1); code != 1 {
		t.Fatalf("SUBACK for group/+: %#x", code)
	}
	device := dial(t, n, "sensor", token(t, sensor, groups(family), jwt.MapClaims{"role": "device"}))
	device.sub(t, "group/"+family, 0)
	outsider := dial(t, n, "outsider", token(t, unique("eve")))
	outsider.sub(t, "group/+", 1)

	publisher := dial(t, n, "phone", token(t, alice, groups(family, work)))
	publisher.pub(t, "group/"+family, 1, "dinner")
	publisher.pub(t, "group/"+work, 1, "meeting")
	device.pub(t, "group/"+family, 1, `{"temperature":21.5}`)

	if e := byName.waitText(t, "dinner"); e.From != alice || e.To != "group/"+family {
		t.Errorf("dinner: %+v", e)
	}
	all.waitText(t, "dinner")
	meeting := all.wait(t, "meeting", func(d delivery) bool { return d.text() == "meeting" })
	if meeting.Topic != "group/"+work {
		t.Errorf("by group/+ the topic is %s, want the group's own, group/%s", meeting.Topic, work)
	}
	data := all.wait(t, "the sensor's data", func(d delivery) bool { return d.open(t).From == sensor }).open(t)
	if data.Type != "data" || string(data.Body) != `{"temperature":21.5}` {
		t.Errorf("the sensor's data: %+v", data)
	}
	// The device sees what is said in its room, and its own data too: it is
	// subscribed like everybody else.
	if got := device.waitText(t, "dinner"); got.From != alice {
		t.Errorf("the device got %+v", got)
	}
	byName.wait(t, "the sensor's data", func(d delivery) bool { return d.open(t).From == sensor })
	if byName.count("meeting") != 0 || device.count("meeting") != 0 {
		t.Error("a message reached who is not subscribed to its group")
	}
	if got := outsider.all(); len(got) != 0 {
		t.Errorf("an outsider's group/+ brought %s", outsider)
	}
}

// prev chains the messages of each topic by itself.
func TestPrevIsPerTopic(t *testing.T) {
	t.Parallel()
	n := shared(t)
	one, two := unique("one"), unique("two")
	c := dial(t, n, "c", token(t, unique("alice"), groups(one, two)))
	c.sub(t, "group/+", 1)
	last := map[string]uint64{}
	for i := range 10 {
		topic := "group/" + []string{one, two}[i%2]
		text := unique("n")
		c.pub(t, topic, 1, text)
		e := c.waitText(t, text)
		if e.Prev != last[topic] {
			t.Errorf("%s: prev %d, want %d", topic, e.Prev, last[topic])
		}
		last[topic] = e.Seq
	}
}

// Signals reach who is there, and nothing of them is kept.
func TestSignals(t *testing.T) {
	t.Parallel()
	n := shared(t)
	group, alice, bob := unique("group"), unique("alice"), unique("bob")
	receiver := dial(t, n, "bob", token(t, bob, groups(group)))
	receiver.sub(t, "user/"+bob+"/signal", 1)
	receiver.sub(t, "group/+/signal", 1)
	receiver.sub(t, "group/"+group, 1)
	sender := dial(t, n, "alice", token(t, alice, groups(group)))

	sender.pub(t, "user/"+bob+"/signal", 0, `{"typing":true}`)
	d := receiver.wait(t, "direct signal", func(d delivery) bool { return d.Topic == "user/"+bob+"/signal" })
	if d.QoS != 0 {
		t.Errorf("a signal came at QoS %d", d.QoS)
	}
	var signal map[string]any
	if err := json.Unmarshal(d.Payload, &signal); err != nil || signal["from"] != alice {
		t.Errorf("a signal must say who sent it: %s (%v)", d.Payload, err)
	}
	sender.pub(t, "group/"+group+"/signal", 1, `{"typing":true}`)
	receiver.wait(t, "group signal", func(d delivery) bool { return d.Topic == "group/"+group+"/signal" })

	// A message behind them is archived; they are not.
	sender.pub(t, "group/"+group, 1, "typed")
	archived(t, n.database, receiver.waitText(t, "typed").Seq)
	if rows := query(t, n.database, "sender = $1", alice); len(rows) != 1 {
		t.Errorf("the archive has %d rows of the sender, want the one message: %+v", len(rows), rows)
	}
}

// presence/<id> is retained and says online and offline.
func TestPresence(t *testing.T) {
	t.Parallel()
	n := shared(t)
	alice, bob := unique("alice"), unique("bob")
	watcher := dial(t, n, "bob", token(t, bob))
	watcher.sub(t, "presence/"+alice, 1)
	c := dial(t, n, "alice", token(t, alice))
	state := func(want string) func(delivery) bool {
		return func(d delivery) bool {
			var p struct {
				State  string `json:"state"`
				Online *bool  `json:"online"`
			}
			if json.Unmarshal(d.Payload, &p) != nil {
				return false
			}
			return p.State == want || p.Online != nil && *p.Online == (want == "online")
		}
	}
	watcher.wait(t, "alice online", state("online"))
	late := mosquittoSub(t, n.mqtt, token(t, unique("carol")), "mqttv5", "presence/"+alice, 0)
	if d := late.wait(t, "retained presence", state("online")); !d.Retained {
		t.Error("presence for a late subscriber is not marked as retained")
	}
	c.Disconnect(100)
	watcher.wait(t, "alice offline", state("offline"))
}
