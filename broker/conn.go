package broker

import (
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/delivery"
	"mynah/broker/listener"
)

// conn is a client's connection as Mochi sees it, with what the broker knows of it.
// Fields without a note are used by the reading goroutine only.
type conn struct {
	*delivery.Conn
	raw *listener.Conn

	client   *mqtt.Client
	holder   *authhook.Identity // who connected
	session  *delivery.Session
	clientID string // as the client gave it, or as it was assigned
	resumed  bool   // the session was there before
	v5       atomic.Bool
	quiet    bool // Request Problem Information is 0 (MQTT 5, 3.1.2.11.7)

	will     *will // a will on a chat topic, which Mochi does not know
	graceful bool  // DISCONNECT came, and without the wish to have the will sent
	over     atomic.Bool

	// releasing holds the packet ids of QoS 2 publishes to chat topics that the
	// client has not released with PUBREL.
	releasing map[uint16]struct{}
	// renumbered is the packet id of a SUBSCRIBE or UNSUBSCRIBE that Mochi knows
	// under another one, 0 for none.
	renumbered uint16

	queued int    // publishes on their way to the log; guarded by queue.mu
	acks   []byte // acknowledgements of the batch at hand; used by the committer only
}

// will is a will message on a chat topic (MQTT 5, 3.1.2.5).
type will struct {
	topic   string
	payload []byte
	qos     byte
	delay   time.Duration
}

// Token returns the token of a WebSocket's handshake, "" if there is none.
func (c *conn) Token() string { return c.raw.Token() }

// Write takes packets from Mochi. It sends DISCONNECT to 3.1.1 clients too, for
// which a server has no such packet.
func (c *conn) Write(p []byte) (int, error) {
	if len(p) > 0 && p[0] == packets.Disconnect<<4 && !c.v5.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// connOf returns the broker's side of Mochi's client, nil for the inline client.
func connOf(cl *mqtt.Client) *conn {
	c, _ := cl.Net.Conn.(*conn)
	return c
}

// subject returns whose connection it is.
func (c *conn) subject() string { return c.session.Subject }

// sessionExpiry returns how long the session outlives the connection: what an MQTT 5
// client asked for, up to the configured maximum; the configured time for a 3.1.1
// client without clean session.
func (b *Broker) sessionExpiry(cl *mqtt.Client) time.Duration {
	if cl.Properties.ProtocolVersion < 5 {
		if cl.Properties.Clean {
			return 0
		}
		return b.cfg.SessionExpiry
	}
	return min(time.Duration(cl.Properties.Props.SessionExpiryInterval)*time.Second, b.cfg.MaxSessionExpiry)
}

// serve runs one connection. It is the doors' handler.
func (b *Broker) serve(door string, raw *listener.Conn) error {
	c := &conn{Conn: delivery.NewConn(raw, b.engine.Limits()), raw: raw}
	c.v5.Store(raw.ProtocolLevel() == 5)
	b.connected.Add(1)
	defer b.connected.Add(-1)
	// Mochi does not call OnDisconnect for a client that fails before its CONNACK,
	// and not when it panics.
	defer c.Flush()
	defer b.finish(c)
	return b.mochi.EstablishConnection(door, c)
}

// finish takes a connection that is over out of everything. It is harmless to repeat.
func (b *Broker) finish(c *conn) {
	if c.over.Swap(true) || c.client == nil {
		return
	}
	cl := c.client
	b.conns.CompareAndDelete(c.session, c)
	c.session.Detach(c.Conn, b.sessionExpiry(cl))
	b.presence.gone(c.subject())
	b.fireWill(c)
}

// forget removes what Mochi leaves behind when it panics.
func (b *Broker) forget(raw *listener.Conn) {
	b.conns.Range(func(_, v any) bool {
		c, _ := v.(*conn)
		if c.raw != raw {
			return true
		}
		b.finish(c)
		b.auth.OnDisconnect(c.client, nil, true)
		b.mochi.UnsubscribeClient(c.client)
		if now, ok := b.mochi.Clients.Get(c.client.ID); ok && now == c.client {
			b.mochi.Clients.Delete(c.client.ID)
		}
		return false
	})
}

// identity returns who is at the other end.
func (b *Broker) identity(c *conn) *authhook.Identity { return b.auth.Identity(c.client) }
