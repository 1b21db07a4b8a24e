package load

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"

	"mynah/internal/mqttwire"
)

// Subscriber is a connection that receives and acknowledges the messages of
// one or more publishers. Each publisher uses one topic.
type Subscriber struct {
	Name string
	// Seen counts the deliveries that were not repetitions.
	Seen uint64
	// Lost counts messages that are missing although a later one has come.
	// Repeated counts messages that came more than once. OutOfOrder counts
	// messages that came after a later one. BrokenPrev counts deliveries whose
	// prev is not the seq before. Unknown counts messages that no publisher of
	// this run sent.
	Lost, Repeated, OutOfOrder, BrokenPrev, Unknown uint64
	// Latencies gets the time from publish to delivery of each message, in
	// nanoseconds, unless it is nil. Its capacity must suffice: it does not
	// grow.
	Latencies []int64

	conn       *conn
	size       int // bytes of the payload as published
	streams    map[int]*stream
	lastStream *stream // the stream of the message before
	lastPub    int
	checksPrev bool // check prev
	lastSeq    uint64
}

// stream is the state of one publisher's messages at a subscriber.
type stream struct {
	next    uint64          // the number of the message that must come now
	missing map[uint64]bool // those before next that have not come
}

// DialSubscriber connects a subscriber. size is the size of the published
// payloads. With checkPrev, prev of each delivery must be the seq of the one
// before. That holds for a subscriber of one topic of Mynah.
func (l *Loop) DialSubscriber(d *DialSpec, size int, checkPrev bool) (*Subscriber, error) {
	c, err := l.dial(d)
	if err != nil {
		return nil, err
	}
	c.sub = &Subscriber{Name: d.Connect.ClientID, conn: c, size: size, streams: map[int]*stream{}, lastPub: -1, checksPrev: checkPrev}
	return c.sub, nil
}

// NextNumber returns the number of the publisher's message that must come next, which
// is how many have come if none was lost.
func (s *Subscriber) NextNumber(publisher int) uint64 {
	if st := s.streams[publisher]; st != nil {
		return st.next
	}
	return 0
}

// StopReading leaves the bytes that come in the socket, until ResumeReading is
// called.
func (l *Loop) StopReading(s *Subscriber) error {
	s.conn.readPaused = true
	return l.watchWritable(s.conn, s.conn.wantsWritable)
}

// ResumeReading reads again after StopReading.
func (l *Loop) ResumeReading(s *Subscriber) error {
	s.conn.readPaused = false
	return l.watchWritable(s.conn, s.conn.wantsWritable)
}

// CloseSubscriber closes the subscriber's connection. With a persistent session the
// broker keeps what it misses.
func (l *Loop) CloseSubscriber(s *Subscriber) {
	_, _ = unix.Write(s.conn.fd, mqttwire.AppendEmpty(nil, mqttwire.DISCONNECT)) // best effort: the connection ends anyway
	l.closeConn(s.conn)
}

// deliver checks a PUBLISH and returns the packet id to acknowledge, 0 for none.
func (s *Subscriber) deliver(frame []byte, header int, now int64) (id uint16) {
	if len(frame) < header+4 {
		s.Unknown++
		return 0
	}
	at := header + 2 + int(frame[header])<<8 + int(frame[header+1])
	if frame[0]&0x06 != 0 {
		if at+2 > len(frame) {
			s.Unknown++
			return 0
		}
		id = uint16(frame[at])<<8 | uint16(frame[at+1])
		at += 2
	}
	if at > len(frame) {
		s.Unknown++
		return id
	}
	payload := frame[at:]
	pub, n, sent, ok := s.findMark(payload)
	if !ok {
		s.Unknown++
		return id
	}
	st := s.lastStream
	if pub != s.lastPub {
		if st = s.streams[pub]; st == nil {
			st = &stream{}
			s.streams[pub] = st
		}
		s.lastStream, s.lastPub = st, pub
	}
	switch {
	case n == st.next:
		st.next++
		s.Seen++
	case n > st.next:
		if st.missing == nil {
			st.missing = map[uint64]bool{}
		}
		for i := st.next; i < n; i++ {
			st.missing[i] = true
		}
		s.Lost += n - st.next
		st.next = n + 1
		s.Seen++
	case st.missing[n]:
		delete(st.missing, n)
		s.Lost--
		s.OutOfOrder++
		s.Seen++
	default:
		s.Repeated++
		return id
	}
	if s.checksPrev {
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
	numOffset = 2 + pubDigits + 1
	tsOffset  = numOffset + numDigits + 1
	markSize  = tsOffset + tsDigits + 1
)

// findMark finds the published text in a delivered payload. With Mosquitto it is
// the whole payload. With Mynah it is the body, which is at the end of the JSON.
func (s *Subscriber) findMark(payload []byte) (pub int, n uint64, sent int64, ok bool) {
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
	return int(digits(b[2 : 2+pubDigits])), digits(b[numOffset : numOffset+numDigits]), int64(digits(b[tsOffset : tsOffset+tsDigits])), true //nolint:gosec // nineteen digits of a time
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
		s.BrokenPrev++
		return
	}
	seq, rest := number(payload[len(first):])
	if len(rest) < len(second) {
		s.BrokenPrev++
		return
	}
	prev, _ := number(rest[len(second):])
	if s.lastSeq != 0 && prev != s.lastSeq || seq <= s.lastSeq {
		s.BrokenPrev++
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
	if s.Repeated+s.OutOfOrder+s.BrokenPrev+s.Unknown > 0 || s.Lost > 0 && !lossAllowed {
		return fmt.Errorf("subscriber %s: of %d messages %d lost, %d repeated, %d out of order, %d with a broken prev, %d foreign",
			s.Name, s.Seen, s.Lost, s.Repeated, s.OutOfOrder, s.BrokenPrev, s.Unknown)
	}
	return nil
}
