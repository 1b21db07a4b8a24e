package e2e_test

import (
	"fmt"
	"math"
	"testing"

	"mynah/internal/waitfor"
)

// What a persistent session missed it gets when it is back, once and in order,
// whatever the QoS, and across a restart of the server in between.
func TestPersistentSession(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	args := []string{
		"serve", "--data-dir", data, "--jwt-secret", secret,
		"--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0", "--mqtt-addr",
	}
	n := start(t, append(args, "127.0.0.1:0")...)
	group, alice, bob := unique("group"), unique("alice"), unique("bob")
	bobToken := token(t, bob, groups(group))

	options := func() *pahoClient {
		return connectPaho(t, pahoOptions(n, "bob's phone", bobToken).SetCleanSession(false))
	}
	phone := options()
	phone.sub(t, "group/"+group, 1)
	phone.sub(t, "user/"+bob, 2)
	js := connectJS(t, n, bobToken, map[string]any{
		"clientId": "bob's browser", "clean": false, "properties": map[string]any{"sessionExpiryInterval": 3600},
	})
	js.subscribe(t, "group/+", 1)

	sender := dial(t, n, "alice", token(t, alice, groups(group)))
	sender.pub(t, "group/"+group, 1, "seen")
	phone.waitText(t, "seen")
	js.waitText(t, "seen")
	phone.Disconnect(100)
	js.send(t, map[string]any{"do": "end"})

	say := func(from, to int) {
		for i := from; i < to; i++ {
			sender.pub(t, "group/"+group, byte(i%3), fmt.Sprintf("group %d", i))
			sender.pub(t, "user/"+bob, byte(i%3), fmt.Sprintf("direct %d", i))
		}
		// Behind the QoS 0 ones, which nobody acknowledges.
		sender.pub(t, "group/"+group, 1, fmt.Sprintf("group until %d", to))
	}
	say(0, 30)
	sender.Disconnect(100)
	if status := n.interrupt(); status != 0 {
		t.Fatalf("graceful stop: status %d\n%s", status, n.log)
	}
	n = start(t, append(args, n.mqtt)...)
	sender = dial(t, n, "alice", token(t, alice, groups(group)))
	say(30, 60)

	back := options() // no subscription: the session has them
	back.waitText(t, "group until 60")
	back.waitText(t, "direct 59")
	checkOnceInOrder(t, "3.1.1 session", back.inbox, []string{"group", "direct"}, 60)
	if back.count("seen") != 0 {
		t.Error("a message that had been acknowledged came again")
	}

	again := newJS(t)
	e := again.connect(t, "ws://"+n.http+"/mqtt", bobToken, map[string]any{
		"clientId": "bob's browser", "clean": false, "properties": map[string]any{"sessionExpiryInterval": 3600},
	})
	if e.Event != "connect" || !e.Packet.SessionPresent {
		t.Fatalf("the MQTT 5 session is gone: %+v", e)
	}
	again.waitText(t, "group until 60")
	checkOnceInOrder(t, "MQTT 5 session", again.inbox, []string{"group"}, 60)

	// And the archive has them all, through the restart.
	rows := func() int { return len(query(t, n.database, "sender = $1", alice)) }
	waitfor.MustHold(t, "all messages in the archive", func() bool { return rows() >= 1+60+60+2 })
	if got := rows(); got != 1+60+60+2 {
		t.Errorf("the archive has %d messages, want %d", got, 1+60+60+2)
	}
}

// checkOnceInOrder looks for "<name> <i>" with i below count: each once, in order
// of seq over all.
func checkOnceInOrder(t *testing.T, who string, box *inbox, names []string, count int) {
	t.Helper()
	var last uint64
	seen := map[string]int{}
	for _, d := range box.all() {
		e := d.open(t)
		if e.Seq <= last {
			t.Errorf("%s: seq %d after %d", who, e.Seq, last)
		}
		last = e.Seq
		seen[d.text()]++
	}
	for _, name := range names {
		for i := range count {
			if got := seen[fmt.Sprintf("%s %d", name, i)]; got != 1 {
				t.Errorf("%s: %q came %d times", who, fmt.Sprintf("%s %d", name, i), got)
			}
		}
	}
}

// A session belongs to subject and client id: another subject with the same
// client id neither ends it nor sees it; the same subject takes it over.
func TestSessionBelongsToSubjectAndClientID(t *testing.T) {
	t.Parallel()
	n := shared(t)
	alice, eve := unique("alice"), unique("eve")
	first := dial(t, n, "phone", token(t, alice))
	first.sub(t, "user/"+alice, 1)
	stranger := dial(t, n, "phone", token(t, eve))

	stranger.pub(t, "user/"+alice, 1, "still there?")
	first.waitText(t, "still there?")

	second := dial(t, n, "phone", token(t, alice))
	waitfor.MustHold(t, "the first connection to end", func() bool { return !first.IsConnected() })
	if !second.IsConnected() || !stranger.IsConnected() {
		t.Error("the take-over ended a connection that it should not have")
	}
}

// A clean session starts with nothing.
func TestCleanSession(t *testing.T) {
	t.Parallel()
	n := shared(t)
	bob := unique("bob")
	c := connectPaho(t, pahoOptions(n, "phone", token(t, bob)).SetCleanSession(false))
	c.sub(t, "user/"+bob, 1)
	c.Disconnect(100)
	sender := dial(t, n, "alice", token(t, unique("alice")))
	sender.pub(t, "user/"+bob, 1, "missed")

	clean := connectPaho(t, pahoOptions(n, "phone", token(t, bob)).SetCleanSession(true))
	clean.sub(t, "user/"+bob, 1)
	sender.pub(t, "user/"+bob, 1, "new")
	clean.waitText(t, "new")
	if clean.count("missed") != 0 {
		t.Error("a clean session got what the one before had missed")
	}
}

// A will on a chat topic goes the way of every message when it fires.
func TestWill(t *testing.T) {
	t.Parallel()
	n := shared(t)
	group, alice, bob := unique("group"), unique("alice"), unique("bob")
	sub := mosquittoSub(t, n.mqtt, token(t, bob, groups(group)), "mqttv5", "group/"+group, 1)

	js := connectJS(t, n, token(t, alice, groups(group)), map[string]any{
		"protocolVersion": 4,
		"will":            map[string]any{"topic": "group/" + group, "payload": "I am gone", "qos": 1},
	})
	js.send(t, map[string]any{"do": "end", "force": true}) // without a DISCONNECT
	e := sub.waitText(t, "I am gone")
	if e.From != alice || e.Seq == 0 {
		t.Errorf("the will: %+v", e)
	}
	if r := archived(t, n.database, e.Seq); r.Sender != alice {
		t.Errorf("the will in the archive: %+v", r)
	}

	// A proper goodbye fires none.
	polite := connectJS(t, n, token(t, alice, groups(group)), map[string]any{
		"protocolVersion": 4,
		"will":            map[string]any{"topic": "group/" + group, "payload": "never", "qos": 1},
	})
	polite.send(t, map[string]any{"do": "end"})
	dial(t, n, "alice", token(t, alice, groups(group))).pub(t, "group/"+group, 1, "end")
	sub.waitText(t, "end")
	if sub.count("never") != 0 {
		t.Error("a will fired after a DISCONNECT")
	}
}

// The bound that an operator sets holds for MQTT 5 sessions too, and the client is told
// (MQTT 5, 3.2.2.3.2). There was a bound of 30 days whatever --session-expiry said.
func TestSessionExpiryIsBounded(t *testing.T) {
	t.Parallel()
	n := start(t, "broker", "--data-dir", t.TempDir(), "--jwt-secret", secret, "--session-expiry", "2m",
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	js := connectJS(t, n, token(t, unique("alice")), map[string]any{
		"clientId": "greedy", "clean": false, "properties": map[string]any{"sessionExpiryInterval": uint32(math.MaxUint32)},
	})
	connack := js.event(t, "CONNACK", func(e jsEvent) bool { return e.Event == "connect" })
	if got := connack.Packet.Properties.SessionExpiry; got != 120 {
		t.Errorf("the client was told %d s, want 120", got)
	}
}
