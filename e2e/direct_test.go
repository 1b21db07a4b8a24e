package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A direct message reaches all sessions of the recipient and the sender's other
// ones, through every client, version and QoS, and is the same for everyone.
func TestDirectMessage(t *testing.T) {
	t.Parallel()
	n := shared(t)
	alice, bob := unique("alice"), unique("bob")
	aliceToken, bobToken := token(t, alice), token(t, bob)

	subscribers := map[string]*inbox{}
	subscribers["bob, mosquitto_sub 3.1.1"] = mosquittoSub(t, n.mqtt, bobToken, "mqttv311", "user/"+bob, 2)
	subscribers["bob, mosquitto_sub 5"] = mosquittoSub(t, n.mqtt, bobToken, "mqttv5", "user/"+bob, 2)
	js := connectJS(t, n, bobToken, map[string]any{"clientId": "browser"})
	if code := js.subscribe(t, "user/"+bob, 1); code != 1 {
		t.Fatalf("SUBACK %#x, want QoS 1", code)
	}
	subscribers["bob, MQTT.js over WebSocket"] = js.inbox
	other := dial(t, n, "other", aliceToken)
	other.sub(t, "user/"+alice, 2)
	subscribers["alice's other session, paho"] = other.inbox

	var prevBob, prevAlice uint64
	for _, version := range []string{"mqttv31", "mqttv311", "mqttv5"} {
		for qos := range 3 {
			text := fmt.Sprintf("%s QoS %d", version, qos)
			before := time.Now().UnixMilli()
			mosquittoPub(t, n.mqtt, aliceToken, version, "user/"+bob, qos, text)
			var first envelope
			for who, box := range subscribers {
				d := box.wait(t, text+" for "+who, func(d delivery) bool { return d.text() == text })
				e := d.open(t)
				topic, prev, granted := "user/"+bob, prevBob, byte(2)
				if who == "bob, MQTT.js over WebSocket" {
					granted = 1
				}
				if strings.HasPrefix(who, "alice") {
					topic, prev = "user/"+alice, prevAlice
				}
				if want := min(byte(qos), granted); d.Topic != topic || d.QoS != want || d.Retained {
					t.Errorf("%s: %s for %s: topic %s QoS %d retained %t, want topic %s QoS %d", text, topic, who, d.Topic, d.QoS, d.Retained, topic, want)
				}
				if e.From != alice || e.To != "user/"+bob || e.Type != "text" || e.TS < before-1000 || e.TS > time.Now().UnixMilli()+1000 || e.Seq == 0 || e.Seq >= 1<<53 {
					t.Errorf("%s for %s: %s", text, who, d.Payload)
				}
				if e.Prev != prev {
					t.Errorf("%s for %s: prev %d, want %d", text, who, e.Prev, prev)
				}
				if first.Seq == 0 {
					first = e
				} else if e.Seq != first.Seq || e.TS != first.TS {
					t.Errorf("%s for %s: seq %d ts %d, others have %d and %d", text, who, e.Seq, e.TS, first.Seq, first.TS)
				}
			}
			prevBob, prevAlice = first.Seq, first.Seq
		}
	}
	for who, box := range subscribers {
		if got := len(box.all()); got != 9 {
			t.Errorf("%s has %d messages, want 9: %s", who, got, box)
		}
	}
}

// A note to oneself has one topic only and must not arrive twice.
func TestNoteToOneself(t *testing.T) {
	t.Parallel()
	n := shared(t)
	alice := unique("alice")
	c := dial(t, n, "phone", token(t, alice))
	c.sub(t, "user/"+alice, 1)
	c.pub(t, "user/"+alice, 1, "milk")
	c.waitText(t, "milk")
	c.pub(t, "user/"+alice, 1, "eggs") // in order behind it, so a second milk would have come before
	c.waitText(t, "eggs")
	if got := c.count("milk"); got != 1 {
		t.Errorf("the note arrived %d times", got)
	}
}

// MQTT 5 publishers are told the seq in the acknowledgement.
func TestAcknowledgementCarriesSeq(t *testing.T) {
	t.Parallel()
	n := shared(t)
	bob := unique("bob")
	sub := mosquittoSub(t, n.mqtt, token(t, bob), "mqttv5", "user/"+bob, 1)
	js := connectJS(t, n, token(t, unique("alice")), nil)
	for _, qos := range []int{1, 2} {
		text := fmt.Sprintf("QoS %d", qos)
		ack := js.publish(t, "user/"+bob, qos, text)
		seq := fmt.Sprint(sub.waitText(t, text).Seq)
		if got := ack.Packet.Properties.UserProperties["seq"]; ack.Packet.ReasonCode != 0 || got != seq {
			t.Errorf("QoS %d: acknowledged with reason %#x and seq %q, want %s", qos, ack.Packet.ReasonCode, got, seq)
		}
	}
}
