package broker

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/delivery"
	"mynah/broker/listener"
	"mynah/broker/outbox"
	"mynah/broker/packet"
	"mynah/broker/session"
)

// maxKeepalive is the longest keep-alive in seconds for which Mochi's arithmetic holds:
// it computes one and a half times that in 16 bits.
const maxKeepalive = 43690

// errRefused ends a connection that has been sent a CONNACK that says why.
var errRefused = errors.New("connection refused")

// serve runs one connection. It is the doors' handler.
//
// It does not use Mochi's EstablishConnection: that parks every connection on a stack
// of 16 KiB, beside a second goroutine, and copies each packet several times over.
// Here the CONNECT is dealt with on the door's goroutine, whose stack grows with it;
// what follows runs on a fresh one, which stays small.
func (b *Broker) serve(door string, raw *listener.Conn) error {
	c := &conn{Conn: outbox.NewConn(raw, b.engine.Limits()), raw: raw}
	c.v5.Store(raw.ProtocolLevel() == 5)
	c.in.src, c.in.most = raw, b.maxPacket
	b.connected.Add(1)
	connected := false
	defer func() {
		if !connected { // it was refused, or there was a panic, which the door recovers
			b.over(c)
		}
	}()
	if err := b.connect(c, door); err != nil {
		return err
	}
	connected = true
	raw.Continue(func() error {
		defer b.over(c)
		return b.read(c)
	})
	return nil
}

// over ends a connection for good.
func (b *Broker) over(c *conn) {
	b.finish(c)
	c.Flush()
	c.in.giveBack()
	b.connected.Add(-1)
}

// connect deals with CONNECT: it lets the client in and gives it its session, or sends
// it a CONNACK that says why not.
func (b *Broker) connect(c *conn, door string) error {
	cl := b.mochi.NewClient(c, door, "", false)
	defer func() {
		if c.client == nil {
			cl.Stop(errRefused)
			b.auth.OnDisconnect(cl, errRefused, true)
		}
	}()
	_, body, err := c.in.next() // the door has seen to it that it is a CONNECT
	if err != nil {
		return err
	}
	if err := packet.CheckConnect(body); err != nil {
		var code packets.Code
		if errors.As(err, &code) && c.v5.Load() {
			cl.Properties.ProtocolVersion = 5
			err = errors.Join(err, b.refuse(cl, code)) // [MQTT-3.1.4-2]
		}
		return fmt.Errorf("check CONNECT: %w", err)
	}
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect, Remaining: len(body)}}
	body = bytes.Clone(body)
	if c.raw.Bridge() {
		body[packet.LevelAt(body)] = c.raw.ProtocolLevel() // Mochi does not know of bridges
	}
	if err := pk.ConnectDecode(body); err != nil {
		return fmt.Errorf("decode CONNECT: %w", err)
	}
	cl.ParseConnect(door, pk)
	if code := b.validate(cl, pk); code != packets.CodeSuccess {
		return errors.Join(errRefused, code, b.refuse(cl, code))
	}
	if err := b.auth.OnConnect(cl, pk); err != nil {
		return err
	}
	if code := b.checkWill(cl, &pk.Connect); code != packets.CodeSuccess {
		b.logger.Info("a client's will is no message; the connection is refused", "client", cl.ID, "reason", code.Reason)
		return errors.Join(errRefused, code, b.refuse(cl, code))
	}
	if cl.State.Keepalive > maxKeepalive {
		cl.State.Keepalive, cl.State.ServerKeepalive = maxKeepalive, true
	}
	switch err := b.establish(c, cl, pk, willOf(&pk.Connect, packet.WillExpiresAtOnce(body))); {
	case errors.Is(err, delivery.ErrArchiverSession):
		b.logger.Warn("a client that is not the archiver wanted the archiver's session; it was refused", "client", cl.ID)
		return errors.Join(errRefused, err, b.refuse(cl, packets.ErrNotAuthorized))
	case err != nil:
		b.logger.Error("cannot restore a session; the connection is refused so that the client tries again",
			"client", cl.ID, "error", err)
		return errors.Join(err, b.refuse(cl, packets.ErrServerUnavailable))
	}
	if c.resumed {
		b.forgetForbidden(c.session)
	}
	limits := packets.Properties{MaximumPacketSize: uint32(b.maxPacket)} //nolint:gosec // some hundred KiB
	if err := b.mochi.SendConnack(cl, packets.CodeSuccess, c.resumed, &limits); err != nil {
		return fmt.Errorf("send CONNACK: %w", err)
	}
	c.session.Start(c.Conn)
	return nil
}

// refuse sends a CONNACK that says why a client is not let in. MQTT 3.1.1 knows five
// reasons (3.2.2.3), of which "not authorized" has to do for what it has no word for.
func (b *Broker) refuse(cl *mqtt.Client, code packets.Code) error {
	if _, ok := packets.V5CodesToV3[code]; !ok && cl.Properties.ProtocolVersion < 5 {
		code = packets.ErrBadUsernameOrPassword // which Mochi translates to it
	}
	return b.mochi.SendConnack(cl, code, false, nil)
}

// validate returns what is wrong with a CONNECT, packets.CodeSuccess if nothing.
func (b *Broker) validate(cl *mqtt.Client, pk packets.Packet) packets.Code {
	if b.stopping.Load() {
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
func (b *Broker) establish(c *conn, cl *mqtt.Client, pk packets.Packet, w *will) error {
	id := b.auth.Identity(cl)
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
	before := b.memberships.Load()
	groups, unknown := b.groups(id)
	if unknown != nil {
		b.logger.Warn("the groups of a connecting client cannot be looked up; it keeps those of its token and of its session",
			"subject", id.Subject, "error", unknown)
	}
	session, resumed, err := b.engine.Attach(delivery.Attachment{
		Key:            session.Key{Subject: id.Subject, ClientID: c.clientID},
		Conn:           c.Conn,
		Clean:          pk.Connect.Clean,
		Expiry:         b.sessionExpiry(cl),
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
	b.system.arrived()
	b.hold(c)
	if !resumed {
		b.devices.over(session.Key)
	}
	b.wills.ClientReturned(session.Key, resumed)
	b.conns.Store(c.Conn, c)
	b.presence.Connected(id.Subject)
	b.regroupSince(c, before)
	return nil
}

// hold takes nothing more from the connection that had the session before. If another has
// it by now, that is the one to go on with: connections that race for a session can come
// here in another order than they came to it.
func (b *Broker) hold(c *conn) {
	for {
		held, ok := b.holders.LoadOrStore(c.session.Key, c)
		if !ok {
			if c.session.Superseded(c.Conn) { // and that one has come and gone
				b.queue.retire(c)
			}
			return
		}
		other := held.(*conn) //nolint:forcetypeassert // holders holds nothing else
		if other.After(c.Conn) {
			b.queue.retire(c)
			return
		}
		if b.holders.CompareAndSwap(c.session.Key, held, c) {
			b.queue.retire(other)
			return
		}
	}
}

// finish takes a connection that is over out of everything. It is harmless to repeat.
func (b *Broker) finish(c *conn) {
	if c.ended.Swap(true) || c.client == nil {
		return
	}
	cl := c.client
	b.system.gone()
	b.conns.Delete(c.Conn)
	b.holders.CompareAndDelete(c.session.Key, c)
	expiry := b.sessionExpiry(cl)
	c.session.Detach(c.Conn, expiry)
	if c.pace.tracked {
		b.devices.settle(c.session.Key, c.pace.settled)
	}
	// A client that sees its connection closed may count on its session being away.
	cl.Stop(nil)
	b.fireWill(c)
	b.presence.Disconnected(c.subject())
	b.auth.OnDisconnect(cl, nil, expiry == 0)
}

// sessionEnded is told that a session has ended, with its locks held.
func (b *Broker) sessionEnded(k session.Key) {
	b.devices.over(k)
	b.wills.SessionEnded(k)
}
