// Package client is the MQTT client of torture, for 3.1.1 and 5, over TCP and
// WebSocket. It follows MQTT 5, sections 4.3 and 4.4, exactly (3.1.1 has the
// same rules). It keeps unacknowledged packets across connections. It sends
// them again in order, with the same packet ids and DUP. At QoS 2 it handles
// each packet id once, in both directions. So its reports of acknowledgements
// and deliveries are exact, and the ledger can rely on them.
//
// Its session state is in memory only, since the client itself is never
// killed.
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

// Config is a client's identity, its connection and its callbacks.
type Config struct {
	Name      string // for people
	Subject   string // user name
	ClientID  string
	Token     string // password, "" for none
	Version   byte   // mqttwire.V311 or mqttwire.V5
	WebSocket bool
	Addr      string // host:port
	Filters   []mqttwire.Filter
	Window    int // maximum of publishes in flight

	// The functions are called one at a time and must not call the client.

	// OnAcknowledged is called when PUBACK or PUBREC has acknowledged a
	// message without an error.
	OnAcknowledged func(*Message)
	// OnRepublish is called when a message is published again as a new one, because
	// it was refused or because the broker has lost the session. The text is the
	// reason.
	OnRepublish func(*Message, string)
	// OnReceived is called for each delivery. At QoS 2 it is not called for
	// a repetition of a packet id.
	OnReceived func(*Delivery)
	// OnSubscribed is called with every SUBACK.
	OnSubscribed func()
	// OnViolation is called when the broker breaks the protocol or loses the session.
	OnViolation func(text string)
	// OnNote is called for events that belong in the log.
	OnNote func(text string)
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

// Client is one MQTT session and its current connection.
type Client struct {
	cfg Config
	rnd *rand.Rand // used by the goroutine of Run only

	mu         sync.Mutex // guards everything below
	conn       transport  // nil while there is none
	online     bool       // CONNACK has come on it
	conns      int
	hasSession bool
	subscribed bool
	wake       chan struct{} // closed by Wake
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
	message   *Message
	id        uint16
	sent      bool // at least once, perhaps only a part
	gotPubrec bool // PUBREC has come: PUBREL is due, not PUBLISH
}

// New returns a client that is not connected. Its timing follows the seed.
func New(cfg *Config, seed uint64) *Client {
	return &Client{
		cfg: *cfg, rnd: rand.New(rand.NewPCG(seed, 7)), //nolint:gosec // repeatable by design
		received: map[uint16]bool{}, window: cfg.Window, wake: make(chan struct{}),
	}
}

// LostSession is the text of OnViolation when the broker does not know a
// session that it had confirmed.
const LostSession = "the broker has lost the session"

// Times of the client. keepAlive is the value in CONNECT, in seconds. The
// client pings much earlier, after pingSilence, and ends the connection after
// deadSilence.
const (
	dialTimeout  = 4 * time.Second
	writeTimeout = 4 * time.Second
	pingSilence  = 2 * time.Second
	deadSilence  = 7 * time.Second
	keepAlive    = 20
)

// Run connects, again and again, until ctx ends.
func (c *Client) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if !c.waitAwake(ctx) {
			return
		}
		if err := c.runConnection(ctx); err != nil && ctx.Err() == nil {
			c.cfg.OnNote(err.Error())
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

// Sleep ends the connection, with or without DISCONNECT. The client does not
// reconnect until Wake.
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

// HasRoom reports whether one more message fits into the window.
func (c *Client) HasRoom() bool {
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
	o := &outgoing{message: m, id: c.freeID()}
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
	if o.gotPubrec {
		c.write(mqttwire.AppendAck(nil, mqttwire.PUBREL, o.id))
		return
	}
	publish := mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: o.message.Topic, Payload: o.message.Payload, QoS: o.message.QoS, ID: o.id, Dup: o.sent}
	c.write(publish.Append(nil, c.cfg.Version))
	o.sent = true
}

// write writes to the connection, and closes it if that fails. The reader then
// sees the end.
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

// HasHadSession reports whether the broker has ever confirmed the client's
// session.
func (c *Client) HasHadSession() bool {
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

// runConnection connects once and serves the connection until it ends.
func (c *Client) runConnection(ctx context.Context) error {
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

	var heard silenceMonitor
	heard.heard()
	alive := make(chan struct{})
	defer close(alive)
	go c.pingWhenSilent(conn, &heard, alive)
	for {
		frame, err := conn.read()
		if err != nil {
			if heard.gaveUp() {
				err = errSilent
			}
			return fmt.Errorf("connection: %w", err)
		}
		heard.heard()
		p, err := mqttwire.Decode(frame, c.cfg.Version)
		if err != nil {
			c.cfg.OnViolation(fmt.Sprintf("%v: % x", err, frame[:min(len(frame), 32)]))
			return err
		}
		c.mu.Lock()
		err = c.handlePacket(p)
		c.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (c *Client) connect(conn transport) (*mqttwire.Packet, error) {
	hello := mqttwire.Connect{
		Version: c.cfg.Version, ClientID: c.cfg.ClientID, Username: c.cfg.Subject, Password: c.cfg.Token,
		KeepAlive: keepAlive, Properties: mqttwire.Properties{}.WithInt(mqttwire.SessionExpiryInterval, 3600),
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
		c.cfg.OnViolation(fmt.Sprintf("instead of CONNACK: % x", frame[:min(len(frame), 32)]))
		return nil, fmt.Errorf("CONNACK: %w", errors.Join(err, mqttwire.ErrMalformed))
	}
	if p.Reason != 0 {
		return nil, fmt.Errorf("CONNECT refused: 0x%02x %s", p.Reason, p.Properties.GetText(mqttwire.ReasonString))
	}
	return p, nil
}

// resume continues the session (MQTT 5, section 4.4): it sends unacknowledged
// packets again, in order. If the broker has no session, the client discards
// its own and publishes the unacknowledged messages as new ones.
func (c *Client) resume(connack *mqttwire.Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastHeard = time.Now()
	if n := connack.Properties.GetInt(mqttwire.ReceiveMaximum); n > 0 {
		c.window = min(c.cfg.Window, int(n))
	}
	if !connack.SessionPresent {
		if c.hasSession {
			c.cfg.OnViolation(LostSession)
		}
		clear(c.received)
		c.subscribed = false
		open := c.outgoing
		c.outgoing = nil
		for _, o := range open {
			if o.gotPubrec {
				continue // it was acknowledged
			}
			if o.sent {
				c.cfg.OnRepublish(o.message, "session lost")
			}
			c.outgoing = append(c.outgoing, &outgoing{message: o.message, id: o.id})
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

// silenceMonitor records when the last packet of the broker came.
type silenceMonitor struct {
	mu     sync.Mutex
	at     time.Time
	silent bool
}

func (h *silenceMonitor) heard() {
	h.mu.Lock()
	h.at = time.Now()
	h.mu.Unlock()
}

func (h *silenceMonitor) gaveUp() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.silent
}

// pingWhenSilent sends PINGREQ to a silent broker, and ends the connection if no answer
// comes.
func (c *Client) pingWhenSilent(conn transport, h *silenceMonitor, done <-chan struct{}) {
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
		h.silent = silence > deadSilence
		h.mu.Unlock()
		switch {
		case silence > deadSilence:
			conn.close()
			return
		case silence > pingSilence:
			c.mu.Lock()
			c.write(mqttwire.AppendEmpty(nil, mqttwire.PINGREQ))
			c.mu.Unlock()
		}
	}
}
