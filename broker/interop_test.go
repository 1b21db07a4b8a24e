package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/internal/mqttest"
)

// These tests follow Eclipse Paho's interoperability tests (paho.mqtt.testing, client_test.py
// for 3.1.1 and client_test5.py for 5; 37 in all), with a token whose acl is "#". Where one of
// them is not met, the table says why.

// interop is what such a test works with: topics of its own, and clients a and b.
type interop struct {
	*testing.T
	addr, prefix string
	version      byte
}

// The topics and filters of Paho's tests, below the prefix.
func (x *interop) topic(i int) string {
	return x.prefix + []string{"/TopicA", "/TopicA/B", "/Topic/C", "/TopicA/C", "//TopicA"}[i]
}

func (x *interop) wild(i int) string {
	return x.prefix + []string{"/TopicA/+", "/+/C", "/#", "//#", "//+", "/+/+", "/TopicA/#"}[i]
}

func (x *interop) options(who string) mqttest.Options {
	return mqttest.Options{ClientID: "my" + who, Version: x.version, Token: mustToken(x, authhook.TokenClaims{
		Subject: x.prefix + who, Pub: []string{"#"}, Sub: []string{"#"},
	})}
}

// kept are options of a client whose session stays.
func (x *interop) kept(who string) mqttest.Options {
	o := keep(x.options(who))
	if x.version == 5 {
		o = v5(o)
	}
	return o
}

func (x *interop) dial(o mqttest.Options) *mqttest.Client {
	x.Helper()
	c := mqttest.Dial(x, x.addr, o)
	if c.Connack.ReasonCode != 0 {
		x.Fatalf("CONNACK %#x", c.Connack.ReasonCode)
	}
	return c
}

// take receives a message and acknowledges it, and fails the test if it is another.
func (x *interop) take(c *mqttest.Client, payload string, qos byte) packets.Packet {
	x.Helper()
	m := mustGet(x, c, payload)
	if m.FixedHeader.Qos != qos {
		x.Errorf("%q came at QoS %d, want %d", payload, m.FixedHeader.Qos, qos)
	}
	return m
}

// next receives a message and acknowledges it.
func (x *interop) next(c *mqttest.Client) packets.Packet {
	x.Helper()
	m := c.ReceivePlain()
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

// takeEveryQoS receives what everyQoS publishes, in whichever order: MQTT has one for each QoS.
func (x *interop) takeEveryQoS(c *mqttest.Client, each func(packets.Packet)) {
	x.Helper()
	var got []string
	for range 3 {
		m := x.next(c)
		got = append(got, fmt.Sprint(string(m.Payload), " at ", m.FixedHeader.Qos))
		each(m)
	}
	if slices.Sort(got); !slices.Equal(got, []string{"qos 0 at 0", "qos 1 at 1", "qos 2 at 2"}) {
		x.Errorf("got %q", got)
	}
}

// everyQoS publishes at each QoS.
func (x *interop) everyQoS(c *mqttest.Client, topics [3]string, retain bool, props packets.Properties) {
	x.Helper()
	for qos, topic := range topics {
		pk := packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: byte(qos), Retain: retain},
			TopicName:   topic, Payload: fmt.Append(nil, "qos ", qos), Properties: props,
		}
		if qos > 0 {
			pk.PacketID = c.ID()
		}
		c.Send(pk)
		switch qos {
		case 1:
			c.Expect(packets.Puback)
		case 2:
			c.Expect(packets.Pubrec)
			c.Ack(packets.Pubrel, pk.PacketID)
			c.Expect(packets.Pubcomp)
		}
	}
}

func (x *interop) basic() {
	x.dial(x.options("a")).Disconnect()
	a := x.dial(x.options("a"))
	a.Subscribe(2, x.topic(0))
	x.everyQoS(a, [3]string{x.topic(0), x.topic(0), x.topic(0)}, false, packets.Properties{})
	x.takeEveryQoS(a, func(packets.Packet) {})
	a.ExpectNothing()
	o := x.options("a")
	a.SendBytes([]byte(connectOf(x.version, 0xC2, "", "mya", "", "", "any", o.Token))) // a second one
	a.ExpectEnd()
	b, err := mqttest.TryDial(x, x.addr, mqttest.Options{ClientID: "x"})
	if err == nil && b.Connack.ReasonCode == 0 {
		x.Error("let in without a token")
	}
}

func (x *interop) retained() {
	user := packets.Properties{User: []packets.UserProperty{{Key: "a", Val: "2"}, {Key: "c", Val: "3"}}}
	a := x.dial(x.options("a"))
	topics := [3]string{x.topic(1), x.topic(2), x.topic(3)}
	x.everyQoS(a, topics, true, user)
	a.Subscribe(2, x.wild(5))
	x.takeEveryQoS(a, func(m packets.Packet) {
		if !m.FixedHeader.Retain {
			x.Error("not marked as retained")
		}
		if x.version == 5 && !slices.Equal(m.Properties.User, user.User) {
			x.Errorf("user properties %v", m.Properties.User)
		}
	})
	for _, topic := range topics { // takes them back
		a.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Retain: true}, TopicName: topic})
		x.take(a, "", 0)
	}
	a.Disconnect()
	a = x.dial(x.options("a"))
	a.Subscribe(2, x.wild(5))
	a.ExpectNothing()
}

func (x *interop) will() {
	o := x.options("a")
	o.Will = &packets.Packet{TopicName: x.topic(2), Payload: []byte("client not disconnected")}
	o.Keepalive = 2
	a, b := x.dial(o), x.dial(x.options("b"))
	b.Subscribe(2, x.topic(2))
	a.CloseAbruptly()
	x.take(b, "client not disconnected", 0)
	b.ExpectNothing()
}

func (x *interop) zeroLengthClientID() {
	o := x.options("a")
	o.ClientID = ""
	x.dial(o).Disconnect()
	if x.version < 5 {
		o.KeepSession = true
		if code := mqttest.Dial(x, x.addr, o).Connack.ReasonCode; code != 2 {
			x.Errorf("without a clean session: CONNACK %#x", code)
		}
	}
}

func (x *interop) offline() {
	a := x.dial(x.kept("a"))
	a.Subscribe(2, x.wild(5))
	a.Disconnect()
	x.everyQoS(x.dial(x.options("b")), [3]string{x.topic(1), x.topic(2), x.topic(3)}, false, packets.Properties{})
	a = x.dial(x.kept("a"))
	var got []string
	mustDrain(x, func(_ *mqttest.Client, m packets.Packet) { got = append(got, string(m.Payload)) }, func() bool { return len(got) >= 2 }, a)
	if got = slices.DeleteFunc(got, func(s string) bool { return s == "qos 0" }); !slices.Equal(got, []string{"qos 1", "qos 2"}) {
		x.Errorf("got %v", got)
	}
}

func (x *interop) overlapping() {
	a := x.dial(x.options("a"))
	a.SubscribeWith(packets.Properties{}, packets.Subscription{Filter: x.wild(6), Qos: 2}, packets.Subscription{Filter: x.wild(0), Qos: 1})
	x.dial(x.options("b")).PublishAcked(x.topic(3), 2, "overlapping topic filters")
	x.take(a, "overlapping topic filters", 2) // once, at the higher QoS
	a.ExpectNothing()
}

func (x *interop) keepAlive() {
	o := x.options("a")
	o.Will = &packets.Packet{TopicName: x.topic(4), Payload: []byte("keepalive expiry")}
	o.Keepalive = 1
	b := x.dial(x.options("b"))
	b.Subscribe(2, x.topic(4))
	a := x.dial(o)
	began := time.Now()
	x.take(b, "keepalive expiry", 0)
	if after := time.Since(began); after < time.Second {
		x.Errorf("ended after %v", after)
	}
	a.ExpectEnd()
}

func (x *interop) redelivery() {
	b := x.dial(x.kept("b"))
	b.Subscribe(2, x.wild(6))
	b.Publish(x.topic(1), 1, "one")
	b.Expect(packets.Puback)
	b.Publish(x.topic(3), 2, "two")
	b.Expect(packets.Pubrec)
	b.Disconnect() // and has acknowledged nothing
	b = x.dial(x.kept("b"))
	x.take(b, "one", 1)
	x.take(b, "two", 2)
	b.ExpectNothing()
}

func (x *interop) dollarTopics() {
	b := x.dial(x.options("b"))
	b.Subscribe(2, "#", "+/+/+", "$share/g/#")
	b.Publish("$"+x.topic(1), 1, "x")
	for pk := b.Next(); pk.FixedHeader.Type != packets.Puback; pk = b.Next() {
		if strings.HasPrefix(pk.TopicName, "$") {
			x.Errorf("got %s", pk.TopicName)
		}
	}
}

func (x *interop) unsubscribe() {
	b := x.dial(x.options("b"))
	b.Subscribe(2, x.topic(0), x.topic(1), x.topic(2))
	b.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: b.ID(), Filters: packets.Subscriptions{{Filter: x.topic(0)}}})
	b.Expect(packets.Unsuback)
	a := x.dial(x.options("a"))
	for i := range 3 {
		a.PublishAcked(x.topic(i), 1, fmt.Sprint("topic ", i))
	}
	x.take(b, "topic 1", 1)
	x.take(b, "topic 2", 1)
	b.ExpectNothing()
}

func (x *interop) sessionExpiry() {
	connect := func(clean bool, expiry uint32) *mqttest.Client {
		o := x.options("a")
		o.KeepSession = !clean
		o.Properties.SessionExpiryInterval, o.Properties.SessionExpiryIntervalFlag = expiry, true
		return x.dial(o)
	}
	expect := func(c *mqttest.Client, present bool) *mqttest.Client {
		x.Helper()
		if c.Connack.SessionPresent != present {
			x.Errorf("session present: %t", c.Connack.SessionPresent)
		}
		return c
	}
	leave := func(c *mqttest.Client, expiry uint32) {
		c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, Properties: packets.Properties{
			SessionExpiryInterval: expiry, SessionExpiryIntervalFlag: true,
		}})
		c.ExpectEnd()
	}
	expect(connect(true, 0), false).Disconnect()
	expect(connect(false, 0), false).Disconnect()
	expect(connect(true, 100), false).Disconnect()
	leave(expect(connect(false, 100), true), 1)
	for deadline := time.Now().Add(mqttest.Timeout); ; {
		time.Sleep(1500 * time.Millisecond) // the interval itself has to pass
		c := connect(false, 1)
		gone := !c.Connack.SessionPresent
		leave(c, 1)
		if gone {
			break
		}
		if time.Now().After(deadline) {
			x.Fatal("the session does not expire")
		}
	}
	leave(expect(connect(true, 1), false), 3600)
	leave(expect(connect(false, 1), true), 0)
	expect(connect(false, 1), false).Disconnect()
}

func (x *interop) forwarded(props packets.Properties, same func(packets.Properties) bool) {
	a := x.dial(x.options("a"))
	a.Subscribe(2, x.topic(0))
	x.everyQoS(a, [3]string{x.topic(0), x.topic(0), x.topic(0)}, false, props)
	x.takeEveryQoS(a, func(m packets.Packet) {
		if !same(m.Properties) {
			x.Errorf("properties %+v", m.Properties)
		}
	})
}

func (x *interop) userProperties() {
	user := []packets.UserProperty{{Key: "a", Val: "2"}, {Key: "c", Val: "3"}}
	x.forwarded(packets.Properties{User: user}, func(p packets.Properties) bool { return slices.Equal(p.User, user) })
}

func (x *interop) payloadFormat() {
	x.forwarded(packets.Properties{PayloadFormat: 1, PayloadFormatFlag: true, ContentType: "My name"}, func(p packets.Properties) bool {
		return p.PayloadFormat == 1 && p.ContentType == "My name"
	})
}

func (x *interop) publicationExpiry() {
	b := x.dial(x.kept("b"))
	b.Subscribe(2, x.topic(0))
	b.Disconnect()
	a := x.dial(x.options("a"))
	for _, expiry := range []uint32{1, 600} {
		for qos := byte(1); qos <= 2; qos++ {
			id := a.ID()
			a.Send(packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, PacketID: id, TopicName: x.topic(0),
				Payload: fmt.Append(nil, "expires after ", expiry, ", qos ", qos), Properties: packets.Properties{MessageExpiryInterval: expiry},
			})
			a.Next() // PUBACK or PUBREC
		}
	}
	time.Sleep(2 * time.Second) // the interval itself has to pass
	b = x.dial(x.kept("b"))
	for qos := byte(1); qos <= 2; qos++ {
		m := x.take(b, fmt.Sprint("expires after ", 600, ", qos ", qos), qos)
		if left := m.Properties.MessageExpiryInterval; left == 0 || left >= 600 {
			x.Errorf("%d seconds are left", left)
		}
	}
	b.ExpectNothing()
}

func (x *interop) subscribeOptions() {
	a, b := x.dial(x.options("a")), x.dial(x.options("b"))
	for _, c := range []*mqttest.Client{a, b} {
		c.SubscribeWith(packets.Properties{}, packets.Subscription{Filter: x.topic(0), Qos: 2, NoLocal: true})
	}
	a.PublishAcked(x.topic(0), 1, "no local")
	x.take(b, "no local", 1)
	a.ExpectNothing()
	a.Disconnect()

	a = x.dial(x.options("a"))
	a.SubscribeWith(packets.Properties{}, packets.Subscription{Filter: x.topic(0), Qos: 2, RetainAsPublished: true})
	for _, retain := range []bool{false, true} {
		sends(b, x.topic(0), fmt.Sprint(retain), retain, packets.Properties{})
		if m := x.take(a, fmt.Sprint(retain), 1); m.FixedHeader.Retain != retain {
			x.Errorf("retain as published: %t for %t", m.FixedHeader.Retain, retain)
		}
	}
	a.Disconnect()

	x.everyQoS(b, [3]string{x.topic(1), x.topic(2), x.topic(3)}, true, packets.Properties{})
	for handling, times := range map[byte][2]int{0: {3, 3}, 1: {3, 0}, 2: {0, 0}} {
		a = x.dial(x.options("a"))
		for _, n := range times {
			a.SubscribeWith(packets.Properties{}, packets.Subscription{Filter: x.wild(5), Qos: 2, RetainHandling: handling})
			if n > 0 {
				x.takeEveryQoS(a, func(packets.Packet) {})
			}
			a.ExpectNothing()
		}
		a.Disconnect()
	}
}

func (x *interop) assignedClientID() {
	o := x.options("a")
	o.ClientID = ""
	ids := map[string]bool{}
	for range 3 {
		c := x.dial(o)
		ids[c.Connack.Properties.AssignedClientID] = true
	}
	if len(ids) != 3 || ids[""] {
		x.Errorf("assigned %v", ids)
	}
}

func (x *interop) subscribeIdentifiers() {
	a, b := x.dial(x.options("a")), x.dial(x.options("b"))
	with := func(c *mqttest.Client, id int, filter string) {
		c.SubscribeWith(packets.Properties{SubscriptionIdentifier: []int{id}}, packets.Subscription{Filter: filter, Qos: 2, Identifier: id})
	}
	with(a, 456789, x.topic(0))
	with(b, 2, x.topic(0))
	with(b, 3, x.topic(0)+"/#")
	x.dial(x.options("c")).PublishAcked(x.topic(0), 1, "identified")
	if m := x.take(a, "identified", 1); !slices.Equal(m.Properties.SubscriptionIdentifier, []int{456789}) {
		x.Errorf("a: %v", m.Properties.SubscriptionIdentifier)
	}
	if m := x.take(b, "identified", 1); !slices.Equal(m.Properties.SubscriptionIdentifier, []int{2, 3}) {
		x.Errorf("b: %v", m.Properties.SubscriptionIdentifier)
	}
	b.ExpectNothing()
}

func (x *interop) requestResponse() {
	a, b := x.dial(x.options("a")), x.dial(x.options("b"))
	for _, c := range []*mqttest.Client{a, b} {
		c.SubscribeWith(packets.Properties{}, packets.Subscription{Filter: x.topic(0), Qos: 2, NoLocal: true})
	}
	sends(a, x.topic(0), "request", false, packets.Properties{ResponseTopic: x.topic(0), CorrelationData: []byte("334")})
	m := x.take(b, "request", 1)
	if m.Properties.ResponseTopic != x.topic(0) || string(m.Properties.CorrelationData) != "334" {
		x.Errorf("%+v", m.Properties)
	}
	sends(b, m.Properties.ResponseTopic, "response", false, packets.Properties{CorrelationData: m.Properties.CorrelationData})
	if m := x.take(a, "response", 1); string(m.Properties.CorrelationData) != "334" {
		x.Errorf("%+v", m.Properties)
	}
}

func (x *interop) clientTopicAlias() {
	for _, alias := range []string{"\x00\x00", "\x00\x01"} { // CONNACK says that there are none
		a := x.dial(x.options("a"))
		if a.Connack.Properties.TopicAliasMaximum != 0 {
			x.Errorf("Topic Alias Maximum %d", a.Connack.Properties.TopicAliasMaximum)
		}
		a.SendBytes([]byte(packetOf(0x32, str(x.topic(0)), "\x00\x01", props(5, "\x23"+alias), "x")))
		if pk := a.ExpectEnd(); pk.ReasonCode != packets.ErrTopicAliasInvalid.Code {
			x.Errorf("alias %x: DISCONNECT with %#x", alias, pk.ReasonCode)
		}
	}
}

func (x *interop) maximumPacketSize() {
	a := x.dial(x.options("a"))
	most := a.Connack.Properties.MaximumPacketSize
	a.SendBytes([]byte(packetOf(0x30, str(x.topic(0)), "\x00", strings.Repeat(".", int(most))))) // one that is larger
	if pk := a.ExpectEnd(); pk.ReasonCode != packets.ErrPacketTooLarge.Code {
		x.Errorf("DISCONNECT with %#x", pk.ReasonCode)
	}
	o := x.options("a")
	o.Properties.MaximumPacketSize = 96
	a = x.dial(o)
	a.Subscribe(2, x.topic(0))
	a.PublishAcked(x.topic(0), 1, "small")
	x.take(a, "small", 1)
	a.PublishAcked(x.topic(0), 1, strings.Repeat(".", 96))
	a.PublishAcked(x.topic(0), 1, "small again")
	x.take(a, "small again", 1)
	a.ExpectNothing()
}

func (x *interop) flowControl1() {
	o := x.options("a")
	o.Properties.ReceiveMaximum = 2
	a := x.dial(o)
	a.Subscribe(2, x.topic(0))
	b := x.dial(x.options("b"))
	for i := range 3 {
		b.PublishAcked(x.topic(0), 1, fmt.Sprint("message ", i))
	}
	first, second := a.ReceivePlain(), a.ReceivePlain()
	a.ExpectNothing() // two are open
	a.Ack(packets.Puback, first.PacketID)
	third := a.ReceivePlain()
	if string(third.Payload) != "message 2" {
		x.Errorf("got %q", third.Payload)
	}
	a.Ack(packets.Puback, second.PacketID)
	a.Ack(packets.Puback, third.PacketID)
	a.ExpectNothing()
}

func (x *interop) flowControl2() {
	a := x.dial(x.options("a"))
	most := int(a.Connack.Properties.ReceiveMaximum)
	var all []byte
	for id := 1; id <= most+1; id++ {
		all = append(all, packetOf(0x34, str(x.topic(0)), string([]byte{byte(id >> 8), byte(id)}), "\x00", "x")...)
	}
	go a.SendBytes(all) // nothing of it is released meanwhile
	if pk := a.ExpectEnd(); pk.ReasonCode != packets.ErrReceiveMaximum.Code {
		x.Errorf("DISCONNECT with %#x", pk.ReasonCode)
	}
}

func (x *interop) willDelay() {
	for _, tc := range []struct{ delay, expiry, least uint32 }{{1, 3600, 1}, {3600, 0, 0}, {3600, 1, 1}} {
		b := x.dial(x.options("b"))
		b.Subscribe(2, x.topic(0))
		o := x.options("a")
		o.Will, o.WillDelay = &packets.Packet{TopicName: x.topic(0), Payload: []byte("gone")}, tc.delay
		o.Properties.SessionExpiryInterval, o.Properties.SessionExpiryIntervalFlag = tc.expiry, true
		a := x.dial(o)
		began := time.Now()
		a.CloseAbruptly()
		x.take(b, "gone", 0)
		if after := time.Since(began); after < time.Duration(tc.least)*time.Second-100*time.Millisecond {
			x.Errorf("delay %d s, expiry %d s: the will came after %v", tc.delay, tc.expiry, after)
		}
		b.Disconnect()
	}
}

func (x *interop) sharedSubscriptions() {
	a, b := x.dial(x.options("a")), x.dial(x.options("b"))
	for _, c := range []*mqttest.Client{a, b} {
		c.Subscribe(2, "$share/sharename/"+x.prefix+"/x", x.topic(0))
	}
	b.PublishAcked(x.topic(0), 1, "to both")
	x.take(a, "to both", 1)
	x.take(b, "to both", 1)
	got := 0
	pub := x.dial(x.options("c"))
	for range 10 {
		pub.PublishAcked(x.prefix+"/x", 1, "to one")
	}
	mustDrain(x, func(c *mqttest.Client, m packets.Packet) { got++; c.Ack(packets.Puback, m.PacketID) }, func() bool { return got >= 10 }, a, b)
	if got != 10 {
		x.Errorf("ten messages came %d times", got)
	}
}

func TestInteroperability(t *testing.T) {
	t.Parallel()
	const allowed = "it wants a subscription refused that the acl # allows; that refusals come is in TestRefusedSubscribe"
	all := []struct {
		name    string
		version byte
		run     func(*interop)
		not     string // why it is not met
	}{
		{"basic", 4, (*interop).basic, ""},
		{"retained message", 4, (*interop).retained, ""},
		{"will message", 4, (*interop).will, ""},
		{"zero length client id", 4, (*interop).zeroLengthClientID, ""},
		{"offline message queueing", 4, (*interop).offline, ""},
		{"overlapping subscriptions", 4, (*interop).overlapping, ""},
		{"keepalive", 4, (*interop).keepAlive, ""},
		{"redelivery on reconnect", 4, (*interop).redelivery, ""},
		{"subscribe failure", 4, nil, allowed},
		{"dollar topics", 4, (*interop).dollarTopics, ""},

		{"basic", 5, (*interop).basic, ""},
		{"retained message", 5, (*interop).retained, ""},
		{"will message", 5, (*interop).will, ""},
		{"zero length client id", 5, (*interop).zeroLengthClientID, ""},
		{"offline message queueing", 5, (*interop).offline, ""},
		{"overlapping subscriptions", 5, (*interop).overlapping, ""},
		{"keepalive", 5, (*interop).keepAlive, ""},
		{"redelivery on reconnect", 5, (*interop).redelivery, ""},
		{"subscribe failure", 5, nil, allowed},
		{"dollar topics", 5, (*interop).dollarTopics, ""},
		{"unsubscribe", 5, (*interop).unsubscribe, ""},
		{"session expiry", 5, (*interop).sessionExpiry, ""},
		{"user properties", 5, (*interop).userProperties, ""},
		{"payload format", 5, (*interop).payloadFormat, ""},
		{"publication expiry", 5, (*interop).publicationExpiry, ""},
		{"subscribe options", 5, (*interop).subscribeOptions, ""},
		{"assigned client id", 5, (*interop).assignedClientID, ""},
		{"subscribe identifiers", 5, (*interop).subscribeIdentifiers, ""},
		{"request response", 5, (*interop).requestResponse, ""},
		{"client topic alias", 5, (*interop).clientTopicAlias, ""},
		{"server topic alias", 5, nil, "the broker sends no topic aliases, which is its choice (3.3.2.3.4)"},
		{"maximum packet size", 5, (*interop).maximumPacketSize, ""},
		{"server keep alive", 5, nil, "the broker takes the client's keep-alive of 120 s, and so has no other to tell (3.2.2.3.14)"},
		{"flow control 1", 5, (*interop).flowControl1, ""},
		{"flow control 2", 5, (*interop).flowControl2, ""},
		{"will delay", 5, (*interop).willDelay, ""},
		{"shared subscriptions", 5, (*interop).sharedSubscriptions, ""},
	}
	met := 0
	for _, test := range all {
		if test.not == "" {
			met++
		}
	}
	if len(all) != 37 || met < 33 {
		t.Errorf("of %d, %d are met", len(all), met)
	}
	b := mustStart(t, t.TempDir(), nil)
	for i, test := range all {
		if test.not != "" {
			t.Logf("%s of MQTT %d: %s", test.name, test.version, test.not)
			continue
		}
		t.Run(fmt.Sprintf("%s %d", test.name, test.version), func(t *testing.T) {
			t.Parallel()
			test.run(&interop{T: t, addr: b.MQTTAddr().String(), prefix: fmt.Sprint("test", i), version: test.version})
		})
	}
}
