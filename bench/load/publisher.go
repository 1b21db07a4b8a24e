package load

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"mynah/internal/mqttwire"
)

// Publisher is a connection that publishes numbered messages, either as fast as
// a window of unacknowledged ones allows or at a rate.
type Publisher struct {
	Number int
	// Sent counts the messages handed to the socket, Acked those that were
	// acknowledged (QoS 1). Disordered counts acknowledgements that came out
	// of the order of their messages.
	Sent, Acked, Disordered uint64
	// AckedAt holds when each message was acknowledged, in nanoseconds since
	// 1970, while it is not nil. It must have room: it does not grow.
	AckedAt []int64

	conn    *conn
	loop    *Loop
	qos     byte
	frames  []frame // one for each topic, used in turn
	window  uint64  // most unacknowledged messages
	limit   uint64  // stop after so many, 0 for never
	running bool
	batch   []byte

	rate  float64 // messages a second, 0 for as fast as the window allows
	began time.Time
	base  uint64 // Sent when the rate was set
}

// frame is an encoded PUBLISH and where in it what changes stands.
type frame struct {
	b    []byte
	id   int // packet id, QoS 1
	mark int // b:<publisher>:<number>:<nanoseconds>:
}

// Publishing is what a publisher does.
type Publishing struct {
	Topics []string // used in turn
	QoS    byte     // 0 or 1
	Size   int      // bytes of the payload, at least 40
	Window int      // most unacknowledged messages (QoS 1)
	// Wrapped publishes the text inside an object like the one that Mynah
	// delivers: for a server that adds nothing but is to move as many bytes.
	Wrapped bool
}

// Publish connects a publisher. It publishes nothing until Burst, Flow or Pace.
func (l *Loop) Publish(d *Dial, number int, p *Publishing) (*Publisher, error) {
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
		pub.frames = append(pub.frames, frame{b: b, id: at - 2, mark: at + inside})
	}
	c.pub = pub
	return pub, nil
}

// Flow publishes at QoS 1 as fast as the window allows until Hold.
func (p *Publisher) Flow() {
	p.running, p.rate, p.limit = true, 0, 0
	p.loop.refill(p)
}

// Burst publishes n more messages, at QoS 1 as fast as the window allows.
func (p *Publisher) Burst(n int) {
	p.running, p.rate, p.limit = true, 0, p.Sent+uint64(n) //nolint:gosec // a positive number
	p.loop.refill(p)
}

// Pace publishes at a rate, in messages a second, until Hold. after shifts the
// first message, so that several publishers do not all publish at once. A
// message carries the time when it was due, not when it was sent: a generator
// or a broker that lags behind does not look fast.
func (p *Publisher) Pace(rate float64, after time.Duration) {
	p.running, p.rate, p.began, p.base = true, rate, time.Now().Add(after), p.Sent
	p.loop.paced = append(p.loop.paced, p)
	p.loop.pace()
}

// Hold publishes no more.
func (p *Publisher) Hold() {
	p.running = false
	for i, q := range p.loop.paced {
		if p == q {
			p.loop.paced = append(p.loop.paced[:i], p.loop.paced[i+1:]...)
			break
		}
	}
}

// Settled reports whether everything sent has been acknowledged (QoS 1) or
// handed to the system (QoS 0).
func (p *Publisher) Settled() bool {
	return len(p.conn.out) == 0 && (p.qos == 0 || p.Acked == p.Sent)
}

func (p *Publisher) acknowledged(id uint16, now int64) {
	if id != packetID(p.Acked) {
		p.Disordered++
	}
	p.Acked++
	if len(p.AckedAt) < cap(p.AckedAt) {
		p.AckedAt = append(p.AckedAt, now)
	}
}

func packetID(n uint64) uint16 { return uint16(n%65535) + 1 } //nolint:gosec // below 65536

// refill fills the window.
func (l *Loop) refill(p *Publisher) {
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

// pace sends what is due and sets the timer to when the next is.
func (l *Loop) pace() {
	now := time.Now()
	var next time.Time
	for _, p := range l.paced {
		if p.conn.state != ready {
			continue
		}
		gap := time.Duration(float64(time.Second) / p.rate)
		due := uint64(0)
		if now.After(p.began) {
			due = uint64(float64(now.Sub(p.began))/float64(time.Second)*p.rate) + 1
		}
		// What the socket has not taken waits there; more would only pile up.
		if done := p.Sent - p.base; due > done && len(p.conn.out) == 0 {
			l.publish(p, min(due-done, 4096), func(n uint64) int64 {
				return p.began.Add(time.Duration(float64(n-p.base) / p.rate * float64(time.Second))).UnixNano()
			})
		}
		at := p.began.Add(time.Duration(float64(p.Sent-p.base) * float64(gap)))
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
			b[f.id], b[f.id+1] = byte(id>>8), byte(id)
		}
		b = b[f.mark:]
		putDigits(b[numAt:numAt+numDigits], number)
		putDigits(b[tsAt:tsAt+tsDigits], uint64(ts)) //nolint:gosec // a time after 1970
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
