// Package client is an MQTT client for the torture, 3.1.1 and 5, over TCP and
// WebSocket, whose state machine is the specification's to the letter (MQTT 5,
// section 4.3 and 4.4; the same in 3.1.1): it keeps what is unacknowledged
// across connections and sends it again in order with the same packet ids and
// DUP; at QoS 2 it hands each packet id to the application once, in both
// directions. So what it reports as acknowledged or received is just that, and
// the ledger that is made of it can be trusted.
//
// Its memory is its disk: it is not itself killed.
package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"mynah/internal/mqttwire"
)

// Config says who a client is and whom it tells what.
type Config struct {
	Name      string // for people
	Subject   string // user name
	ClientID  string
	Token     string // password, "" for none
	Version   byte   // mqttwire.V311 or mqttwire.V5
	WebSocket bool
	Addr      string // host:port
	Filters   []mqttwire.Filter
	Window    int // most publishes in flight

	// The functions are called one at a time and must not call the client.

	// Acknowledged is called when a message was acknowledged by PUBACK or
	// PUBREC without an error.
	Acknowledged func(*Message)
	// Again is called when a message that was sent must be published as a new
	// one: it was refused, or the broker has lost the session.
	Again func(*Message, string)
	// Received is called for each delivery: at QoS 2 not for those that the
	// packet id shows to be a repetition.
	Received func(*Delivery)
	// Subscribed is called with every SUBACK.
	Subscribed func()
	// Odd is called when the broker breaks the protocol or loses the session.
	Odd func(text string)
	// Note is called for what is worth a line in the log.
	Note func(text string)
}

// Message is a message to publish.
type Message struct {
	Key     string
	Topic   string
	Payload []byte
	QoS     byte // 1 or 2
}

// Delivery is a message that came.
type Delivery struct {
	Topic   string
	Payload []byte
	QoS     byte
	Dup     bool
	Conn    int // number of the connection, counted from 1
}

// Client is one MQTT session and whatever connection it has at a time.
type Client struct {
	cfg Config
	rnd *rand.Rand // used by the goroutine of Run only

	mu         sync.Mutex // guards everything below
	conn       transport  // nil while there is none
	online     bool       // CONNACK has come on it
	conns      int
	hasSession bool
	subscribed bool
	wake       chan struct{} // closed to end sleep
	asleep     bool
	outgoing   []*outgoing // in the order of the first sending
	delayed    int         // refused messages that wait to be published again
	received   map[uint16]bool
	nextID     uint16
	window     int
	lastHeard  time.Time
}

// outgoing is a publish whose flow is not finished.
type outgoing struct {
	m        *Message
	id       uint16
	sent     bool // at least once, perhaps in part
	released bool // PUBREC has come: PUBREL is due, not PUBLISH
}

// New returns a client that is not connected. Its timing follows the seed.
func New(cfg *Config, seed uint64) *Client {
	return &Client{
		cfg: *cfg, rnd: rand.New(rand.NewPCG(seed, 7)), //nolint:gosec // repeatable by design
		received: map[uint16]bool{}, window: cfg.Window, wake: make(chan struct{}),
	}
}

// LostSession is what Odd is told when the broker does not know a session any
// more that it had confirmed.
const LostSession = "the broker has lost the session"

// Timings of the client. Keep-alive is what the broker is told; the client asks
// much earlier, and gives a silent connection up.
const (
	dialTimeout  = 4 * time.Second
	writeTimeout = 4 * time.Second
	pingAfter    = 2 * time.Second
	deadAfter    = 7 * time.Second
	keepAlive    = 20
)

// Run connects, again and again, until ctx ends.
func (c *Client) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if !c.waitAwake(ctx) {
			return
		}
		if err := c.session(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Note(err.Error())
		}
		pause := time.NewTimer(time.Duration(30+c.rnd.IntN(200)) * time.Millisecond)
		select {
		case <-ctx.Done():
			pause.Stop()
		case <-pause.C:
		}
	}
}

func (c *Client) waitAwake(ctx context.Context) bool {
	for {
		c.mu.Lock()
		asleep, wake := c.asleep, c.wake
		c.mu.Unlock()
		if !asleep {
			return true
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return false
		}
	}
}

// Sleep ends the connection, with DISCONNECT or without, and stays away until
// Wake.
func (c *Client) Sleep(politely bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asleep {
		return
	}
	c.asleep = true
	if c.conn == nil {
		return
	}
	c.online = false
	if politely {
		_ = c.conn.write(mqttwire.AppendEmpty(nil, mqttwire.DISCONNECT))
	}
	c.conn.close()
}

// Wake connects again after Sleep.
func (c *Client) Wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asleep {
		c.asleep = false
		close(c.wake)
		c.wake = make(chan struct{})
	}
}

// Room reports whether one more message fits into the window.
func (c *Client) Room() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.outgoing)+c.delayed < c.window
}

// Publish publishes a message, now or when there is a connection.
func (c *Client) Publish(m *Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(m)
}

func (c *Client) add(m *Message) {
	o := &outgoing{m: m, id: c.freeID()}
	c.outgoing = append(c.outgoing, o)
	if c.online {
		c.send(o)
	}
}

func (c *Client) freeID() uint16 {
	for {
		if c.nextID++; c.nextID == 0 {
			c.nextID = 1
		}
		if c.find(c.nextID) == nil {
			return c.nextID
		}
	}
}

func (c *Client) find(id uint16) *outgoing {
	for _, o := range c.outgoing {
		if o.id == id {
			return o
		}
	}
	return nil
}

func (c *Client) remove(o *outgoing) {
	for i, x := range c.outgoing {
		if x == o {
			c.outgoing = append(c.outgoing[:i], c.outgoing[i+1:]...)
			return
		}
	}
}

// send writes a publish or, after PUBREC, its PUBREL.
func (c *Client) send(o *outgoing) {
	if o.released {
		c.write(mqttwire.AppendAck(nil, mqttwire.PUBREL, o.id))
		return
	}
	publish := mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: o.m.Topic, Payload: o.m.Payload, QoS: o.m.QoS, ID: o.id, Dup: o.sent}
	c.write(publish.Append(nil, c.cfg.Version))
	o.sent = true
}

// write writes to the connection, and ends it if that fails: the reader notices.
func (c *Client) write(b []byte) {
	if c.conn == nil {
		return
	}
	if err := c.conn.write(b); err != nil {
		c.conn.close()
	}
}

// Idle reports whether nothing that was published waits for an acknowledgement.
func (c *Client) Idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.outgoing)+c.delayed == 0
}

// Connected reports whether there is a connection with its session and its
// subscriptions.
func (c *Client) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.online && (c.subscribed || len(c.cfg.Filters) == 0)
}

// Begun reports whether the client has ever had a session.
func (c *Client) Begun() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hasSession
}

// Quiet reports whether the client is connected, has no flow open in either
// direction, and has heard nothing but answers to its pings for d.
func (c *Client) Quiet(d time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.online && len(c.outgoing)+c.delayed+len(c.received) == 0 && time.Since(c.lastHeard) > d
}

var errSilent = errors.New("the broker is silent")

// session makes one connection and serves it until it ends.
func (c *Client) session(ctx context.Context) error {
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := dial(dctx, &c.cfg)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.close()
	stop := context.AfterFunc(ctx, conn.close)
	defer stop()
	c.mu.Lock()
	c.conns++
	c.conn = conn
	asleep := c.asleep
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.conn, c.online = nil, false
		c.mu.Unlock()
	}()
	if asleep {
		return nil
	}
	connack, err := c.connect(conn)
	if err != nil {
		return err
	}
	c.resume(connack)

	var heard heardAt
	heard.now()
	alive := make(chan struct{})
	defer close(alive)
	go c.watch(conn, &heard, alive)
	for {
		frame, err := conn.read()
		if err != nil {
			if heard.gaveUp() {
				err = errSilent
			}
			return fmt.Errorf("connection: %w", err)
		}
		heard.now()
		p, err := mqttwire.Decode(frame, c.cfg.Version)
		if err != nil {
			c.cfg.Odd(fmt.Sprintf("%v: % x", err, frame[:min(len(frame), 32)]))
			return err
		}
		c.mu.Lock()
		err = c.handle(p)
		c.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (c *Client) connect(conn transport) (*mqttwire.Packet, error) {
	hello := mqttwire.Connect{
		Version: c.cfg.Version, ClientID: c.cfg.ClientID, Username: c.cfg.Subject, Password: c.cfg.Token,
		KeepAlive: keepAlive, Properties: mqttwire.Properties{}.Int(mqttwire.SessionExpiryInterval, 3600),
	}
	timer := time.AfterFunc(dialTimeout, conn.close)
	defer timer.Stop()
	if err := conn.write(hello.Append(nil)); err != nil {
		return nil, fmt.Errorf("CONNECT: %w", err)
	}
	frame, err := conn.read()
	if err != nil {
		return nil, fmt.Errorf("CONNACK: %w", err)
	}
	p, err := mqttwire.Decode(frame, c.cfg.Version)
	if err != nil || p.Type != mqttwire.CONNACK {
		c.cfg.Odd(fmt.Sprintf("instead of CONNACK: % x", frame[:min(len(frame), 32)]))
		return nil, fmt.Errorf("CONNACK: %w", errors.Join(err, mqttwire.ErrMalformed))
	}
	if p.Reason != 0 {
		return nil, fmt.Errorf("CONNECT refused: 0x%02x %s", p.Reason, p.Properties.GetText(mqttwire.ReasonString))
	}
	return p, nil
}

// resume takes up the session, MQTT 5, section 4.4: what is unacknowledged goes
// again, in order. If the broker has no session, ours is gone as well: what was
// not acknowledged is published as new.
func (c *Client) resume(connack *mqttwire.Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastHeard = time.Now()
	if n := connack.Properties.GetInt(mqttwire.ReceiveMaximum); n > 0 {
		c.window = min(c.cfg.Window, int(n))
	}
	if !connack.SessionPresent {
		if c.hasSession {
			c.cfg.Odd(LostSession)
		}
		clear(c.received)
		c.subscribed = false
		open := c.outgoing
		c.outgoing = nil
		for _, o := range open {
			if o.released {
				continue // it was acknowledged
			}
			if o.sent {
				c.cfg.Again(o.m, "session lost")
			}
			c.outgoing = append(c.outgoing, &outgoing{m: o.m, id: o.id})
		}
	}
	c.hasSession, c.online = true, true
	if !c.subscribed && len(c.cfg.Filters) > 0 {
		subscribe := mqttwire.Packet{Type: mqttwire.SUBSCRIBE, ID: c.freeID(), Filters: c.cfg.Filters}
		c.write(subscribe.Append(nil, c.cfg.Version))
	}
	for _, o := range c.outgoing {
		c.send(o)
	}
}

// heardAt is when the broker was last heard.
type heardAt struct {
	mu     sync.Mutex
	at     time.Time
	silent bool
}

func (h *heardAt) now() {
	h.mu.Lock()
	h.at = time.Now()
	h.mu.Unlock()
}

func (h *heardAt) gaveUp() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.silent
}

// watch asks a silent broker whether it is there, and ends the connection if it
// does not answer.
func (c *Client) watch(conn transport, h *heardAt, done <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		h.mu.Lock()
		silence := time.Since(h.at)
		h.silent = silence > deadAfter
		h.mu.Unlock()
		switch {
		case silence > deadAfter:
			conn.close()
			return
		case silence > pingAfter:
			c.mu.Lock()
			c.write(mqttwire.AppendEmpty(nil, mqttwire.PINGREQ))
			c.mu.Unlock()
		}
	}
}
