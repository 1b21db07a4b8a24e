package broker

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/delivery"
	"mynah/broker/listener"
	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/packet"
	"mynah/broker/presence"
	"mynah/broker/session"
)

// maxKeepalive is the longest keep-alive in seconds for which Mochi's arithmetic holds:
// it computes one and a half times that in 16 bits.
const maxKeepalive = 43690

// errRefused ends a connection that has been sent a CONNACK that says why.
var errRefused = errors.New("connection refused")

// endpoint runs the connections of clients: CONNECT, then their packets one by one, then the
// end.
type endpoint struct {
	mochi       *mqtt.Server
	rights      *rights
	conns       *connections
	memberships *memberships
	log         msglog.Reader
	engine      *delivery.Engine
	devices     *devices
	presence    *presence.Tracker
	publisher   *publisher
	subscriber  *subscriber
	wills       *willPublisher
	system      *system
	queue       *queue
	logger      *slog.Logger

	maxPacket int           // bytes of the largest packet that clients may send
	expiry    time.Duration // of sessions: see Config
	stopping  *atomic.Bool  // nobody is let in any more
	open      atomic.Int64  // connections
}

// serve runs one connection. It is the listeners' handler.
//
// It does not use Mochi's EstablishConnection: that parks every connection on a stack
// of 16 KiB, beside a second goroutine, and copies each packet several times over.
// Here the CONNECT is handled on the listener's goroutine, whose stack grows with it;
// what follows runs on a fresh one, which stays small.
func (e *endpoint) serve(door string, raw *listener.Conn) error {
	c := &conn{Conn: outbox.NewConn(raw, e.engine.Limits()), raw: raw}
	c.v5.Store(raw.ProtocolLevel() == 5)
	c.in.src, c.in.most = raw, e.maxPacket
	e.open.Add(1)
	connected := false
	defer func() {
		if !connected { // it was refused, or there was a panic, which the listener recovers
			e.over(c)
		}
	}()
	if err := e.connect(c, door); err != nil {
		return err
	}
	connected = true
	raw.Continue(func() error {
		defer e.over(c)
		return e.read(c)
	})
	return nil
}

// over ends a connection for good.
func (e *endpoint) over(c *conn) {
	e.finish(c)
	c.Flush()
	c.in.giveBack()
	e.open.Add(-1)
}

// connect deals with CONNECT: it lets the client in and gives it its session, or sends
// it a CONNACK that says why not.
func (e *endpoint) connect(c *conn, door string) error {
	cl := e.mochi.NewClient(c, door, "", false)
	defer func() {
		if c.client == nil {
			cl.Stop(errRefused)
			e.rights.auth.OnDisconnect(cl, errRefused, true)
		}
	}()
	_, body, err := c.in.next() // the listener has checked that it is a CONNECT
	if err != nil {
		return err
	}
	if err := packet.CheckConnect(body); err != nil {
		var code packets.Code
		if errors.As(err, &code) && c.v5.Load() {
			cl.Properties.ProtocolVersion = 5
			err = errors.Join(err, e.refuse(cl, code)) // [MQTT-3.1.4-2]
		}
		return fmt.Errorf("check CONNECT: %w", err)
	}
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect, Remaining: len(body)}}
	body = bytes.Clone(body)
	if c.raw.Bridge() {
		body[packet.ProtocolLevelOffset(body)] = c.raw.ProtocolLevel() // Mochi does not know of bridges
	}
	if err := pk.ConnectDecode(body); err != nil {
		return fmt.Errorf("decode CONNECT: %w", err)
	}
	cl.ParseConnect(door, pk)
	if code := e.validate(cl, pk); code != packets.CodeSuccess {
		return errors.Join(errRefused, code, e.refuse(cl, code))
	}
	if err := e.rights.auth.OnConnect(cl, pk); err != nil {
		return err
	}
	if code := e.wills.check(cl, &pk.Connect); code != packets.CodeSuccess {
		e.logger.Info("a client's will is no message; the connection is refused", "client", cl.ID, "reason", code.Reason)
		return errors.Join(errRefused, code, e.refuse(cl, code))
	}
	if cl.State.Keepalive > maxKeepalive {
		cl.State.Keepalive, cl.State.ServerKeepalive = maxKeepalive, true
	}
	switch err := e.establish(c, cl, pk, willOf(&pk.Connect, packet.WillExpiresAtOnce(body))); {
	case errors.Is(err, delivery.ErrArchiverSession):
		e.logger.Warn("a client that is not the archiver wanted the archiver's session; it was refused", "client", cl.ID)
		return errors.Join(errRefused, err, e.refuse(cl, packets.ErrNotAuthorized))
	case err != nil:
		e.logger.Error("cannot restore a session; the connection is refused so that the client tries again",
			"client", cl.ID, "error", err)
		return errors.Join(err, e.refuse(cl, packets.ErrServerUnavailable))
	}
	if c.resumed {
		e.subscriber.forgetForbidden(&c.session.Session)
	}
	limits := packets.Properties{MaximumPacketSize: uint32(e.maxPacket)} //nolint:gosec // some hundred KiB
	if err := e.mochi.SendConnack(cl, packets.CodeSuccess, c.resumed, &limits); err != nil {
		return fmt.Errorf("send CONNACK: %w", err)
	}
	c.session.Start(c.Conn)
	return nil
}

// refuse sends a CONNACK that says why a client is not let in. MQTT 3.1.1 knows five
// reasons (3.2.2.3), of which "not authorized" has to do for what it has no word for.
func (e *endpoint) refuse(cl *mqtt.Client, code packets.Code) error {
	if _, ok := packets.V5CodesToV3[code]; !ok && cl.Properties.ProtocolVersion < 5 {
		code = packets.ErrBadUsernameOrPassword // which Mochi translates to it
	}
	return e.mochi.SendConnack(cl, code, false, nil)
}

// validate returns what is wrong with a CONNECT, packets.CodeSuccess if nothing.
func (e *endpoint) validate(cl *mqtt.Client, pk packets.Packet) packets.Code {
	if e.stopping.Load() {
		return packets.ErrServerUnavailable
	}
	lenient := pk // with what may be empty (MQTT 5, 3.1.3.4 and 3.1.3.6), which Mochi refuses
	if will := &lenient.Connect; will.WillFlag && len(will.WillPayload) == 0 {
		will.WillPayload = []byte{0}
	}
	lenient.Connect.PasswordFlag = len(pk.Connect.Password) > 0
	if code := lenient.ConnectValidate(); code != packets.CodeSuccess {
		return code // [MQTT-3.1.4-1]
	}
	if cl.Properties.ProtocolVersion < 5 && !pk.Connect.Clean && pk.Connect.ClientIdentifier == "" {
		return packets.ErrClientIdentifierNotValid // [MQTT-3.1.3-8]
	}
	if pk.Properties.AuthenticationMethod != "" {
		return packets.ErrBadAuthenticationMethod // [MQTT-4.12.0-1]: there is none but the token
	}
	return packets.CodeSuccess
}

// establish binds the connection to its session, before the CONNACK.
func (e *endpoint) establish(c *conn, cl *mqtt.Client, pk packets.Packet, w *will) error {
	id := e.rights.auth.Identity(cl)
	if id == nil {
		return authhook.ErrNotConnected // its token has ended this moment
	}
	c.raw.ForgetToken()
	// What is a piece of the CONNECT would keep all of it.
	cl.Properties.Username, cl.Properties.Will = nil, mqtt.Will{}
	cl.Properties.Props.User, cl.Properties.Props.AuthenticationData = nil, nil
	c.holder = id
	c.clientID = strings.TrimPrefix(cl.ID, id.Subject+"/")
	c.quiet = pk.Properties.RequestProblemInfoFlag && pk.Properties.RequestProblemInfo == 0
	c.maxPacket = int(pk.Properties.MaximumPacketSize)
	c.will = w
	before := e.memberships.changes.Load()
	groups, unknown := e.rights.groups(id)
	if unknown != nil {
		e.logger.Warn("the groups of a connecting client cannot be looked up; it keeps those of its token and of its session",
			"subject", id.Subject, "error", unknown)
	}
	session, resumed, err := e.engine.Attach(delivery.Attachment{
		Key:            session.Key{Subject: id.Subject, ClientID: c.clientID},
		Conn:           c.Conn,
		Clean:          pk.Connect.Clean,
		Expiry:         e.sessionExpiry(cl),
		V5:             cl.Properties.ProtocolVersion == 5,
		ReceiveMaximum: pk.Properties.ReceiveMaximum,
		MaxPacket:      pk.Properties.MaximumPacketSize,
		Groups:         groups,
		KeepGroups:     unknown != nil,
		AnyTopic:       privileged(id.Role),
		Archiver:       id.Role == authhook.RoleArchiver,
	})
	if err != nil {
		return err
	}
	c.client, c.session, c.resumed = cl, session, resumed
	e.system.arrived()
	e.conns.takeOver(c)
	if !resumed {
		e.devices.over(session.Key)
	}
	e.wills.waiting.ClientReturned(session.Key, resumed)
	e.conns.add(c)
	e.presence.Connected(id.Subject)
	e.memberships.refreshIfStale(c, before)
	return nil
}

// finish takes a connection that is over out of everything. It is harmless to repeat.
func (e *endpoint) finish(c *conn) {
	if c.ended.Swap(true) || c.client == nil {
		return
	}
	cl := c.client
	e.system.gone()
	e.conns.remove(c)
	expiry := e.sessionExpiry(cl)
	c.session.Detach(c.Conn, expiry)
	if c.pace.tracked {
		e.devices.settle(c.session.Key, c.pace.settled)
	}
	// A client that sees its connection closed may count on its session being away.
	cl.Stop(nil)
	e.wills.fire(c)
	e.presence.Disconnected(c.subject())
	e.rights.auth.OnDisconnect(cl, nil, expiry == 0)
}

// sessionExpiry returns how long the session outlives the connection: what an MQTT 5
// client asked for, up to the configured maximum; the configured time for a 3.1.1
// client without clean session.
func (e *endpoint) sessionExpiry(cl *mqtt.Client) time.Duration {
	if cl.Properties.ProtocolVersion < 5 {
		if cl.Properties.Clean {
			return 0
		}
		return e.expiry
	}
	return min(time.Duration(cl.Properties.Props.SessionExpiryInterval)*time.Second, e.expiry)
}
