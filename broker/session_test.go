package broker_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"

	"mynah/authhook"
	"mynah/broker"
	"mynah/internal/mqttest"
	"mynah/internal/waitfor"
)

// user returns options for a client of a subject that is in the groups.
func user(tb testing.TB, subject, client string, groups ...string) mqttest.Options {
	tb.Helper()
	return mqttest.Options{
		ClientID: client, Token: mustToken(tb, authhook.TokenClaims{Subject: subject, Groups: groups}),
	}
}

func keep(o mqttest.Options) mqttest.Options { o.KeepSession = true; return o }

func v5(o mqttest.Options) mqttest.Options {
	o.Version = 5
	if o.KeepSession {
		o.Properties.SessionExpiryInterval, o.Properties.SessionExpiryIntervalFlag = 3600, true
	}
	return o
}

// restart stops a broker and starts another on its folder.
func restart(tb testing.TB, b *broker.Broker, dir string) *broker.Broker {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
	defer cancel()
	if err := b.Stop(ctx); err != nil {
		tb.Fatal(err)
	}
	return mustStart(tb, dir, nil)
}

// A persistent session gets what it missed, in order and with prev unbroken, also after
// a restart of the broker. Plain brokers queue in memory and lose it.
func TestMissedMessagesAcrossRestart(t *testing.T) {
	t.Parallel()
	for _, qos := range []byte{1, 2} {
		for _, version := range []byte{4, 5} {
			t.Run(fmt.Sprintf("qos%d_v%d", qos, version), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				b := mustStart(t, dir, nil)
				opts := keep(user(t, "alice", "phone", "room"))
				if version == 5 {
					opts = v5(opts)
				}
				alice := mqttest.Dial(t, b.MQTTAddr().String(), opts)
				alice.Subscribe(qos, "user/alice", "group/+")
				alice.Disconnect()

				bob := mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "phone", "room"))
				const n = 300
				for i := range n {
					topic := []string{"user/alice", "group/room"}[i%2]
					bob.PublishAcked(topic, qos, fmt.Sprint(i))
					if i == n/2 {
						bob.Disconnect()
						b = restart(t, b, dir)
						bob = mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "phone", "room"))
					}
				}
				alice = mqttest.Dial(t, b.MQTTAddr().String(), opts)
				if !alice.Connack.SessionPresent {
					t.Error("session not present after the restart")
				}
				prev := map[string]uint64{}
				for i := range n {
					m := alice.ReceiveAcked()
					if m.Body != fmt.Sprint(i) {
						t.Fatalf("message %d is %v", i, m.Body)
					}
					if m.Prev != prev[m.To] {
						t.Fatalf("message %d has prev %d, want %d", i, m.Prev, prev[m.To])
					}
					prev[m.To] = m.Seq
				}
				alice.ExpectNothing()
			})
		}
	}
}

// What a client has not acknowledged comes again with DUP, under its packet id and in
// order, before anything else.
func TestUnacknowledgedComesAgain(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	opts := keep(user(t, "alice", "phone"))
	alice := mqttest.Dial(t, addr, opts)
	alice.Subscribe(1, "user/alice")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	var ids []uint16
	for i := range 5 {
		bob.PublishAcked("user/alice", 1, fmt.Sprint(i))
		ids = append(ids, alice.Receive().PacketID)
	}
	alice.Ack(packets.Puback, ids[1]) // out of order
	alice.ExpectNothing()
	alice.CloseAbruptly()
	bob.PublishAcked("user/alice", 1, "5")

	alice = mqttest.Dial(t, addr, opts)
	for i, id := range ids {
		if i == 1 {
			continue
		}
		m := alice.Receive()
		if m.Body != fmt.Sprint(i) || m.PacketID != id || !m.FixedHeader.Dup {
			t.Fatalf("got %v id %d dup %v, want %d id %d with DUP", m.Body, m.PacketID, m.FixedHeader.Dup, i, id)
		}
		alice.Ack(packets.Puback, id)
	}
	if m := alice.ReceiveAcked(); m.Body != "5" { // with DUP if it went to the connection that was cut
		t.Fatalf("got %v, want 5", m.Body)
	}
	alice.ExpectNothing()
}

// A QoS 2 message arrives exactly once although the broker restarts at each step of the
// exchange.
func TestExactlyOnceAcrossRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	opts := keep(user(t, "alice", "phone"))
	alice := mqttest.Dial(t, b.MQTTAddr().String(), opts)
	alice.Subscribe(2, "user/alice")
	bob := mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "phone"))
	bob.PublishAcked("user/alice", 1, "zero")
	bob.PublishAcked("user/alice", 2, "one")
	bob.PublishAcked("user/alice", 2, "two")
	zero, one, two := alice.Receive(), alice.Receive(), alice.Receive()
	alice.Ack(packets.Pubrec, one.PacketID)
	if rel := alice.Next(); rel.FixedHeader.Type != packets.Pubrel {
		t.Fatalf("got %+v, want PUBREL", rel)
	}
	alice.CloseAbruptly()
	b = restart(t, b, dir)

	// zero was not acknowledged: again. one was received: only PUBREL. two: again,
	// under its packet id, by which the client knows that it has it.
	alice = mqttest.Dial(t, b.MQTTAddr().String(), opts)
	if m := alice.Receive(); m.Body != "zero" {
		t.Fatalf("got %v, want zero", m.Body)
	} else {
		alice.Ack(packets.Puback, m.PacketID)
	}
	if rel := alice.Next(); rel.FixedHeader.Type != packets.Pubrel || rel.PacketID != one.PacketID {
		t.Fatalf("got %+v, want PUBREL %d", rel, one.PacketID)
	}
	alice.Ack(packets.Pubcomp, one.PacketID)
	if m := alice.ReceiveAcked(); m.Body != "two" || m.PacketID != two.PacketID || !m.FixedHeader.Dup {
		t.Fatalf("got %v id %d dup %v, want two id %d with DUP", m.Body, m.PacketID, m.FixedHeader.Dup, two.PacketID)
	}
	alice.ExpectNothing()
	_ = zero
	b = restart(t, b, dir)
	alice = mqttest.Dial(t, b.MQTTAddr().String(), opts)
	alice.ExpectNothing()
}

// A publisher's QoS 2 message is stored once although it is sent again after a restart.
func TestPublishedExactlyOnceAcrossRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	opts := keep(user(t, "bob", "phone"))
	bob := mqttest.Dial(t, b.MQTTAddr().String(), opts)
	first := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 2}, TopicName: "user/alice", Payload: []byte("once"), PacketID: 7,
	}
	bob.Send(first)
	bob.Expect(packets.Pubrec)
	bob.CloseAbruptly()
	aliceOpts := keep(user(t, "alice", "phone"))
	b = restart(t, b, dir)
	alice := mqttest.Dial(t, b.MQTTAddr().String(), aliceOpts)
	alice.Subscribe(1, "user/alice")
	bob = mqttest.Dial(t, b.MQTTAddr().String(), opts)
	first.FixedHeader.Dup = true
	bob.Send(first)
	bob.Expect(packets.Pubrec)
	bob.Ack(packets.Pubrel, 7)
	bob.Expect(packets.Pubcomp)
	alice.ExpectNothing() // it was stored before alice subscribed, and is not new

	// The id is free now: another message under it is another message.
	first.FixedHeader.Dup = false
	first.Payload = []byte("twice")
	bob.Send(first)
	bob.Expect(packets.Pubrec)
	bob.Ack(packets.Pubrel, 7)
	bob.Expect(packets.Pubcomp)
	if m := alice.ReceiveAcked(); m.Body != "twice" {
		t.Fatalf("got %v, want twice", m.Body)
	}
}

// mid makes a publish idempotent for its sender.
func TestMid(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")
	bob := mqttest.Dial(t, addr, v5(user(t, "bob", "phone")))
	seq := func(pk packets.Packet) string {
		t.Helper()
		if len(pk.Properties.User) != 1 || pk.Properties.User[0].Key != "seq" {
			t.Fatalf("properties %+v, want the user property seq", pk.Properties)
		}
		return pk.Properties.User[0].Val
	}
	one := bob.PublishAcked("user/alice", 1, `{"body":"a","mid":"m1"}`)
	again := bob.PublishAcked("user/alice", 2, `{"body":"a","mid":"m1"}`)
	if seq(one) != seq(again) {
		t.Errorf("the second publish got seq %s, want %s", seq(again), seq(one))
	}
	other := bob.PublishAcked("user/alice", 1, `{"body":"b","mid":"m1"}`)
	if other.ReasonCode < 0x80 {
		t.Errorf("another content under the same mid was accepted: %+v", other)
	}
	if m := alice.ReceiveAcked(); m.Body != "a" || m.Mid != "m1" {
		t.Errorf("got %+v", m)
	}
	alice.ExpectNothing()
}

// Two connections of one client id: the later has the session, the earlier is told, and
// nothing is lost between them.
func TestTakeover(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	opts := v5(keep(user(t, "alice", "phone")))
	old := mqttest.Dial(t, addr, opts)
	old.Subscribe(1, "user/alice")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone")) // the same client id, another subject
	bob.PublishAcked("user/alice", 1, "one")
	if m := old.Receive(); m.Body != "one" {
		t.Fatal(m.Body)
	}
	fresh := mqttest.Dial(t, addr, opts)
	if end := old.ExpectEnd(); end.ReasonCode != packets.ErrSessionTakenOver.Code {
		t.Errorf("the old connection ended with %#x, want 0x8e", end.ReasonCode)
	}
	if m := fresh.ReceiveAcked(); m.Body != "one" || !m.FixedHeader.Dup {
		t.Errorf("got %v dup %v", m.Body, m.FixedHeader.Dup)
	}
	bob.PublishAcked("user/alice", 1, "two")
	if m := fresh.ReceiveAcked(); m.Body != "two" {
		t.Errorf("got %v", m.Body)
	}
	bob.ExpectNothing()
}

// A clean start ends the session that was there, for good.
func TestCleanStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	opts := keep(user(t, "alice", "phone"))
	alice := mqttest.Dial(t, b.MQTTAddr().String(), opts)
	alice.Subscribe(1, "user/alice")
	alice.Disconnect()
	alice = mqttest.Dial(t, b.MQTTAddr().String(), user(t, "alice", "phone"))
	if alice.Connack.SessionPresent {
		t.Error("a clean session is present")
	}
	bob := mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "phone"))
	bob.PublishAcked("user/alice", 1, "one")
	alice.ExpectNothing()
	alice.Disconnect()
	bob.Disconnect()
	b = restart(t, b, dir)
	alice = mqttest.Dial(t, b.MQTTAddr().String(), opts)
	if alice.Connack.SessionPresent {
		t.Error("the ended session is back after a restart")
	}
	alice.ExpectNothing()
}

// Receive Maximum bounds what is unacknowledged, and acknowledging goes on with the
// rest. Mochi does not give the quota back and stalls.
func TestReceiveMaximum(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	opts := v5(user(t, "alice", "phone"))
	opts.Properties.ReceiveMaximum = 3
	alice := mqttest.Dial(t, addr, opts)
	alice.Subscribe(2, "user/alice")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	for i := range 40 {
		bob.PublishAcked("user/alice", byte(1+i%2), fmt.Sprint(i))
	}
	open := []mqttest.Message{alice.Receive(), alice.Receive(), alice.Receive()}
	alice.ExpectNothing()
	for i, m := range open {
		if m.Body != fmt.Sprint(i) {
			t.Fatalf("message %d is %v", i, m.Body)
		}
		if m.FixedHeader.Qos == 2 {
			alice.Ack(packets.Pubrec, m.PacketID)
			alice.Expect(packets.Pubrel)
			alice.Ack(packets.Pubcomp, m.PacketID)
		} else {
			alice.Ack(packets.Puback, m.PacketID)
		}
	}
	for i := 3; i < 40; i++ {
		if m := alice.ReceiveAcked(); m.Body != fmt.Sprint(i) {
			t.Fatalf("message %d is %v", i, m.Body)
		}
	}
	alice.ExpectNothing()
}

// A session expires when its time is over and not before.
func TestSessionExpiry(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	b := mustStart(t, t.TempDir(), func(c *broker.Config) { c.Registry = reg })
	addr := b.MQTTAddr().String()
	opts := v5(keep(user(t, "alice", "phone")))
	opts.Properties.SessionExpiryInterval = 1
	alice := mqttest.Dial(t, addr, opts)
	alice.Subscribe(1, "user/alice")
	left := time.Now()
	alice.Disconnect()
	// A connection that resumes would renew it, so look from outside.
	waitfor.MustHold(t, "the session is gone", func() bool { return metric(t, reg, "mynah_sessions") == 0 })
	if early := time.Since(left); early < time.Second {
		t.Errorf("the session was gone after %v, want 1 s", early)
	}
	if alice = mqttest.Dial(t, addr, opts); alice.Connack.SessionPresent {
		t.Error("the expired session is present")
	}
}

// What is sent again after a reconnect goes as far as the outbox takes it, and leaves room
// for the answers to the client's own packets. It overfilled the outbox, and the next
// SUBACK or PINGRESP ended the connection.
func TestManyLargeMessagesComeAgain(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	b := mustStart(t, t.TempDir(), func(c *broker.Config) { c.Registry = reg })
	addr := b.MQTTAddr().String()
	opts := keep(user(t, "alice", "phone"))
	alice := mqttest.Dial(t, addr, opts)
	alice.Subscribe(1, "user/alice")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	const n = 500 // more than the sockets' buffers take
	for range n {
		bob.PublishAcked("user/alice", 1, strings.Repeat("x", 30000))
		alice.Receive()
	}
	alice.CloseAbruptly()
	alice = mqttest.Dial(t, addr, opts)
	waitfor.MustHold(t, "the outbox is half full", func() bool { return metric(t, reg, "mynah_outbox_bytes") > 128<<10 })
	alice.Subscribe(1, "user/alice/error")
	for range n {
		if m := alice.ReceiveAcked(); !m.FixedHeader.Dup {
			t.Fatal("a message without DUP")
		}
	}
	alice.ExpectNothing()
}
