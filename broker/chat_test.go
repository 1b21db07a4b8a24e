package broker_test

import (
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"mynah/authhook"
	"mynah/internal/mqttest"
)

func dial(tb testing.TB, addr, token, client string, clean bool) paho.Client {
	tb.Helper()
	o := paho.NewClientOptions().AddBroker("tcp://" + addr).SetClientID(client).SetUsername("x").SetPassword(token).
		SetCleanSession(clean).SetAutoReconnect(false).SetConnectTimeout(mqttest.Timeout)
	c := paho.NewClient(o)
	if t := c.Connect(); !t.WaitTimeout(mqttest.Timeout) || t.Error() != nil {
		tb.Fatalf("connect: %v", t.Error())
	}
	return c
}

func TestDirectAndGroup(t *testing.T) {
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := dial(t, addr, mustToken(t, authhook.TokenClaims{Subject: "alice", Groups: []string{"lobby"}}), "phone", true)
	defer alice.Disconnect(100)
	bob := dial(t, addr, mustToken(t, authhook.TokenClaims{Subject: "bob", Groups: []string{"lobby"}}), "phone", true)
	defer bob.Disconnect(100)
	got := make(chan paho.Message, 100)
	if tk := alice.SubscribeMultiple(map[string]byte{"user/alice": 1, "group/+": 2}, func(_ paho.Client, m paho.Message) { got <- m }); !tk.WaitTimeout(mqttest.Timeout) || tk.Error() != nil {
		t.Fatal(tk.Error())
	}
	for _, p := range []struct {
		topic string
		qos   byte
	}{{"user/alice", 1}, {"group/lobby", 1}, {"group/lobby", 2}, {"user/alice", 0}, {"user/alice", 2}} {
		start := time.Now()
		if tk := bob.Publish(p.topic, p.qos, false, `hello`); !tk.WaitTimeout(mqttest.Timeout) || tk.Error() != nil {
			t.Fatal("publish", p, tk.Error())
		}
		select {
		case m := <-got:
			t.Logf("%v %s %d %s", time.Since(start), m.Topic(), m.Qos(), m.Payload())
		case <-time.After(mqttest.Timeout):
			t.Fatal("nothing for", p)
		}
	}
}
