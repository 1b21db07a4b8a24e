package load

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"mynah/internal/mqttwire"
)

// Publisher is a connection that publishes numbered messages. It publishes at a
// rate, or as fast as its window of unacknowledged messages allows.
type Publisher struct {
	Number int
	// Sent counts the messages given to the socket. Acked counts those that
	// were acknowledged (QoS 1). OutOfOrder counts the acknowledgements that
	// came in another order than their messages.
	Sent, Acked, OutOfOrder uint64
	// AckedAt gets the time of each acknowledgement, in nanoseconds since
	// 1970, unless it is nil. Its capacity must suffice: it does not grow.
	AckedAt []int64

	conn    *conn
	loop    *Loop
	qos     byte
	frames  []frame // one for each topic, used in turn
	window  uint64  // maximum of unacknowledged messages
	limit   uint64  // stop after this number of messages; 0 means never
	running bool
	batch   []byte

	rate       float64 // messages a second, 0 for as fast as the window allows
	began      time.Time
	sentBefore uint64 // Sent when the rate was set
}

// frame is an encoded PUBLISH, with the offsets of the fields that differ from
// message to message.
type frame struct {
	b          []byte
	idOffset   int // packet id, QoS 1
	markOffset int // b:<publisher>:<number>:<nanoseconds>:
}

// PublishSpec says what a publisher publishes.
type PublishSpec struct {
	Topics []string // used in turn
	QoS    byte     // 0 or 1
	Size   int      // bytes of the payload, at least 40
	Window int      // maximum of unacknowledged messages (QoS 1)
	// Wrapped publishes the text inside a JSON object like the one that Mynah
	// delivers. It is for a server that adds nothing, so that it moves as many
	// bytes as Mynah.
	Wrapped bool
}

// DialPublisher connects a publisher. It publishes nothing until PublishMore,
// PublishAtFullSpeed or PublishAtRate.
func (l *Loop) DialPublisher(d *DialSpec, number int, p *PublishSpec) (*Publisher, error) {
	c, err := l.dial(d)
	if err != nil {
		return nil, err
	}
	pub := &Publisher{Number: number, conn: c, loop: l, qos: p.QoS, window: uint64(p.Window)} //nolint:gosec // a small positive number
	text := bytes.Repeat([]byte{'x'}, max(p.Size, markSize))
	copy(text, fmt.Sprintf("b:%0*d:%0*d:%0*d:", pubDigits, number, numDigits, 0, tsDigits, 0))
	for _, topic := range p.Topics {
		payload, inside := text, 0
		if p.Wrapped {
			head := fmt.Sprintf(`{"seq":%d,"prev":%d,"from":%q,"to":%q,"ts":%d,"type":"text","body":"`,
				time.Now().UnixMicro(), time.Now().UnixMicro(), d.Connect.Username, topic, time.Now().UnixMilli())
			inside = len(head)
			payload = slices.Concat([]byte(head), text, []byte(`"}`))
		}
		publish := mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: topic, Payload: payload, QoS: p.QoS, ID: 1}
		b := publish.Append(nil, mqttwire.V311)
		at := len(b) - len(payload)
		pub.frames = append(pub.frames, frame{b: b, idOffset: at - 2, markOffset: at + inside})
	}
	c.pub = pub
	return pub, nil
}

// PublishAtFullSpeed publishes at QoS 1 as fast as the window allows, until
// StopPublishing.
func (p *Publisher) PublishAtFullSpeed() {
	p.running, p.rate, p.limit = true, 0, 0
	p.loop.fillWindow(p)
}

// PublishMore publishes n more messages, at QoS 1 as fast as the window allows.
func (p *Publisher) PublishMore(n int) {
	p.running, p.rate, p.limit = true, 0, p.Sent+uint64(n) //nolint:gosec // a positive number
	p.loop.fillWindow(p)
}

// PublishAtRate publishes at a rate, in messages per second, until StopPublishing.
// after delays the first message, so that several publishers do not all publish at the
// same moment. A message carries the time at which it was due, not the time at which it
// was sent. Otherwise a generator or a broker that lags behind would look fast.
func (p *Publisher) PublishAtRate(rate float64, after time.Duration) {
	p.running, p.rate, p.began, p.sentBefore = true, rate, time.Now().Add(after), p.Sent
	p.loop.atRate = append(p.loop.atRate, p)
	p.loop.publishDue()
}

// StopPublishing ends what PublishAtFullSpeed, PublishMore or PublishAtRate
// began.
func (p *Publisher) StopPublishing() {
	p.running = false
	for i, q := range p.loop.atRate {
		if p == q {
			p.loop.atRate = append(p.loop.atRate[:i], p.loop.atRate[i+1:]...)
			break
		}
	}
}

// AllAcknowledged reports whether every sent message has been acknowledged (QoS 1)
// or given to the operating system (QoS 0).
func (p *Publisher) AllAcknowledged() bool {
	return len(p.conn.out) == 0 && (p.qos == 0 || p.Acked == p.Sent)
}

func (p *Publisher) acknowledged(id uint16, now int64) {
	if id != packetID(p.Acked) {
		p.OutOfOrder++
	}
	p.Acked++
	if len(p.AckedAt) < cap(p.AckedAt) {
		p.AckedAt = append(p.AckedAt, now)
	}
}

func packetID(n uint64) uint16 { return uint16(n%65535) + 1 } //nolint:gosec // below 65536

// fillWindow publishes messages until the window is full.
func (l *Loop) fillWindow(p *Publisher) {
	if !p.running || p.conn.state != ready || len(p.conn.out) > 0 {
		return
	}
	n := p.window - (p.Sent - p.Acked)
	if p.qos == 0 {
		n = p.limit - p.Sent
	} else if p.limit > 0 {
		n = min(n, p.limit-p.Sent)
	}
	if n > 0 {
		l.publish(p, n, func(uint64) int64 { return time.Now().UnixNano() })
	}
}

// publishDue publishes the messages that are due and sets the timer to the
// time of the next one.
func (l *Loop) publishDue() {
	now := time.Now()
	var next time.Time
	for _, p := range l.atRate {
		if p.conn.state != ready {
			continue
		}
		gap := time.Duration(float64(time.Second) / p.rate)
		due := uint64(0)
		if now.After(p.began) {
			due = uint64(float64(now.Sub(p.began))/float64(time.Second)*p.rate) + 1
		}
		// Earlier messages still wait for the socket; more would only wait
		// behind them.
		if done := p.Sent - p.sentBefore; due > done && len(p.conn.out) == 0 {
			l.publish(p, min(due-done, 4096), func(n uint64) int64 {
				return p.began.Add(time.Duration(float64(n-p.sentBefore) / p.rate * float64(time.Second))).UnixNano()
			})
		}
		at := p.began.Add(time.Duration(float64(p.Sent-p.sentBefore) * float64(gap)))
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if next.IsZero() {
		return
	}
	// Not below 200 µs: a fast publisher sends a few at a time.
	wait := max(time.Until(next), 200*time.Microsecond)
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(wait.Nanoseconds())}
	if err := unix.TimerfdSettime(l.timerfd, 0, &spec, nil); err != nil && l.err == nil {
		l.err = fmt.Errorf("timer: %w", err)
	}
}

func (l *Loop) publish(p *Publisher, n uint64, stamp func(n uint64) int64) {
	p.batch = p.batch[:0]
	var ts int64
	for i := range n {
		number := p.Sent + i
		if i == 0 || p.rate > 0 {
			ts = stamp(number)
		}
		f := &p.frames[number%uint64(len(p.frames))]
		at := len(p.batch)
		p.batch = append(p.batch, f.b...)
		b := p.batch[at:]
		if p.qos > 0 {
			id := packetID(number)
			b[f.idOffset], b[f.idOffset+1] = byte(id>>8), byte(id)
		}
		b = b[f.markOffset:]
		putDigits(b[numOffset:numOffset+numDigits], number)
		putDigits(b[tsOffset:tsOffset+tsDigits], uint64(ts)) //nolint:gosec // a time after 1970
	}
	p.Sent += n
	if err := l.send(p.conn, p.batch); err != nil {
		l.fail(p.conn, err)
	}
}

func putDigits(b []byte, n uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
}

// Connected reports whether the publisher's connection is accepted.
func (p *Publisher) Connected() bool { return p.conn.state == ready }
