package client_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"mynah/internal/leak"
	"mynah/internal/mqttwire"
	"mynah/internal/waitfor"
	"mynah/torture/client"
)

func TestMain(m *testing.M) { leak.Main(m) }

// script is a broker whose packets the test decides.
type script struct {
	t    *testing.T
	lis  net.Listener
	conn net.Conn
	r    *bufio.Reader
}

func listen(t *testing.T) *script {
	t.Helper()
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	return &script{t: t, lis: lis}
}

// accept takes the next connection, reads CONNECT and answers it.
func (s *script) accept(sessionPresent byte) {
	s.t.Helper()
	conn, err := s.lis.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	s.conn, s.r = conn, bufio.NewReader(conn)
	if b := s.read(); b[0]>>4 != mqttwire.CONNECT || b[9]&2 != 0 {
		s.t.Fatalf("instead of a CONNECT that keeps the session: % x", b)
	}
	s.send([]byte{mqttwire.CONNACK << 4, 2, sessionPresent, 0})
}

func (s *script) read() []byte {
	s.t.Helper()
	b, err := mqttwire.ReadFrame(s.r)
	if err != nil {
		s.t.Fatalf("read: %v", err)
	}
	return b
}

// expect reads the next packet and compares it.
func (s *script) expect(want []byte) {
	s.t.Helper()
	if got := s.read(); !slices.Equal(got, want) {
		s.t.Fatalf("got % x, want % x", got, want)
	}
}

func (s *script) send(b []byte) {
	s.t.Helper()
	if _, err := s.conn.Write(b); err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) hangUp() {
	s.t.Helper()
	if err := s.conn.Close(); err != nil {
		s.t.Fatal(err)
	}
}

// told records what a client reports.
type told struct {
	mu    sync.Mutex
	lines []string
}

func (r *told) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

// wait waits until exactly these lines have been reported.
func (r *told) wait(t *testing.T, want ...string) {
	t.Helper()
	waitfor.MustSucceed(t, "the client reports", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if !slices.Equal(r.lines, want) {
			return fmt.Errorf("it reported %q, want %q", r.lines, want)
		}
		return nil
	})
}

func start(t *testing.T, s *script, filters ...mqttwire.Filter) (*client.Client, *told) {
	t.Helper()
	r := &told{}
	c := client.New(&client.Config{
		Subject: "a", ClientID: "c", Version: mqttwire.V311, Addr: s.lis.Addr().String(), Window: 8, Filters: filters,
		OnAcknowledged: func(m *client.Message) { r.add("acked %s", m.Key) },
		OnRepublish:    func(m *client.Message, _ string) { r.add("again %s", m.Key) },
		OnReceived:     func(d *client.Delivery) { r.add("got %s at QoS %d", d.Payload, d.QoS) },
		OnViolation:    func(text string) { r.add("odd: %s", text) },
		OnNote:         func(string) {},
	}, 1)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return c, r
}

func publish(key string, qos byte, id uint16, dup bool) []byte {
	p := mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: "t", Payload: []byte(key), QoS: qos, ID: id, Dup: dup}
	return p.Append(nil, mqttwire.V311)
}

func message(key string, qos byte) *client.Message {
	return &client.Message{Key: key, Topic: "t", Payload: []byte(key), QoS: qos}
}

func ack(kind byte, id uint16) []byte { return mqttwire.AppendAck(nil, kind, id) }

// The ledger relies on this client's reports. Guards against a retransmission
// that is not the same packets, in order and with DUP (MQTT 5, 4.4 and 4.6). It
// would hide messages that a broker loses, or look like messages that a broker
// stores twice.
func TestUnacknowledgedGoesAgainInOrder(t *testing.T) {
	t.Parallel()
	s := listen(t)
	c, r := start(t, s)
	s.accept(0)
	c.Publish(message("one", 1))
	s.expect(publish("one", 1, 1, false))
	c.Publish(message("two", 2))
	s.expect(publish("two", 2, 2, false))
	c.Publish(message("three", 1))
	s.expect(publish("three", 1, 3, false))
	c.Publish(message("four", 2))
	s.expect(publish("four", 2, 4, false))
	s.send(ack(mqttwire.PUBREC, 2))
	s.expect(ack(mqttwire.PUBREL, 2))
	s.send(ack(mqttwire.PUBACK, 1))
	r.wait(t, "acked two", "acked one")
	s.hangUp()

	s.accept(1)
	s.expect(ack(mqttwire.PUBREL, 2))
	s.expect(publish("three", 1, 3, true))
	s.expect(publish("four", 2, 4, true))
	s.send(ack(mqttwire.PUBCOMP, 2))
	s.send(ack(mqttwire.PUBACK, 3))
	s.send(ack(mqttwire.PUBREC, 4))
	s.expect(ack(mqttwire.PUBREL, 4))
	s.send(ack(mqttwire.PUBCOMP, 4))
	r.wait(t, "acked two", "acked one", "acked three", "acked four")
	waitfor.MustHold(t, "the client is idle", c.Idle)
}

// A session that the broker has forgotten is reported, and unacknowledged
// messages are published as new ones, without DUP. Acknowledged ones are not.
func TestLostSession(t *testing.T) {
	t.Parallel()
	s := listen(t)
	c, r := start(t, s)
	s.accept(0)
	c.Publish(message("one", 2))
	s.expect(publish("one", 2, 1, false))
	c.Publish(message("two", 1))
	s.expect(publish("two", 1, 2, false))
	s.send(ack(mqttwire.PUBREC, 1))
	s.expect(ack(mqttwire.PUBREL, 1))
	s.hangUp()
	s.accept(0)
	s.expect(publish("two", 1, 2, false))
	r.wait(t, "acked one", "odd: "+client.LostSession, "again two")
}

// At QoS 2 a packet id reaches the application once until PUBREL, over any
// number of connections. At QoS 1 every delivery reaches it.
func TestExactlyOnceAsReceiver(t *testing.T) {
	t.Parallel()
	s := listen(t)
	c, r := start(t, s, mqttwire.Filter{Topic: "t", QoS: 2})
	s.accept(0)
	subscribe := mqttwire.Packet{Type: mqttwire.SUBSCRIBE, ID: 1, Filters: []mqttwire.Filter{{Topic: "t", QoS: 2}}}
	s.expect(subscribe.Append(nil, mqttwire.V311))
	s.send([]byte{mqttwire.SUBACK << 4, 3, 0, 1, 2})
	s.send(publish("one", 2, 7, false))
	s.expect(ack(mqttwire.PUBREC, 7))
	s.hangUp()
	s.accept(1) // it does not subscribe again
	s.send(publish("one", 2, 7, true))
	s.expect(ack(mqttwire.PUBREC, 7))
	s.send(ack(mqttwire.PUBREL, 7))
	s.expect(ack(mqttwire.PUBCOMP, 7))
	s.send(publish("two", 2, 7, false)) // the packet id is free again
	s.expect(ack(mqttwire.PUBREC, 7))
	s.send(publish("three", 1, 8, false))
	s.expect(ack(mqttwire.PUBACK, 8))
	s.send(publish("three", 1, 8, true))
	s.expect(ack(mqttwire.PUBACK, 8))
	r.wait(t, "got one at QoS 2", "got two at QoS 2", "got three at QoS 1", "got three at QoS 1")
	if !c.Connected() {
		t.Error("not connected")
	}
}

// An acknowledgement of a packet that was not sent is an error of the broker.
// Guards against taking it for the acknowledgement of another message.
func TestStrayAcknowledgements(t *testing.T) {
	t.Parallel()
	s := listen(t)
	c, r := start(t, s)
	s.accept(0)
	c.Publish(message("one", 2))
	s.expect(publish("one", 2, 1, false))
	s.send(ack(mqttwire.PUBACK, 1))
	s.send(ack(mqttwire.PUBACK, 9))
	s.send(ack(mqttwire.PUBCOMP, 1))
	r.wait(t,
		"odd: PUBACK for packet id 1, which is not in use with QoS 1",
		"odd: PUBACK for packet id 9, which is not in use with QoS 1",
		"odd: PUBCOMP for packet id 1 before PUBREC")
	if c.Idle() {
		t.Error("the message counts as acknowledged")
	}
}

// The client has no connection between Sleep and Wake. Messages that are
// published meanwhile are sent afterwards.
func TestSleep(t *testing.T) {
	t.Parallel()
	s := listen(t)
	c, _ := start(t, s)
	s.accept(0)
	waitfor.MustHold(t, "the client is connected", c.Connected)
	c.Sleep(true)
	s.expect(mqttwire.AppendEmpty(nil, mqttwire.DISCONNECT))
	if _, err := s.r.ReadByte(); err != io.EOF {
		t.Fatalf("after DISCONNECT: %v", err)
	}
	c.Publish(message("one", 1))
	c.Wake()
	s.accept(1)
	s.expect(publish("one", 1, 1, false))
}
