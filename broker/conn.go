package broker

import (
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/delivery"
	"mynah/broker/listener"
	"mynah/broker/msglog"
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

	maxPacket       int        // what the client takes, in bytes; 0 for anything (MQTT 5, 3.1.2.11.4)
	renewalsRefused logLimiter // logged
	filtersRefused  logLimiter // logged
	toldNotRetained bool       // the client knows that the chat retains nothing

	will     *will
	graceful atomic.Bool // DISCONNECT came, and without the wish to have the will sent
	willDone atomic.Bool // it has been sent, or waits, or is not to be sent
	ended    atomic.Bool

	pace pace

	line    *line // publishes on their way to the log, nil if there are none; guarded by queue.mu
	retired bool  // another connection has the session; guarded by queue.mu

	// The committer's.
	acks         []byte    // acknowledgements of the batch at hand
	noticesSince time.Time // when the second began in which
	notices      int       // so many refusals were told
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

// extendDeadline moves the read deadline to one and a half times the keep-alive from now
// [MQTT-3.1.2-22].
func (c *conn) extendDeadline(log msglog.Reader) {
	now := time.Now()
	if k := c.client.State.Keepalive; k > 0 {
		_ = c.SetDeadline(now.Add(time.Duration(k) * 3 * time.Second / 2))
	}
	if c.pace.due(now) && c.Idle() {
		_, last := log.Bounds()
		c.pace.heard(now, last)
	}
}
