package broker

import (
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/delivery"
	"mynah/broker/listener"
	"mynah/broker/outbox"
)

// conn is a client's connection as Mochi sees it, with what the broker knows of it.
// Fields without a note are used by the connection's own goroutine only.
type conn struct {
	*outbox.Conn
	raw *listener.Conn

	in        reader
	lastTopic string // of the last PUBLISH

	client   *mqtt.Client       // nil until the client has been let in
	holder   *authhook.Identity // who connected
	session  *delivery.Session
	clientID string // as the client gave it, or as it was assigned
	resumed  bool   // the session was there before
	v5       atomic.Bool
	quiet    bool // Request Problem Information is 0 (MQTT 5, 3.1.2.11.7)

	maxPacket       int    // what the client takes, in bytes; 0 for anything (MQTT 5, 3.1.2.11.4)
	renewalsRefused rarely // logged
	filtersRefused  rarely // logged
	retainExplained bool   // the client knows that the chat retains nothing

	will     *will
	graceful atomic.Bool // DISCONNECT came, and without the wish to have the will sent
	willDone atomic.Bool // it has been sent, or waits, or is not to be sent
	ended    atomic.Bool

	pace pace

	line    *line // publishes on their way to the log, nil if there are none; guarded by queue.mu
	retired bool  // another connection has the session; guarded by queue.mu

	// The committer's.
	acks           []byte    // acknowledgements of the batch at hand
	explainedSince time.Time // when the second began in which
	explained      int       // refusals were explained
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

// subject returns whose connection it is.
func (c *conn) subject() string { return c.session.Subject }

// hasSession reports whether no other connection has taken the session over.
func (c *conn) hasSession() bool { return c.session.Attached() == c.Conn }

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

// identity returns who is at the other end, nil once the connection is about to end.
func (b *Broker) identity(c *conn) *authhook.Identity { return b.auth.Identity(c.client) }
