package broker_test

// What MOCHI.md says that Mochi does wrong, and where a test fails without our guard:
//
//	Security and crashes
//	 truncated SUBSCRIBE panics                 TestPanicLeavesNothing; listener.TestPanicEndsOneConnection
//	 a will skips every check                   TestWill, TestPlainWill
//	 no deadline and no bound before CONNECT    listener.TestFirstPacketDeadline, TestFirstPacketIsGuarded, TestOverlongLengthEndsTheConnection
//	 ACL before topic aliases                   TestTopicAliasIsRefused
//	 a session belongs to the client id alone   TestTakeover
//	 packets are logged with their payload      TestNothingSecretIsLogged
//	 an Accept error ends the listener          listener.TestAcceptIsRetried
//	 keep-alive wraps at 16 bits                TestLongKeepAlive
//	 WebSocket: origin, address, ping           listener.TestOrigins, TestForwardedAddress, TestPings
//	 shutdown can deadlock                      TestStopWithManyConnections
//	Loss and order
//	 one map of packet ids                      TestPacketIDsAreTwoSpaces, TestPlainPacketIDsAreTwoSpaces
//	 dropped beyond 8,192                       TestNothingIsDroppedBeyondMochisQueue, TestPlainBurst
//	 acknowledgement fails, never fanned out    TestPublisherThatIsGone, TestPlainTakeoverStorm
//	 Receive Maximum is not given back          TestReceiveMaximum, TestReceiveMaximumOfPlainTopics
//	 resend order by seconds                    TestResendOrder, TestPlainResendUnderReceiveMaximum
//	 oversize message bars the reconnect        TestNotForThisClient, TestOversizePlainMessage
//	 simultaneous reconnects lose messages      TestRacingReconnects, TestPlainTakeoverStorm, delivery.TestTakeoversUnderLoad
//	 storage hooks                              not used: TestMissedMessagesAcrossRestart
//	 expired sessions stay subscribed           TestExpiredSessionIsUnsubscribed; retained: TestRetainedOutlivesADay
//	Speed and memory
//	 one stalled subscriber stops all           TestStalledSubscriber
//	 64 KiB a connection, copies, resorting     bench/; BenchmarkPublish here, delivery's benchmarks

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"

	"mynah/authhook"
	"mynah/broker"
	"mynah/broker/msglog"
	"mynah/broker/state"
	"mynah/internal/mqttest"
	"mynah/internal/waitfor"
)

// plain returns options for a device that may use plant/#.
func plain(tb testing.TB, subject string) mqttest.Options {
	tb.Helper()
	return mqttest.Options{ClientID: "d", Token: mustToken(tb, authhook.TokenClaims{
		Subject: subject, Role: authhook.RoleDevice, Pub: []string{"plant/#"}, Sub: []string{"plant/#"},
	})}
}

// The packet that makes Mochi panic ends the connection that sent it and nothing else, and
// what it had is gone from everywhere: presence, plain subscriptions, the session.
func TestPanicLeavesNothing(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), func(c *broker.Config) { c.PresenceSettle = -1 })
	addr := b.MQTTAddr().String()
	other := mqttest.Dial(t, addr, plain(t, "other"))
	other.Subscribe(0, "presence/evil", "plant/#")
	o := plain(t, "evil")
	o.Version = 5
	evil := mqttest.Dial(t, addr, o)
	if m := other.Next(); !strings.Contains(string(m.Payload), `"online":true`) {
		t.Fatalf("got %q, want online", m.Payload)
	}
	evil.Subscribe(1, "plant/#", "user/evil")
	evil.SendBytes([]byte{0x82, 0x06, 0x00, 0x01, 0x00, 0x00, 0x01, 0x61})
	evil.ExpectEnd()
	if m := other.Next(); !strings.Contains(string(m.Payload), `"online":false`) {
		t.Fatalf("got %q, want offline", m.Payload)
	}
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	bob.PublishAcked("user/evil", 1, "hi")
	other.PublishAcked("plant/x", 1, "hi")
	if m := other.ReceivePlain(); m.TopicName != "plant/x" {
		t.Fatalf("got %s %s", m.TopicName, m.Payload)
	}
	evil = mqttest.Dial(t, addr, o)
	evil.Subscribe(1, "plant/y")
	other.PublishAcked("plant/x", 1, "hi") // evil is not subscribed to that any more
	other.PublishAcked("plant/y", 1, "hi")
	if m := evil.Next(); m.TopicName != "plant/y" {
		t.Errorf("got type %d on %q", m.FixedHeader.Type, m.TopicName)
	}
}

// Topic aliases are not announced and not taken: Mochi would ask who may publish to the
// empty topic.
func TestTopicAliasIsRefused(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	for _, topic := range []string{"user/alice", ""} {
		c := mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "bob", "phone")))
		if c.Connack.Properties.TopicAliasMaximum != 0 {
			t.Errorf("the server announces %d topic aliases", c.Connack.Properties.TopicAliasMaximum)
		}
		c.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: 1, TopicName: topic, Payload: []byte("x"),
			Properties: packets.Properties{TopicAlias: 1, TopicAliasFlag: true},
		})
		if end := c.ExpectEnd(); end.ReasonCode != packets.ErrTopicAliasInvalid.Code {
			t.Errorf("topic %q: ended with %#x, want 0x94", topic, end.ReasonCode)
		}
	}
}

// A keep-alive for which Mochi's arithmetic gives a deadline of nothing is an ordinary
// one, and MQTT 5 clients are told what holds instead.
func TestLongKeepAlive(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	for _, version := range []byte{3, 4, 5} {
		for _, seconds := range []uint16{43690, 43691, 65535} {
			o := user(t, "alice", fmt.Sprint(version, seconds))
			o.Version, o.Keepalive = version, seconds
			c := mqttest.Dial(t, b.MQTTAddr().String(), o)
			if told := c.Connack.Properties.ServerKeepAlive; version == 5 && seconds > 43690 && told != 43690 {
				t.Errorf("keep-alive %d: told %d", seconds, told)
			}
			c.ExpectNothing()
			c.ExpectNothing()
		}
	}
}

// A silent client is let go after one and a half times its keep-alive, and not before.
func TestKeepAliveEnds(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	o := user(t, "alice", "phone")
	o.Keepalive = 1
	start := time.Now()
	c := mqttest.Dial(t, b.MQTTAddr().String(), o)
	c.ExpectEnd()
	if took := time.Since(start); took < 1400*time.Millisecond {
		t.Errorf("ended after %v, 1.5 s are due", took)
	}
}

// A 3.1 client (MQIsdp) can do what others can.
func TestOldestProtocol(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	o := keep(user(t, "alice", "phone"))
	o.Version = 3
	alice := mqttest.Dial(t, b.MQTTAddr().String(), o)
	alice.Subscribe(2, "user/alice")
	alice.PublishAcked("user/alice", 2, "note")
	if m := alice.ReceiveAcked(); m.Body != "note" || m.FixedHeader.Qos != 2 {
		t.Errorf("got %s qos %d", m.Payload, m.FixedHeader.Qos)
	}
	alice.Disconnect()
	mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "phone")).PublishAcked("user/alice", 1, "missed")
	alice = mqttest.Dial(t, b.MQTTAddr().String(), o)
	if m := alice.ReceiveAcked(); m.Body != "missed" {
		t.Errorf("got %s", m.Payload)
	}
}

// A will on a plain topic goes through the same checks as a publish, keeps its retain flag
// over a restart, and is sent for every end but a DISCONNECT that says 0x00.
func TestPlainWill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	watch := mqttest.Dial(t, b.MQTTAddr().String(), plain(t, "watch"))
	watch.Subscribe(0, "plant/will")
	o := v5(plain(t, "dev"))
	o.Will = &packets.Packet{FixedHeader: packets.FixedHeader{Retain: true}, TopicName: "plant/will", Payload: []byte("gone")}
	for _, reason := range []byte{0x00, 0x04, 0x80} {
		dev := mqttest.Dial(t, b.MQTTAddr().String(), o)
		dev.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: reason})
		dev.ExpectEnd()
		if reason == 0 {
			watch.ExpectNothing()
		} else if m := watch.Next(); string(m.Payload) != "gone" {
			t.Errorf("reason %#x: got %q", reason, m.Payload)
		}
	}
	b = restart(t, b, dir)
	watch = mqttest.Dial(t, b.MQTTAddr().String(), plain(t, "watch"))
	watch.Subscribe(0, "plant/will")
	if m := watch.Next(); string(m.Payload) != "gone" || !m.FixedHeader.Retain {
		t.Errorf("after a restart: %q", m.Payload)
	}
}

// logged collects what is logged at every level.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// No payload and no token reaches the log, whatever the level and whatever is wrong, in no
// form: fmt prints payloads as lists of numbers. What Mochi might log of packets is kept
// out by mochiHandler, which has a test of its own.
func TestNothingSecretIsLogged(t *testing.T) {
	t.Parallel()
	var out logged
	b := mustStart(t, t.TempDir(), func(c *broker.Config) {
		c.Logger = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	addr := b.MQTTAddr().String()
	const payload = "xyzzy-plugh"
	token := mustToken(t, authhook.TokenClaims{Subject: "bob", Pub: []string{"plant/#"}, Sub: []string{"plant/#"}})
	// Two that not everything can be passed on to: one is away, the other takes nothing of
	// that length.
	away, narrow := keep(plain(t, "away")), v5(plain(t, "narrow"))
	narrow.Properties.MaximumPacketSize = 30
	for _, o := range []mqttest.Options{away, narrow} {
		c := mqttest.Dial(t, addr, o)
		c.Subscribe(1, "plant/#")
		if o.KeepSession {
			c.Disconnect()
		}
	}
	for _, version := range []byte{4, 5} {
		o := mqttest.Options{ClientID: "phone", Token: token, Version: version}
		send := func(pk packets.Packet) {
			c := mqttest.Dial(t, addr, o)
			pk.Payload = []byte(payload)
			c.Send(pk)
			c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
			_, _ = c.Read(mqttest.Timeout)
			c.CloseAbruptly()
		}
		for _, topic := range []string{"user/alice", "group/none", "plant/x", "$SYS/x", "user/+", "else/where", "presence/bob"} {
			for _, qos := range []byte{0, 1, 2} {
				send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos, Retain: true}, PacketID: uint16(qos), TopicName: topic})
			}
		}
		c := mqttest.Dial(t, addr, o)
		c.PublishAcked("$mynah/token", 1, token[:len(token)-3]+payload)
		c.SendBytes([]byte("\x30\x0f\x00\x03a\xff" + payload)) // not UTF-8
		c.ExpectEnd()
		bad := o
		bad.Token = token[:len(token)-3] + payload
		if c, err := mqttest.TryDial(t, addr, bad); err == nil && c.Connack.ReasonCode == 0 {
			t.Error("a forged token was accepted")
		}
		c = mqttest.Dial(t, addr, o)
		c.SendBytes([]byte(strings.Repeat(payload, 20)))
		c.ExpectEnd()
	}
	ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
	defer cancel()
	if err := b.Stop(ctx); err != nil {
		t.Error(err)
	}
	text := out.String()
	if !strings.Contains(text, "connect refused") {
		t.Error("the log has nothing to search in")
	}
	numbers := strings.Trim(fmt.Sprintf("%d", []byte(payload)), "[]")
	for _, secret := range []string{payload, numbers, fmt.Sprintf("%x", payload), token[len(token)-20 : len(token)-3], strings.Split(token, ".")[1]} {
		if i := strings.Index(text, secret); i >= 0 {
			t.Errorf("the log has %q: …%s…", secret, text[max(0, i-200):min(len(text), i+100)])
		}
	}
}

// What a client publishes and what it is sent are two spaces of packet ids: publishing or
// subscribing under the id of a message that it has not acknowledged does not make that
// message acknowledged.
func TestPacketIDsAreTwoSpaces(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := keep(user(t, "alice", "phone"))
	alice := mqttest.Dial(t, addr, o)
	alice.Subscribe(2, "user/alice")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	bob.PublishAcked("user/alice", 1, "one")
	bob.PublishAcked("user/alice", 2, "two")
	one, two := alice.Receive(), alice.Receive()
	for _, id := range []uint16{one.PacketID, two.PacketID} {
		for _, qos := range []byte{1, 2} {
			alice.Send(packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, PacketID: id, TopicName: "user/bob", Payload: []byte("x"),
			})
			ack := alice.Next()
			for ack.FixedHeader.Type == packets.Publish { // her own messages come to her too
				alice.Ack(packets.Puback, ack.PacketID)
				ack = alice.Next()
			}
			if ack.PacketID != id {
				t.Fatalf("acknowledged %d, want %d", ack.PacketID, id)
			}
			if qos == 2 {
				alice.Ack(packets.Pubrel, id)
			}
		}
		alice.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: id,
			Filters: packets.Subscriptions{{Filter: "user/alice/error", Qos: 0}},
		})
		for {
			pk := alice.Next()
			if pk.FixedHeader.Type == packets.Suback {
				if pk.PacketID != id || pk.ReasonCodes[0] != 0 {
					t.Fatalf("SUBACK %d %v", pk.PacketID, pk.ReasonCodes)
				}
				break
			}
		}
	}
	alice.CloseAbruptly()
	alice = mqttest.Dial(t, addr, o)
	for i, want := range []mqttest.Message{one, two} {
		if m := alice.Receive(); m.Seq != want.Seq || m.PacketID != want.PacketID || !m.FixedHeader.Dup {
			t.Errorf("message %d: got seq %d id %d, want %d id %d again", i, m.Seq, m.PacketID, want.Seq, want.PacketID)
		}
	}
}

// The same for topics outside the chat.
func TestPlainPacketIDsAreTwoSpaces(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := keep(plain(t, "dev"))
	dev := mqttest.Dial(t, addr, o)
	dev.Subscribe(1, "plant/in")
	other := mqttest.Dial(t, addr, plain(t, "other"))
	other.PublishAcked("plant/in", 1, "kept")
	in := dev.Next()
	if in.FixedHeader.Type != packets.Publish || in.PacketID == 0 {
		t.Fatalf("got type %d", in.FixedHeader.Type)
	}
	for id := uint16(1); id < 4; id++ { // among them the id of the message
		for _, qos := range []byte{1, 2} {
			dev.Send(packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, PacketID: id, TopicName: "plant/out", Payload: []byte("x"),
			})
			if ack := dev.Next(); ack.PacketID != id || ack.FixedHeader.Type != packets.Puback-1+qos {
				t.Fatalf("got type %d id %d, want the acknowledgement of %d", ack.FixedHeader.Type, ack.PacketID, id)
			}
			if qos == 2 {
				dev.Ack(packets.Pubrel, id)
				if comp := dev.Next(); comp.FixedHeader.Type != packets.Pubcomp || comp.PacketID != id {
					t.Fatalf("got type %d id %d, want PUBCOMP %d", comp.FixedHeader.Type, comp.PacketID, id)
				}
			}
		}
		dev.Ack(packets.Pubrel, 100+id) // of an exchange that the broker knows nothing of
		dev.Expect(packets.Pubcomp)
	}
	dev.CloseAbruptly()
	dev = mqttest.Dial(t, addr, o)
	if m := dev.Next(); string(m.Payload) != "kept" || m.PacketID != in.PacketID || !m.FixedHeader.Dup {
		t.Errorf("got %q id %d dup %v: the unacknowledged message is lost", m.Payload, m.PacketID, m.FixedHeader.Dup)
	}
}

// A sleeping subscriber misses more than Mochi would keep, and gets it all.
func TestNothingIsDroppedBeyondMochisQueue(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), func(c *broker.Config) { c.Log.NoSync = true })
	addr := b.MQTTAddr().String()
	o := keep(user(t, "alice", "phone"))
	alice := mqttest.Dial(t, addr, o)
	alice.Subscribe(1, "user/alice")
	const n = 9000
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	for i := 0; i < n; i += 500 { // while alice stalls, and then while she is away
		for range 500 {
			bob.Publish("user/alice", 1, "x")
		}
		for range 500 {
			bob.Expect(packets.Puback)
		}
		if i == n/2 {
			alice.CloseAbruptly()
		}
	}
	alice = mqttest.Dial(t, addr, o)
	var prev uint64
	for i := range n {
		m := alice.ReceiveAcked()
		if m.Prev != prev {
			t.Fatalf("message %d has prev %d, want %d", i, m.Prev, prev)
		}
		prev = m.Seq
	}
	alice.ExpectNothing()
}

// A publisher that is gone before its acknowledgement has published all the same.
func TestPublisherThatIsGone(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")
	for i := range 20 {
		bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
		bob.Publish("user/alice", 1, fmt.Sprint(i))
		bob.Disconnect()
		if m := alice.ReceiveAcked(); m.Body != fmt.Sprint(i) {
			t.Fatalf("got %v, want %d", m.Body, i)
		}
	}
}

// Messages that were sent over more than a second come again in their order.
func TestResendOrder(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := keep(user(t, "alice", "phone"))
	alice := mqttest.Dial(t, addr, o)
	alice.Subscribe(1, "user/alice")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	const n = 100
	tick := time.NewTicker(12 * time.Millisecond)
	defer tick.Stop()
	for i := range n {
		<-tick.C
		bob.PublishAcked("user/alice", 1, fmt.Sprint(i))
		alice.Receive()
	}
	alice.CloseAbruptly()
	alice = mqttest.Dial(t, addr, o)
	for i := range n {
		if m := alice.ReceiveAcked(); m.Body != fmt.Sprint(i) || !m.FixedHeader.Dup {
			t.Fatalf("got %v dup %v, want %d again", m.Body, m.FixedHeader.Dup, i)
		}
	}
}

// A plain message that is too large for a client is left out for it; its next connection
// is let in, also if it takes less than the one before.
func TestOversizePlainMessage(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := v5(keep(plain(t, "dev")))
	other := mqttest.Dial(t, addr, plain(t, "other"))
	for _, most := range []uint32{600, 0} {
		o.Properties.MaximumPacketSize = most
		dev := mqttest.Dial(t, addr, o)
		dev.Subscribe(1, "plant/in", "user/dev/error")
		other.PublishAcked("plant/in", 1, strings.Repeat("x", 2000))
		if m := dev.Next(); most > 0 && !strings.Contains(string(m.Payload), "too_large") || most == 0 && len(m.Payload) != 2000 {
			t.Errorf("maximum %d: got %q on %s", most, m.Payload, m.TopicName)
		}
		other.PublishAcked("plant/in", 1, "small")
		if m := dev.Next(); string(m.Payload) != "small" {
			t.Errorf("got %q", m.Payload)
		}
		dev.CloseAbruptly()
		o.Properties.MaximumPacketSize = 600
		dev = mqttest.Dial(t, addr, o)
		var got []string
		want := []string{"plant/in small"}
		if most == 0 {
			want = append(want, "user/dev/error "+"{\"code\":\"too_large\"")
		}
		for range want {
			m := dev.Next()
			got = append(got, fmt.Sprintf("%s %.19s", m.TopicName, m.Payload))
			if m.PacketID > 0 {
				dev.Ack(packets.Puback, m.PacketID)
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("after the reconnect: %q, want %q", got, want)
		}
		dev.ExpectNothing()
		dev.Disconnect()
	}
}

// Many reconnects of one client at once: one of them has the session in the end, and
// nothing is lost meanwhile.
func TestRacingReconnects(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := keep(user(t, "alice", "phone"))
	first := mqttest.Dial(t, addr, o)
	first.Subscribe(1, "user/alice")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	const n = 100
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			bob.PublishAcked("user/alice", 1, fmt.Sprint(i))
		}
	})
	for range 4 {
		wg.Go(func() {
			for range 5 {
				if c, err := mqttest.TryDial(t, addr, o); err == nil && !c.Connack.SessionPresent {
					t.Error("a connection found no session")
				}
			}
		})
	}
	wg.Wait()
	last := mqttest.Dial(t, addr, o)
	for i := range n { // nobody has acknowledged anything
		if m := last.ReceiveAcked(); m.Body != fmt.Sprint(i) {
			t.Fatalf("got %v, want %d", m.Body, i)
		}
	}
	last.ExpectNothing()
}

// Receive Maximum holds for plain topics and the chat together, what does not fit is sent
// when there is room, and a client that has one does not stop those who publish to it.
// Mochi takes its inflight lock for reading twice, which deadlocks with a writer between,
// and does not give the quota back; a message waited for ever.
func TestReceiveMaximumOfPlainTopics(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := v5(plain(t, "dev"))
	o.Properties.ReceiveMaximum = 3
	dev := mqttest.Dial(t, addr, o)
	dev.Subscribe(1, "plant/in", "user/dev")
	const publishers, n = 4, 16
	var wg sync.WaitGroup
	for i := range publishers {
		wg.Go(func() {
			c := mqttest.Dial(t, addr, plain(t, fmt.Sprint("p", i)))
			for range n / 2 {
				c.PublishAcked("plant/in", 1, "x")
				c.PublishAcked("user/dev", 1, "x")
			}
		})
	}
	open := map[uint16]bool{}
	for range publishers * n {
		pk := dev.Next()
		if pk.FixedHeader.Type != packets.Publish || open[pk.PacketID] {
			t.Fatalf("got type %d id %d", pk.FixedHeader.Type, pk.PacketID)
		}
		if open[pk.PacketID] = true; len(open) == 3 {
			dev.ExpectNothing()
			for id := range open {
				dev.Ack(packets.Puback, id)
			}
			clear(open)
		}
	}
	wg.Wait()
}

// Of connections of one client that race, one is left: the loser does not end the winner.
func TestRacingReconnectsLeaveOne(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := keep(user(t, "alice", "phone"))
	for round := range 40 {
		clients := make([]*mqttest.Client, 3)
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() { clients[i], _ = mqttest.TryDial(t, addr, o) })
		}
		wg.Wait()
		alive := 0
		for _, c := range clients {
			if c == nil || c.Connack.ReasonCode != 0 {
				continue
			}
			c.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
			if pk, err := c.Read(mqttest.Timeout); err == nil && pk.FixedHeader.Type == packets.Pingresp {
				alive++
			}
		}
		if alive != 1 {
			t.Fatalf("round %d: %d of 3 connections are left", round, alive)
		}
	}
}

// An expired session is gone from Mochi too: who comes back under its id gets nothing that
// it did not subscribe to.
func TestExpiredSessionIsUnsubscribed(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	b := mustStart(t, t.TempDir(), func(c *broker.Config) { c.Registry = reg })
	addr := b.MQTTAddr().String()
	o := v5(keep(plain(t, "dev")))
	o.Properties.SessionExpiryInterval = 1
	dev := mqttest.Dial(t, addr, o)
	dev.Subscribe(1, "plant/in", "user/dev")
	dev.CloseAbruptly()
	other := mqttest.Dial(t, addr, plain(t, "other"))
	other.PublishAcked("plant/in", 1, "meanwhile")
	waitfor.MustHold(t, "the other's session is the only one", func() bool { return metric(t, reg, "mynah_sessions") == 1 })
	dev = mqttest.Dial(t, addr, o)
	if dev.Connack.SessionPresent {
		t.Error("the expired session is present")
	}
	dev.Subscribe(1, "plant/new")
	other.PublishAcked("plant/in", 1, "later")
	other.PublishAcked("user/dev", 1, "later")
	other.PublishAcked("plant/new", 1, "mine")
	if m := dev.Next(); m.TopicName != "plant/new" {
		t.Errorf("got type %d on %q", m.FixedHeader.Type, m.TopicName)
	}
}

// Retained messages stay until they are replaced. Mochi's default is a day.
func TestRetainedOutlivesADay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	retain := func(b *broker.Broker, topic string, expiry uint32) {
		c := mqttest.Dial(t, b.MQTTAddr().String(), v5(plain(t, "dev")))
		c.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1, Retain: true}, PacketID: 1, TopicName: topic, Payload: []byte("x"),
			Properties: packets.Properties{MessageExpiryInterval: expiry},
		})
		c.Expect(packets.Puback)
		c.Disconnect()
	}
	retain(b, "plant/old", 0)
	retain(b, "plant/short", 3)
	retain(b, "plant/always", 0)
	ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
	defer cancel()
	if err := b.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	age(t, dir, "plant/old", 3*24*time.Hour)
	b = mustStart(t, dir, nil)
	there := func(topic string) bool {
		c := mqttest.Dial(t, b.MQTTAddr().String(), plain(t, "reader"))
		defer c.Disconnect()
		c.Subscribe(0, topic, "plant/always")
		return c.Next().TopicName == topic
	}
	// When the one that expires is gone, Mochi has looked at the other as well.
	waitfor.MustHold(t, "a retained message with an expiry of 3 s has expired after a restart", func() bool { return !there("plant/short") })
	if !there("plant/old") {
		t.Error("a retained message is gone after three days")
	}
}

// age makes a stored retained message older.
func age(t *testing.T, dir, topic string, by time.Duration) {
	t.Helper()
	l, err := msglog.Open(dir+"/log", msglog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var stored map[string]any
	if err := l.State().Scan("retained/"+topic, func(_ string, v []byte) bool {
		return json.Unmarshal(v, &stored) != nil
	}); err != nil || stored == nil {
		t.Fatalf("no stored message %v (%v)", stored, err)
	}
	created, _ := stored["created"].(float64)
	stored["created"] = int64(created) - int64(by/time.Second)
	v, err := json.Marshal(stored)
	if err == nil {
		err = l.State().Apply([]state.Op{{Key: "retained/" + topic, Value: v}}, true)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A stop with many connections, some of them not reading, ends in time, and MQTT 5 clients
// are told.
func TestStopWithManyConnections(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	const n = 1500
	o := v5(user(t, "alice", ""))
	clients := make([]*mqttest.Client, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < n; i = next.Add(1) - 1 {
				o := o
				o.ClientID = fmt.Sprint("c", i)
				clients[i], _ = mqttest.TryDial(t, addr, o)
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
	defer cancel()
	if err := b.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if clients[i] == nil {
			t.Fatal("a connection was not let in")
		}
		if end := clients[i].ExpectEnd(); end.ReasonCode != packets.ErrServerShuttingDown.Code {
			t.Errorf("client %d ended with %#x, want 0x8b", i, end.ReasonCode)
		}
	}
}
