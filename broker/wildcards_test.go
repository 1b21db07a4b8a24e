package broker_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker"
	"mynah/internal/mqttest"
)

// A subject has so many different filters with wildcards outside the chat, in all its
// sessions together; what is beyond is refused with a reason. It had as many as its sessions
// together may have subscriptions, and each cost every message something.
func TestWildcardsOfASubject(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start := func(limit int) *broker.Broker {
		return mustStart(t, dir, func(cfg *broker.Config) { cfg.MaxWildcards = limit })
	}
	b := start(5)
	dial := func(o mqttest.Options, clientID string) *mqttest.Client {
		o.ClientID = clientID
		return mqttest.Dial(t, b.MQTTAddr().String(), v5(o))
	}
	const refused = "outside the chat you have at most 5 different filters with + or #, of 40 levels together, in 100 subscriptions of all your sessions; unsubscribe from others first, or use fewer filters that match more"
	subscribe := func(c *mqttest.Client, want, reason string, filters ...string) {
		t.Helper()
		subs := make(packets.Subscriptions, len(filters))
		for i, f := range filters {
			subs[i] = packets.Subscription{Filter: f}
		}
		c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: c.ID(), Filters: subs})
		if ack := c.Expect(packets.Suback); string(ack.ReasonCodes) != want || ack.Properties.ReasonString != reason {
			t.Errorf("%.100q: codes %x, reason %q, want %x, %q", filters, ack.ReasonCodes, ack.Properties.ReasonString, want, reason)
		}
	}

	phone := dial(keep(wide(t, "alice")), "phone")
	subscribe(phone, "\x00\x00\x00", "", "a/+", "b/#", "$share/g/+/c")
	desk := dial(wide(t, "alice"), "desk")
	subscribe(desk, "\x00\x00\x97\x00\x00\x00", `"f/+": `+refused, "d/+", "e/+", "f/+", "a/+", "plain/f", "user/alice")
	subscribe(desk, "\x97", refused, "f/+")
	subscribe(desk, "\x00", "", "d/+") // it has that
	subscribe(dial(wide(t, "bob"), "d"), "\x00", "", "f/+")
	service := wide(t, "alice")
	service.Token = mustToken(t, authhook.TokenClaims{Subject: "alice", Role: authhook.RoleService, Pub: []string{"#"}, Sub: []string{"#"}})
	exempt := dial(service, "service")
	subscribe(exempt, "\x00\x00", "", "f/+", "g/+")
	exempt.Disconnect()

	// What is given up may be taken again: here, and with the end of a session.
	phone.Send(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe, Qos: 1}, PacketID: phone.ID(),
		Filters: packets.Subscriptions{{Filter: "b/#"}},
	})
	phone.Expect(packets.Unsuback)
	waitSubscribed := func(c *mqttest.Client, filter string) { // a session ends in a moment
		t.Helper()
		for deadline := time.Now().Add(mqttest.Timeout); c.SubscribeWith(packets.Properties{}, packets.Subscription{Filter: filter})[0] != 0; {
			if time.Now().After(deadline) {
				t.Fatalf("%s is refused still", filter)
			}
		}
	}
	waitSubscribed(phone, "h/+")
	subscribe(phone, "\x97", refused, "i/+")
	desk.Disconnect()
	waitSubscribed(phone, "i/+")
	subscribe(phone, "\x00\x97", `"k/+": `+refused, "j/+", "k/+")

	// What is stored is counted, and stays where the limit is a lower one.
	phone.Disconnect()
	if err := b.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	b = start(3)
	phone = dial(keep(wide(t, "alice")), "phone")
	subscribe(phone, "\x00\x97", `"k/+": `+strings.NewReplacer("5 diff", "3 diff", "40", "24", "100", "60").Replace(refused), "j/+", "k/+")
	sends(phone, "j/1", "still there", false, packets.Properties{})
	mustGet(t, phone, "still there")
}

// Connections that subscribe at the same time have no more than one after the other.
func TestWildcardsOfManyConnections(t *testing.T) {
	t.Parallel()
	const connections, each, limit = 8, 20, 40
	b := mustStart(t, t.TempDir(), func(cfg *broker.Config) { cfg.MaxWildcards = limit })
	clients := make([]*mqttest.Client, connections)
	for i := range clients {
		o := v5(wide(t, "mallory"))
		o.ClientID = fmt.Sprint(i)
		clients[i] = mqttest.Dial(t, b.MQTTAddr().String(), o)
	}
	for i, c := range clients {
		subs := make(packets.Subscriptions, each)
		for j := range subs {
			subs[j] = packets.Subscription{Filter: fmt.Sprintf("%d/%d/+", i, j)}
		}
		c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: c.ID(), Filters: subs})
	}
	granted := 0
	for _, c := range clients {
		granted += strings.Count(string(c.Expect(packets.Suback).ReasonCodes), "\x00")
	}
	if granted != limit {
		t.Errorf("%d filters are granted, want %d", granted, limit)
	}
}
