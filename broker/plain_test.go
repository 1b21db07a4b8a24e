package broker_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker"
	"mynah/internal/mqttest"
)

// wide returns options for a device that may use any topic outside the chat.
func wide(tb testing.TB, subject string) mqttest.Options {
	tb.Helper()
	return mqttest.Options{ClientID: "d", Token: mustToken(tb, authhook.TokenClaims{
		Subject: subject, Role: authhook.RoleDevice, Pub: []string{"#"}, Sub: []string{"#"},
	})}
}

// withReceiveMaximum returns options with a Receive Maximum.
func withReceiveMaximum(o mqttest.Options, n uint16) mqttest.Options {
	o.Properties.ReceiveMaximum = n
	return o
}

// sends publishes with MQTT 5 properties at QoS 1 and returns the reason code.
func sends(c *mqttest.Client, topic, payload string, retain bool, props packets.Properties) byte {
	c.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1, Retain: retain}, PacketID: c.ID(),
		TopicName: topic, Payload: []byte(payload), Properties: props,
	})
	return c.Expect(packets.Puback).ReasonCode
}

// mustGet fails the test unless the next message has this payload, and acknowledges it.
func mustGet(tb testing.TB, c *mqttest.Client, payload string) packets.Packet {
	tb.Helper()
	m := c.ReceivePlain()
	if string(m.Payload) != payload {
		tb.Fatalf("got %q on %s, want %q", m.Payload, m.TopicName, payload)
	}
	switch m.FixedHeader.Qos {
	case 1:
		c.Ack(packets.Puback, m.PacketID)
	case 2:
		c.Ack(packets.Pubrec, m.PacketID)
		c.Expect(packets.Pubrel)
		c.Ack(packets.Pubcomp, m.PacketID)
	}
	return m
}

// mustDrain takes the messages that come until take says that it has all, and for some
// clients at once: which of them gets one is the broker's choice.
func mustDrain(tb testing.TB, take func(c *mqttest.Client, m packets.Packet), all func() bool, clients ...*mqttest.Client) {
	tb.Helper()
	deadline := time.Now().Add(mqttest.Timeout)
	for last := false; !last; {
		last = all() // and what comes then is too much
		for _, c := range clients {
			c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
			for m := c.Next(); m.FixedHeader.Type != packets.Pingresp; m = c.Next() {
				take(c, m)
			}
		}
		if time.Now().After(deadline) {
			return // and the test says what it has
		}
	}
}

// exactly is a client's memory of QoS 2: which packet ids it has taken and not seen
// released.
type exactly struct {
	taken map[uint16]bool
	got   []string
}

// take deals with a packet as a client must.
func (x *exactly) take(c *mqttest.Client, pk packets.Packet) {
	switch pk.FixedHeader.Type {
	case packets.Publish:
		switch pk.FixedHeader.Qos {
		case 1:
			x.got = append(x.got, string(pk.Payload))
			c.Ack(packets.Puback, pk.PacketID)
		case 2:
			if !x.taken[pk.PacketID] {
				x.got = append(x.got, string(pk.Payload))
			}
			x.taken[pk.PacketID] = true
			c.Ack(packets.Pubrec, pk.PacketID)
		}
	case packets.Pubrel:
		delete(x.taken, pk.PacketID)
		c.Ack(packets.Pubcomp, pk.PacketID)
	}
}

// A session that is taken over again and again while messages flow loses none, gets those
// of QoS 2 once and in order. Mochi acknowledged a message, looked who was there and put
// it into the queue of a connection that was just being replaced.
func TestPlainTakeoverStorm(t *testing.T) {
	t.Parallel()
	for _, qos := range []byte{1, 2} {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			t.Parallel()
			b := mustStart(t, t.TempDir(), nil)
			addr := b.MQTTAddr().String()
			o := withReceiveMaximum(v5(keep(plain(t, "dev"))), 20)
			dev := mqttest.Dial(t, addr, o)
			dev.Subscribe(qos, "plant/in")
			const n = 400
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				c := mqttest.Dial(t, addr, plain(t, "pub"))
				for i := range n {
					c.PublishAcked("plant/in", qos, fmt.Sprint(i))
				}
			})
			x := exactly{taken: map[uint16]bool{}}
			all := func() bool {
				if qos == 2 {
					return len(x.got) >= n
				}
				return len(x.got) > 0 && x.got[len(x.got)-1] == fmt.Sprint(n-1)
			}
			for packetsRead := 0; !all(); packetsRead++ {
				if packetsRead%17 == 16 { // while the old connection is there
					dev = mqttest.Dial(t, addr, o)
					if !dev.Connack.SessionPresent {
						t.Fatal("the session is gone")
					}
				}
				x.take(dev, dev.Next())
			}
			next := 0
			for _, payload := range x.got {
				switch {
				case payload == fmt.Sprint(next):
					next++
				case qos == 2:
					t.Fatalf("got %s, want %d", payload, next)
				default:
					var i int
					if _, _ = fmt.Sscan(payload, &i); i > next { // again is allowed
						t.Fatalf("got %d, want %d", i, next)
					}
				}
			}
		})
	}
}

// A burst at a client that does not read waits for it, within the bounds of its session.
// Mochi cut it after 128.
func TestPlainBurst(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), func(c *broker.Config) { c.Outbox = 16 << 10 })
	addr := b.MQTTAddr().String()
	slow := mqttest.Dial(t, addr, plain(t, "slow"))
	slow.Subscribe(1, "plant/one")
	slow.Subscribe(0, "plant/none")
	pub := mqttest.Dial(t, addr, plain(t, "pub"))
	const n = 5000
	pad := strings.Repeat("x", 100)
	for i := 0; i < n; i += 250 {
		for j := range 250 {
			pub.Publish("plant/one", 1, fmt.Sprint(i+j, pad))
		}
		for range 250 {
			pub.Expect(packets.Puback)
		}
	}
	for i := range n {
		pub.Publish("plant/none", 0, fmt.Sprint(i, pad))
	}
	pub.Sync()
	next := map[string]int{}
	for range 2 * n {
		m := slow.Next()
		if want := fmt.Sprint(next[m.TopicName], pad); string(m.Payload) != want {
			t.Fatalf("got %.10s on %s, want %.10s", m.Payload, m.TopicName, want)
		}
		next[m.TopicName]++
		if m.PacketID != 0 {
			slow.Ack(packets.Puback, m.PacketID)
		}
	}
	slow.ExpectNothing()
}

// What a client has not acknowledged comes again in its order, with DUP and under the same
// packet ids, no faster than the Receive Maximum of the new connection allows; then what
// it has not been sent.
func TestPlainResendUnderReceiveMaximum(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := withReceiveMaximum(v5(keep(plain(t, "dev"))), 5)
	dev := mqttest.Dial(t, addr, o)
	dev.Subscribe(2, "plant/in")
	pub := mqttest.Dial(t, addr, plain(t, "pub"))
	const n = 12
	for i := range n {
		pub.PublishAcked("plant/in", byte(1+i%2), fmt.Sprint(i))
	}
	var sent []packets.Packet
	for i := range 5 {
		m := dev.Next()
		if string(m.Payload) != fmt.Sprint(i) || m.FixedHeader.Dup || m.FixedHeader.Qos != byte(1+i%2) {
			t.Fatalf("got %q dup %v qos %d, want %d", m.Payload, m.FixedHeader.Dup, m.FixedHeader.Qos, i)
		}
		sent = append(sent, m)
	}
	dev.ExpectNothing()
	dev.Ack(packets.Pubrec, sent[3].PacketID) // QoS 2: from here on only the end is due
	if rel := dev.Expect(packets.Pubrel); rel.PacketID != sent[3].PacketID {
		t.Fatalf("PUBREL of %d, want %d", rel.PacketID, sent[3].PacketID)
	}
	dev.Ack(packets.Puback, sent[1].PacketID) // no such step: it is QoS 2
	if pk := dev.ExpectEnd(); pk.ReasonCode != packets.ErrProtocolViolation.Code {
		t.Fatalf("ended with %#x", pk.ReasonCode)
	}

	dev = mqttest.Dial(t, addr, withReceiveMaximum(o, 2))
	again := func(i int) packets.Packet {
		t.Helper()
		m := dev.Next()
		if m.FixedHeader.Type != packets.Publish || string(m.Payload) != fmt.Sprint(i) || m.PacketID != sent[i].PacketID || !m.FixedHeader.Dup {
			t.Fatalf("got %q id %d dup %v, want %d id %d again", m.Payload, m.PacketID, m.FixedHeader.Dup, i, sent[i].PacketID)
		}
		return m
	}
	again(0)
	again(1)
	dev.ExpectNothing()
	dev.Ack(packets.Puback, sent[0].PacketID)
	again(2)
	dev.ExpectNothing()
	dev.Ack(packets.Puback, sent[2].PacketID)
	if rel := dev.Next(); rel.FixedHeader.Type != packets.Pubrel || rel.PacketID != sent[3].PacketID {
		t.Fatalf("got type %d id %d, want PUBREL of %d", rel.FixedHeader.Type, rel.PacketID, sent[3].PacketID)
	}
	dev.Ack(packets.Pubcomp, sent[3].PacketID)
	again(4)
	dev.Ack(packets.Pubrec, sent[1].PacketID)
	dev.Expect(packets.Pubrel)
	dev.ExpectNothing() // an exchange at QoS 2 counts until its end
	dev.Ack(packets.Pubcomp, sent[1].PacketID)
	first := dev.Next()
	if string(first.Payload) != "5" || first.FixedHeader.Dup {
		t.Fatalf("got %q dup %v, want 5 for the first time", first.Payload, first.FixedHeader.Dup)
	}
	dev.Ack(packets.Puback, sent[4].PacketID)
	x := exactly{taken: map[uint16]bool{}}
	x.take(dev, first)
	for len(x.got) < n-5 || len(x.taken) > 0 {
		x.take(dev, dev.Next())
	}
	if want := []string{"5", "6", "7", "8", "9", "10", "11"}; !slices.Equal(x.got, want) {
		t.Errorf("got %v, want %v", x.got, want)
	}
	dev.ExpectNothing()
}

// everyProperty are the properties that a server passes on.
var everyProperty = packets.Properties{
	PayloadFormat: 1, PayloadFormatFlag: true, ContentType: "text/plain", ResponseTopic: "plant/answer", CorrelationData: []byte{0, 1, 255},
	User: []packets.UserProperty{{Key: "b", Val: "1"}, {Key: "a", Val: "2"}, {Key: "b", Val: "3"}},
}

// checkProperties fails the test unless a message has everyProperty.
func checkProperties(tb testing.TB, what string, m packets.Packet) {
	tb.Helper()
	p, want := m.Properties, everyProperty
	if p.PayloadFormat != 1 || p.ContentType != want.ContentType || p.ResponseTopic != want.ResponseTopic ||
		!bytes.Equal(p.CorrelationData, want.CorrelationData) || !slices.Equal(p.User, want.User) {
		tb.Errorf("%s: properties are %+v", what, p)
	}
}

// MQTT 5 properties reach subscribers, and those of retained messages also after a restart.
// They were lost there.
func TestPlainProperties(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	dial := func(o mqttest.Options) *mqttest.Client { return mqttest.Dial(t, b.MQTTAddr().String(), o) }
	sub, old, pub := dial(v5(plain(t, "sub"))), dial(plain(t, "old")), dial(v5(plain(t, "pub")))
	sub.Subscribe(1, "plant/live")
	old.Subscribe(1, "plant/live")
	sends(pub, "plant/live", "live", false, everyProperty)
	checkProperties(t, "live", mustGet(t, sub, "live"))
	mustGet(t, old, "live")

	props := everyProperty
	props.MessageExpiryInterval = 1000
	sends(pub, "plant/kept", "before", true, packets.Properties{})
	sends(pub, "plant/kept", "kept", true, props)
	sends(pub, "plant/gone", "gone", true, props)
	sends(pub, "plant/gone", "", true, packets.Properties{})
	for range 2 {
		sub = dial(v5(plain(t, "sub")))
		sub.Subscribe(1, "plant/#")
		m := mustGet(t, sub, "kept")
		checkProperties(t, "retained", m)
		if left := m.Properties.MessageExpiryInterval; left < 900 || left > 1000 || !m.FixedHeader.Retain {
			t.Errorf("expires in %d s, retain %v", left, m.FixedHeader.Retain)
		}
		sub.ExpectNothing()
		b = restart(t, b, dir)
	}
}

// A will has its properties, and keeps them as a retained message over a restart. They
// were lost always.
func TestPlainWillProperties(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	sub := mqttest.Dial(t, b.MQTTAddr().String(), v5(plain(t, "sub")))
	sub.Subscribe(1, "plant/will")
	o := v5(plain(t, "dev"))
	props := everyProperty
	props.MessageExpiryInterval = 500
	o.Will = &packets.Packet{
		FixedHeader: packets.FixedHeader{Retain: true, Qos: 1}, TopicName: "plant/will", Payload: []byte("gone"), Properties: props,
	}
	mqttest.Dial(t, b.MQTTAddr().String(), o).CloseAbruptly()
	for _, what := range []string{"live", "retained", "after a restart"} {
		m := mustGet(t, sub, "gone")
		checkProperties(t, what, m)
		if left := m.Properties.MessageExpiryInterval; left < 400 || left > 500 || m.FixedHeader.Retain != (what != "live") {
			t.Errorf("%s: expires in %d s, retain %v", what, left, m.FixedHeader.Retain)
		}
		if what == "retained" {
			b = restart(t, b, dir)
		}
		sub = mqttest.Dial(t, b.MQTTAddr().String(), v5(plain(t, "sub")))
		sub.Subscribe(1, "plant/will")
	}
}

// A shared subscription spreads messages over its members, and prefers those that are
// there. What a member that dies for good has not acknowledged goes to another.
func TestSharedSubscription(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	away := mqttest.Dial(t, addr, keep(plain(t, "away")))
	away.Subscribe(1, "$share/g/plant/+")
	away.Disconnect()
	one, two := mqttest.Dial(t, addr, v5(plain(t, "one"))), mqttest.Dial(t, addr, plain(t, "two"))
	one.Subscribe(1, "$share/g/plant/+")
	two.Subscribe(1, "$share/g/plant/+")
	pub := mqttest.Dial(t, addr, plain(t, "pub"))
	const n = 100
	for i := range n {
		pub.PublishAcked("plant/x", 1, fmt.Sprint(i))
	}
	seen := map[string]int{}
	ofOne, ofTwo := 0, 0
	mustDrain(t, func(c *mqttest.Client, m packets.Packet) {
		if c == one {
			ofOne++
			return
		}
		ofTwo++
		seen[string(m.Payload)]++
		two.Ack(packets.Puback, m.PacketID)
	}, func() bool { return ofOne+ofTwo == n }, one, two)
	if ofOne+ofTwo != n || min(ofOne, ofTwo) < n/5 {
		t.Fatalf("the members got %d and %d of %d", ofOne, ofTwo, n)
	}
	one.CloseAbruptly() // its session ends with it
	for len(seen) < n {
		m := two.Next()
		seen[string(m.Payload)]++
		two.Ack(packets.Puback, m.PacketID)
	}
	for payload, times := range seen {
		if times != 1 {
			t.Errorf("%s came %d times", payload, times)
		}
	}
	two.ExpectNothing()
	two.Disconnect()
	pub.PublishAcked("plant/y", 1, "nobody is there")
	mustGet(t, mqttest.Dial(t, addr, keep(plain(t, "away"))), "nobody is there")
}

// A session that is offline gets what is published meanwhile: also what is published after
// a restart, before it is back. Its subscriptions were in the tree only from its next
// CONNECT on.
func TestPlainOffline(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	o := keep(plain(t, "dev"))
	dev := mqttest.Dial(t, b.MQTTAddr().String(), o)
	dev.Subscribe(2, "plant/+", "$share/g/plant/#")
	dev.Disconnect()
	for range 2 {
		pub := mqttest.Dial(t, b.MQTTAddr().String(), plain(t, "pub"))
		pub.Publish("plant/a", 0, "not at QoS 0")
		pub.PublishAcked("plant/a", 1, "one")
		pub.PublishAcked("plant/b", 2, "two")
		pub.PublishAcked("plant/c/d", 2, "shared")
		pub.Disconnect()
		dev = mqttest.Dial(t, b.MQTTAddr().String(), o)
		if !dev.Connack.SessionPresent {
			t.Fatal("no session")
		}
		var got []string
		for range 5 { // "one" and "two" also by the shared subscription
			m := dev.ReceivePlain()
			got = append(got, string(m.Payload))
			if m.FixedHeader.Qos == 1 {
				dev.Ack(packets.Puback, m.PacketID)
				continue
			}
			dev.Ack(packets.Pubrec, m.PacketID)
			dev.Expect(packets.Pubrel)
			dev.Ack(packets.Pubcomp, m.PacketID)
		}
		if want := []string{"one", "one", "two", "two", "shared"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		dev.ExpectNothing()
		dev.Disconnect()
		b = restart(t, b, dir)
	}
	dev = mqttest.Dial(t, b.MQTTAddr().String(), plain(t, "dev")) // a clean session ends it
	mqttest.Dial(t, b.MQTTAddr().String(), plain(t, "pub")).PublishAcked("plant/a", 1, "not subscribed")
	dev.ExpectNothing()
}

// MQTT 5 subscription options hold outside the chat: No Local, Retain As Published, Retain
// Handling, Subscription Identifiers, and overlapping subscriptions with different ones.
func TestPlainSubscriptionOptions(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	addr := b.MQTTAddr().String()
	pub := mqttest.Dial(t, addr, v5(plain(t, "pub")))
	o := v5(keep(plain(t, "dev")))
	dev := mqttest.Dial(t, addr, o)
	sends(pub, "plant/x", "retained", true, packets.Properties{})
	subscribe := func(id int, s packets.Subscription) {
		t.Helper()
		if code := dev.SubscribeWith(packets.Properties{SubscriptionIdentifier: []int{id}}, s)[0]; code != s.Qos {
			t.Fatalf("%s: SUBACK %#x", s.Filter, code)
		}
	}
	ids := func(m packets.Packet, want ...int) {
		t.Helper()
		if !slices.Equal(m.Properties.SubscriptionIdentifier, want) {
			t.Errorf("%q has identifiers %v, want %v", m.Payload, m.Properties.SubscriptionIdentifier, want)
		}
	}
	for _, rh := range []struct {
		handling byte
		comes    bool
	}{{2, false}, {1, false}, {0, true}, {0, true}, {1, false}, {2, false}} {
		subscribe(300, packets.Subscription{Filter: "plant/x", Qos: 1, NoLocal: true, RetainHandling: rh.handling})
		if rh.comes {
			m := mustGet(t, dev, "retained")
			if ids(m, 300); !m.FixedHeader.Retain {
				t.Error("a retained message without the flag")
			}
		}
		dev.ExpectNothing()
	}
	dev.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: dev.ID(), Filters: packets.Subscriptions{{Filter: "plant/x"}, {Filter: "plant/none"}}})
	if reasons := dev.Expect(packets.Unsuback).ReasonCodes; string(reasons) != "\x00\x11" {
		t.Errorf("UNSUBACK %v", reasons)
	}
	subscribe(300, packets.Subscription{Filter: "plant/x", Qos: 1, NoLocal: true, RetainHandling: 1}) // new again
	mustGet(t, dev, "retained")

	sends(dev, "plant/x", "own", false, packets.Properties{})
	dev.ExpectNothing()
	sends(pub, "plant/x", "others", true, packets.Properties{})
	m := mustGet(t, dev, "others")
	if ids(m, 300); m.FixedHeader.Retain {
		t.Error("the retain flag was kept without Retain As Published")
	}

	subscribe(7, packets.Subscription{Filter: "plant/#", Qos: 2, RetainAsPublished: true, RetainHandling: 2})
	sends(dev, "plant/x", "own", false, packets.Properties{})
	ids(mustGet(t, dev, "own"), 7) // of the two only plant/# wants it
	for _, retain := range []bool{true, false} {
		sends(pub, "plant/x", "both", retain, packets.Properties{})
		m = mustGet(t, dev, "both")
		if ids(m, 7, 300); m.FixedHeader.Retain != retain {
			t.Errorf("retain is %v, published with %v", m.FixedHeader.Retain, retain)
		}
	}
	dev.ExpectNothing()

	// The options are the session's.
	dev.CloseAbruptly()
	b = restart(t, b, dir)
	dev = mqttest.Dial(t, b.MQTTAddr().String(), o)
	sends(dev, "plant/x", "own", true, packets.Properties{})
	if m = mustGet(t, dev, "own"); !m.FixedHeader.Retain {
		t.Error("Retain As Published is forgotten")
	}
	ids(m, 7)
	dev.ExpectNothing()

	if code := dev.Subscribe(1, "$share/g/plant/x")[0]; code != 1 {
		t.Errorf("SUBACK %#x", code)
	}
	dev.ExpectNothing() // nothing retained for it
}

// Wildcards match as MQTT has it, and none at the beginning matches a topic with $.
func TestPlainWildcards(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	pub := mqttest.Dial(t, addr, v5(wide(t, "pub")))
	topics := []string{"a", "a/b", "a/b/c", "/a", "a/", "a//c", "b/b"}
	for filter, want := range map[string]string{
		"#": "a a/b a/b/c /a a/ a//c b/b", "+": "a", "+/b": "a/b b/b", "a/#": "a a/b a/b/c a/ a//c",
		"a/+": "a/b a/", "/+": "/a", "+/+": "a/b /a a/ b/b", "a/+/c": "a/b/c a//c", "a/b": "a/b", "$share/g/a/#": "a a/b a/b/c a/ a//c",
	} {
		sub := mqttest.Dial(t, addr, wide(t, "sub"))
		if code := sub.Subscribe(0, filter)[0]; code != 0 {
			t.Fatalf("%s: SUBACK %#x", filter, code)
		}
		for _, topic := range topics {
			pub.PublishAcked(topic, 1, topic)
		}
		var got []string
		mustDrain(t, func(_ *mqttest.Client, m packets.Packet) { got = append(got, m.TopicName) }, func() bool { return len(got) == len(strings.Fields(want)) }, sub)
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %q, want %q", filter, got, want)
		}
		sub.Disconnect()
	}
	admin := mqttest.Dial(t, addr, mqttest.Options{
		ClientID: "a", Token: mustToken(t, authhook.TokenClaims{Subject: "admin", Role: authhook.RoleAdmin, Sub: []string{"#"}}),
	})
	admin.Subscribe(0, "+/broker/version", "$SYS/broker/+", "$share/g/#")
	for told := 0; told < 3; { // at least version, uptime and time
		m := admin.ReceivePlain()
		switch {
		case !strings.HasPrefix(m.TopicName, "$SYS/broker/") || !m.FixedHeader.Retain:
			t.Fatalf("got %q, retain %v", m.TopicName, m.FixedHeader.Retain)
		default:
			told++
		}
	}
}

// Publishers are told in the order in which they publish, of the chat and of other topics
// alike, and with MQTT 5 whether anybody has subscribed [MQTT-4.6.0-2].
func TestPlainAcknowledgements(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	sub := mqttest.Dial(t, addr, plain(t, "sub"))
	sub.Subscribe(0, "plant/x")
	pub := mqttest.Dial(t, addr, v5(plain(t, "pub")))
	topics := []string{"user/bob", "plant/x", "nowhere", "plant/nobody", "user/bob", "plant/x"}
	codes := []byte{0, 0, packets.ErrNotAuthorized.Code, packets.CodeNoMatchingSubscribers.Code, 0, 0}
	var ids []uint16
	for round := range 50 {
		ids = ids[:0]
		qos := byte(1 + round%2)
		for _, topic := range topics {
			ids = append(ids, pub.Publish(topic, qos, "x"))
		}
		for i, id := range ids {
			if ack := pub.Next(); ack.PacketID != id || ack.ReasonCode != codes[i] {
				t.Fatalf("acknowledgement of %d with %#x, want %d with %#x", ack.PacketID, ack.ReasonCode, id, codes[i])
			}
		}
		for i, id := range ids {
			if qos == 2 && codes[i] < 0x80 {
				pub.Ack(packets.Pubrel, id)
				pub.Expect(packets.Pubcomp)
			}
		}
	}
}

// A message of QoS 2 is passed on once until it is released, also if the publisher comes
// back in between on a new connection.
func TestPlainPublishedExactlyOnce(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	sub := mqttest.Dial(t, addr, plain(t, "sub"))
	sub.Subscribe(2, "plant/x")
	o := keep(plain(t, "pub"))
	pub := mqttest.Dial(t, addr, o)
	publish := func(payload string, dup bool) {
		pub.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 2, Dup: dup}, PacketID: 9, TopicName: "plant/x", Payload: []byte(payload),
		})
		pub.Expect(packets.Pubrec)
	}
	for round := range 3 {
		publish(fmt.Sprint(round), false)
		for range 2 {
			pub.CloseAbruptly()
			pub = mqttest.Dial(t, addr, o)
			publish(fmt.Sprint(round), true)
		}
		pub.Ack(packets.Pubrel, 9)
		pub.Expect(packets.Pubcomp)
	}
	for round := range 3 {
		mustGet(t, sub, fmt.Sprint(round))
	}
	sub.ExpectNothing()
}

// Who comes back with a token that may read less gets nothing more than that of what has
// waited.
func TestPlainRightsThatAreGone(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	options := func(filters ...string) mqttest.Options {
		return keep(mqttest.Options{ClientID: "d", Token: mustToken(t, authhook.TokenClaims{
			Subject: "dev", Role: authhook.RoleDevice, Sub: filters,
		})})
	}
	dev := mqttest.Dial(t, addr, options("plant/#"))
	dev.Subscribe(1, "plant/#")
	pub := mqttest.Dial(t, addr, plain(t, "pub"))
	pub.PublishAcked("plant/secret", 1, "sent")
	if m := dev.ReceivePlain(); string(m.Payload) != "sent" { // and not acknowledged
		t.Fatalf("got %q", m.Payload)
	}
	dev.CloseAbruptly()
	pub.PublishAcked("plant/secret", 1, "queued")
	pub.PublishAcked("plant/open", 1, "open")
	dev = mqttest.Dial(t, addr, options("plant/open"))
	mustGet(t, dev, "open")
	pub.PublishAcked("plant/secret", 1, "live")
	dev.ExpectNothing()
}

// Whoever subscribes while a retained message is replaced has the new one last, however
// the two meet.
func TestRetainedIsNeverStale(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	pub, sub := mqttest.Dial(t, addr, v5(plain(t, "pub"))), mqttest.Dial(t, addr, plain(t, "sub"))
	filters := packets.Subscriptions{{Filter: "plant/x", Qos: 0}}
	for i := range 300 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			sends(pub, "plant/x", fmt.Sprint(i), true, packets.Properties{})
		}()
		sub.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1, Filters: filters})
		<-done
		last := ""
		mustDrain(t, func(_ *mqttest.Client, pk packets.Packet) {
			if pk.FixedHeader.Type == packets.Publish {
				last = string(pk.Payload)
			}
		}, func() bool { return last == fmt.Sprint(i) }, sub)
		if last != fmt.Sprint(i) {
			t.Fatalf("the last message is %q, want %d", last, i)
		}
		sub.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: 2, Filters: filters})
		sub.Expect(packets.Unsuback)
	}
}
