package load

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"

	"mynah/internal/mqttwire"
)

// Subscriber is a connection that receives the messages of one or more
// publishers, each to one topic, and acknowledges them.
type Subscriber struct {
	Name string
	// Seen counts the deliveries that were not repetitions.
	Seen uint64
	// Lost counts messages that a later one overtook and that have not come;
	// Repeated those that came again; Disordered those that came after a
	// later one; Broken deliveries whose prev is not the seq before; Foreign
	// those that no publisher of ours sent.
	Lost, Repeated, Disordered, Broken, Foreign uint64
	// Latencies holds the time from publish to delivery of each message, in
	// nanoseconds, while it is not nil. It must have room: it does not grow.
	Latencies []int64

	conn    *conn
	size    int // bytes of the payload as published
	next    map[int]*stream
	last    *stream // the one of the message before
	lastPub int
	prev    bool // check prev
	lastSeq uint64
}

// stream is what a subscriber knows about one publisher's messages.
type stream struct {
	next uint64          // the number of the message that must come now
	gaps map[uint64]bool // those before next that have not come
}

// Subscribe connects a subscriber. size is that of the published payloads.
// checkPrev asks that prev of each delivery be the seq of the one before, which
// is true of a subscriber of one topic of Mynah.
func (l *Loop) Subscribe(d *Dial, size int, checkPrev bool) (*Subscriber, error) {
	c, err := l.dial(d)
	if err != nil {
		return nil, err
	}
	c.sub = &Subscriber{Name: d.Connect.ClientID, conn: c, size: size, next: map[int]*stream{}, lastPub: -1, prev: checkPrev}
	return c.sub, nil
}

// Next returns the number of the publisher's message that must come next, which
// is how many have come if none was lost.
func (s *Subscriber) Next(publisher int) uint64 {
	if st := s.next[publisher]; st != nil {
		return st.next
	}
	return 0
}

// StopReading leaves what comes in the socket until Read is called.
func (l *Loop) StopReading(s *Subscriber) error {
	s.conn.deaf = true
	return l.arm(s.conn, s.conn.armed)
}

// Read reads again after StopReading.
func (l *Loop) Read(s *Subscriber) error {
	s.conn.deaf = false
	return l.arm(s.conn, s.conn.armed)
}

// Leave closes the subscriber's connection. With a persistent session the
// broker keeps what it misses.
func (l *Loop) Leave(s *Subscriber) {
	_, _ = unix.Write(s.conn.fd, mqttwire.AppendEmpty(nil, mqttwire.DISCONNECT)) // best effort: the connection ends anyway
	l.drop(s.conn)
}

// deliver checks a PUBLISH and returns the packet id to acknowledge, 0 for none.
func (s *Subscriber) deliver(frame []byte, header int, now int64) (id uint16) {
	if len(frame) < header+4 {
		s.Foreign++
		return 0
	}
	at := header + 2 + int(frame[header])<<8 + int(frame[header+1])
	if frame[0]&0x06 != 0 {
		if at+2 > len(frame) {
			s.Foreign++
			return 0
		}
		id = uint16(frame[at])<<8 | uint16(frame[at+1])
		at += 2
	}
	if at > len(frame) {
		s.Foreign++
		return id
	}
	payload := frame[at:]
	pub, n, sent, ok := s.find(payload)
	if !ok {
		s.Foreign++
		return id
	}
	st := s.last
	if pub != s.lastPub {
		if st = s.next[pub]; st == nil {
			st = &stream{}
			s.next[pub] = st
		}
		s.last, s.lastPub = st, pub
	}
	switch {
	case n == st.next:
		st.next++
		s.Seen++
	case n > st.next:
		if st.gaps == nil {
			st.gaps = map[uint64]bool{}
		}
		for i := st.next; i < n; i++ {
			st.gaps[i] = true
		}
		s.Lost += n - st.next
		st.next = n + 1
		s.Seen++
	case st.gaps[n]:
		delete(st.gaps, n)
		s.Lost--
		s.Disordered++
		s.Seen++
	default:
		s.Repeated++
		return id
	}
	if s.prev {
		s.checkPrev(payload)
	}
	if len(s.Latencies) < cap(s.Latencies) {
		s.Latencies = append(s.Latencies, now-sent)
	}
	return id
}

// The payload as published: b:<publisher>:<number>:<nanoseconds>: and filling.
const (
	pubDigits = 3
	numDigits = 9
	tsDigits  = 19
	numAt     = 2 + pubDigits + 1
	tsAt      = numAt + numDigits + 1
	markSize  = tsAt + tsDigits + 1
)

// find finds the published text in a delivered payload: it is the whole payload
// with Mosquitto, and with Mynah the body, which stands at the end of the JSON.
func (s *Subscriber) find(payload []byte) (pub int, n uint64, sent int64, ok bool) {
	at := len(payload) - s.size
	if at > 2 {
		at -= 2 // "}
	}
	if at < 0 || payload[at] != 'b' || payload[at+1] != ':' {
		if at = bytes.Index(payload, []byte(`"b:`)) + 1; at == 0 {
			return 0, 0, 0, false
		}
	}
	if at+markSize > len(payload) {
		return 0, 0, 0, false
	}
	b := payload[at:]
	return int(digits(b[2 : 2+pubDigits])), digits(b[numAt : numAt+numDigits]), int64(digits(b[tsAt : tsAt+tsDigits])), true //nolint:gosec // nineteen digits of a time
}

func digits(b []byte) (n uint64) {
	for _, c := range b {
		n = n*10 + uint64(c-'0')
	}
	return n
}

// checkPrev looks at the beginning of Mynah's envelope: {"seq":1,"prev":0,
func (s *Subscriber) checkPrev(payload []byte) {
	const first, second = `{"seq":`, `,"prev":`
	if len(payload) < len(first) {
		s.Broken++
		return
	}
	seq, rest := number(payload[len(first):])
	if len(rest) < len(second) {
		s.Broken++
		return
	}
	prev, _ := number(rest[len(second):])
	if s.lastSeq != 0 && prev != s.lastSeq || seq <= s.lastSeq {
		s.Broken++
	}
	s.lastSeq = seq
}

func number(b []byte) (n uint64, rest []byte) {
	for i, c := range b {
		if c < '0' || c > '9' {
			return n, b[i:]
		}
		n = n*10 + uint64(c-'0')
	}
	return n, nil
}

// Check returns an error if the deliveries were not what they must be. At QoS 0
// loss is allowed, and only that.
func (s *Subscriber) Check(lossAllowed bool) error {
	if s.Repeated+s.Disordered+s.Broken+s.Foreign > 0 || s.Lost > 0 && !lossAllowed {
		return fmt.Errorf("subscriber %s: of %d messages %d lost, %d repeated, %d out of order, %d with a broken prev, %d foreign",
			s.Name, s.Seen, s.Lost, s.Repeated, s.Disordered, s.Broken, s.Foreign)
	}
	return nil
}
