package archiver_test

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"

	"mynah/chat"
	"mynah/internal/mqttwire"
)

// fakeBroker speaks as much MQTT 3.1.1 as an archiver needs and remembers what it
// was told. Like a real broker it delivers a session's unacknowledged messages
// again, with DUP and in order, when the client comes back; it gives them new
// packet ids, as a broker may whose session is a cursor in a log.
type fakeBroker struct {
	tb       testing.TB
	listener net.Listener
	window   int              // unacknowledged messages at most
	refuse   bool             // answer SUBSCRIBE with a refusal
	onAck    func(seq uint64) // called for every PUBACK that counts, in order

	mu       sync.Mutex
	changed  *sync.Cond
	closed   bool
	log      []delivery
	sessions map[string]*fakeSession
	tail     uint64 // told on $SYS/mynah/log/last, 0 for not
	serving  sync.WaitGroup
}

type delivery struct {
	seq     uint64
	topic   string
	payload []byte
}

type fakeSession struct {
	conn        net.Conn
	subscribed  bool
	acked       int // of the log
	sent        int // of the log
	inflight    []uint16
	nextID      uint16
	acks        []uint64 // seqs, in the order of the acknowledgements
	pings       int
	disconnects int
	connects    []*mqttwire.Connect
}

func newFakeBroker(tb testing.TB) *fakeBroker {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	b := &fakeBroker{tb: tb, listener: listener, window: 1000, sessions: map[string]*fakeSession{}}
	b.changed = sync.NewCond(&b.mu)
	b.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			b.serving.Go(func() { b.serve(conn) })
		}
	})
	tb.Cleanup(func() {
		_ = listener.Close()
		b.mu.Lock()
		b.closed = true
		for _, s := range b.sessions {
			if s.conn != nil {
				_ = s.conn.Close()
			}
		}
		b.changed.Broadcast()
		b.mu.Unlock()
		b.serving.Wait()
	})
	return b
}

func (b *fakeBroker) url() string { return "tcp://" + b.listener.Addr().String() }

// publish appends to the log of the broker.
func (b *fakeBroker) publish(all ...delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = append(b.log, all...)
	b.changed.Broadcast()
}

// tell publishes the tail of the log.
func (b *fakeBroker) tell(seq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tail = seq
	b.changed.Broadcast()
}

// cut ends the client's connection without a word.
func (b *fakeBroker) cut(client string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.sessions[client]; s != nil && s.conn != nil {
		_ = s.conn.Close()
	}
}

// session returns a copy of what is known of the client's session.
func (b *fakeBroker) session(client string) fakeSession {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sessions[client]
	if s == nil {
		return fakeSession{}
	}
	c := *s
	c.acks, c.connects = slices.Clone(s.acks), slices.Clone(s.connects)
	return c
}

func (b *fakeBroker) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	first, err := mqttwire.ReadPacket(in, mqttwire.V311)
	if err != nil || first.Type != mqttwire.CONNECT {
		return
	}
	connect := first.Connect
	client := connect.ClientID
	b.mu.Lock()
	s := b.sessions[client]
	if s == nil || connect.Clean {
		s = &fakeSession{}
		b.sessions[client] = s
	}
	if s.conn != nil {
		_ = s.conn.Close() // taken over
	}
	s.conn, s.sent, s.inflight = conn, s.acked, nil
	s.connects = append(s.connects, connect)
	b.mu.Unlock()
	if _, err := conn.Write(encode(mqttwire.Packet{Type: mqttwire.CONNACK})); err != nil {
		return
	}
	replies := make(chan []byte, 100)
	b.serving.Go(func() { b.deliver(conn, s, replies) })
	defer func() {
		b.mu.Lock()
		if s.conn == conn {
			s.conn = nil
		}
		close(replies)
		b.changed.Broadcast()
		b.mu.Unlock()
	}()
	for {
		p, err := mqttwire.ReadPacket(in, mqttwire.V311)
		if err != nil {
			return
		}
		switch p.Type {
		case mqttwire.PINGREQ:
			b.mu.Lock()
			s.pings++
			b.mu.Unlock()
			replies <- encode(mqttwire.Packet{Type: mqttwire.PINGRESP})
		case mqttwire.SUBSCRIBE:
			suback := mqttwire.Packet{Type: mqttwire.SUBACK, ID: p.ID}
			for _, f := range p.Filters {
				code := f.QoS
				if b.refuse {
					code = 0x80
				}
				suback.Codes = append(suback.Codes, code)
			}
			replies <- encode(suback)
			b.mu.Lock()
			s.subscribed = !b.refuse
			b.mu.Unlock()
		case mqttwire.PUBACK:
			b.ack(client, s, conn, p.ID)
		case mqttwire.DISCONNECT:
			b.mu.Lock()
			s.disconnects++
			b.mu.Unlock()
			return
		}
		b.mu.Lock()
		b.changed.Broadcast()
		b.mu.Unlock()
	}
}

// ack takes an acknowledgement. They must come in the order of the deliveries.
func (b *fakeBroker) ack(client string, s *fakeSession, conn net.Conn, id uint16) {
	b.mu.Lock()
	if s.conn != conn {
		b.mu.Unlock()
		return // of a connection that was taken over or cut
	}
	if len(s.inflight) == 0 || s.inflight[0] != id {
		b.tb.Errorf("%s acknowledged packet %d; in flight are %v", client, id, s.inflight[:min(3, len(s.inflight))])
		b.mu.Unlock()
		return
	}
	seq := b.log[s.acked].seq
	s.inflight = s.inflight[1:]
	s.acked++
	s.acks = append(s.acks, seq)
	onAck := b.onAck
	b.mu.Unlock()
	if onAck != nil {
		onAck(seq)
	}
}

// deliver sends what the window allows, in order, and replies.
func (b *fakeBroker) deliver(conn net.Conn, s *fakeSession, replies <-chan []byte) {
	defer func() { _ = conn.Close() }()
	var told uint64
	again := s.sent
	for {
		b.mu.Lock()
		for !b.closed && s.conn == conn && len(replies) == 0 && told == b.tail &&
			(!s.subscribed || s.sent == len(b.log) || len(s.inflight) >= b.window) {
			b.changed.Wait()
		}
		if b.closed || s.conn != conn {
			b.mu.Unlock()
			return
		}
		var out [][]byte
		for len(replies) > 0 {
			out = append(out, <-replies)
		}
		if told != b.tail {
			told = b.tail
			out = append(out, publishPacket("$SYS/mynah/log/last", fmt.Append(nil, told), 0, 0, false))
		}
		for s.subscribed && s.sent < len(b.log) && len(s.inflight) < b.window && len(out) < 100 {
			s.nextID = s.nextID%65535 + 1
			d := b.log[s.sent]
			out = append(out, publishPacket(d.topic, d.payload, 1, s.nextID, s.sent < again))
			s.inflight = append(s.inflight, s.nextID)
			s.sent++
		}
		b.mu.Unlock()
		for _, packet := range out {
			if _, err := conn.Write(packet); err != nil {
				return
			}
		}
	}
}

func publishPacket(topic string, payload []byte, qos byte, id uint16, dup bool) []byte {
	return encode(mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: topic, Payload: payload, QoS: qos, ID: id, Dup: dup})
}

func encode(p mqttwire.Packet) []byte { return p.Append(nil, mqttwire.V311) }

// say renders a message as the broker would deliver it.
func say(seq uint64, from, to, text string) delivery {
	m := chat.Message{
		Seq: seq, From: from, To: to, TS: 1764000000000 + int64(seq), Type: "text",
		Tail: fmt.Appendf(nil, `"type":"text","body":%q}`, text),
	}
	return delivery{seq, to, m.AppendEnvelope(nil, seq-1)}
}

// chatter returns n messages in groups, from seq first.
func chatter(first uint64, n int) []delivery {
	all := make([]delivery, n)
	for i := range all {
		seq := first + uint64(i)
		all[i] = say(seq, fmt.Sprintf("user%d", seq%17), fmt.Sprintf("group/room%d", seq%29), "hello, this is message "+fmt.Sprint(seq))
	}
	return all
}
