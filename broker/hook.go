package broker

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/delivery"
	"mynah/chat"
)

// maxKeepalive is the longest keep-alive in seconds for which Mochi's arithmetic holds:
// it computes one and a half times that in 16 bits.
const maxKeepalive = 43690

// hook is the broker's side of Mochi. It runs after authhook.Hook.
type hook struct {
	mqtt.HookBase
	b *Broker
}

// ID names the hook in Mochi's logs.
func (h *hook) ID() string { return "mynah" }

// Provides says which of Mochi's events the hook takes part in.
func (h *hook) Provides(event byte) bool {
	return bytes.IndexByte([]byte{
		mqtt.OnConnect, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished, mqtt.OnDisconnect,
		mqtt.OnPacketRead, mqtt.OnPacketEncode, mqtt.OnSubscribed, mqtt.OnUnsubscribed,
		mqtt.OnRetainMessage, mqtt.OnRetainedExpired,
	}, event) >= 0
}

// OnConnect bounds the keep-alive.
func (h *hook) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	if cl.State.Keepalive > maxKeepalive {
		cl.State.Keepalive, cl.State.ServerKeepalive = maxKeepalive, true
	}
	return nil
}

// OnSessionEstablish binds the connection to its session, before the CONNACK.
func (h *hook) OnSessionEstablish(cl *mqtt.Client, pk packets.Packet) {
	b, c := h.b, connOf(cl)
	id := b.auth.Identity(cl)
	if c == nil || id == nil {
		cl.Stop(packets.ErrNotAuthorized)
		return
	}
	c.raw.ForgetToken()
	c.holder = id
	c.clientID = strings.TrimPrefix(cl.ID, id.Subject+"/")
	c.quiet = pk.Properties.RequestProblemInfoFlag && pk.Properties.RequestProblemInfo == 0
	c.takeWill(cl)
	groups, err := b.groups(id)
	if err != nil {
		b.logger.Warn("the groups of a connecting client are not known; it keeps those of its token",
			"subject", id.Subject, "error", err)
	}
	session, resumed, err := b.engine.Attach(delivery.Attachment{
		Key:            delivery.Key{Subject: id.Subject, ClientID: c.clientID},
		Conn:           c.Conn,
		Clean:          pk.Connect.Clean,
		Expiry:         b.sessionExpiry(cl),
		V5:             cl.Properties.ProtocolVersion == 5,
		ReceiveMaximum: pk.Properties.ReceiveMaximum,
		MaxPacket:      pk.Properties.MaximumPacketSize,
		Groups:         groups,
		AnyGroup:       privileged(id.Role),
		Archiver:       id.Role == authhook.RoleArchiver,
	})
	if err != nil {
		b.logger.Error("cannot restore a session; the connection is closed so that the client tries again",
			"subject", id.Subject, "client_id", c.clientID, "error", err)
		cl.Stop(packets.ErrServerUnavailable)
		return
	}
	c.client, c.session, c.resumed = cl, session, resumed
	b.conns.Store(session, c)
	b.presence.came(id.Subject)
	if b.stopping.Load() {
		cl.Stop(packets.ErrServerShuttingDown)
	}
}

// OnSessionEstablished restores what Mochi serves of the session, after the CONNACK,
// and starts delivery.
func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	c := connOf(cl)
	if c == nil || c.session == nil {
		return
	}
	if c.resumed {
		for _, f := range c.session.Filters() {
			if _, known := cl.State.Subscriptions.Get(f.Filter); known || delivery.IsChatFilter(f.Filter) {
				continue
			}
			sub := packets.Subscription{
				Filter: f.Filter, Qos: f.QoS, NoLocal: f.NoLocal, Identifier: f.Identifier,
				RetainAsPublished: f.RetainAsPublished, RetainHandling: f.RetainHandling,
			}
			h.b.mochi.Topics.Subscribe(cl.ID, sub)
			cl.State.Subscriptions.Add(f.Filter, sub)
		}
	}
	c.session.Start(c.Conn)
}

// OnDisconnect takes the connection from its session.
func (h *hook) OnDisconnect(cl *mqtt.Client, _ error, _ bool) {
	if c := connOf(cl); c != nil {
		h.b.finish(c)
	}
}

// nothing is a packet that Mochi does nothing about: the acknowledgement of a message
// that it did not send. The hook returns it for packets that it has dealt with.
var nothing = packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}}

// OnPacketRead takes publishes to the chat and acknowledgements of our messages out of
// the stream.
func (h *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := connOf(cl)
	if c == nil || c.session == nil {
		return pk, nil
	}
	switch pk.FixedHeader.Type {
	case packets.Publish:
		return h.b.publish(c, pk), nil
	case packets.Puback, packets.Pubrec, packets.Pubcomp:
		failed := pk.ReasonCode >= packets.ErrUnspecifiedError.Code
		mochi := c.session.Acknowledged(c.Conn, pk.FixedHeader.Type, pk.PacketID, failed)
		if mochi == 0 {
			return nothing, nil
		}
		pk.PacketID = mochi
	case packets.Pubrel:
		if _, plain := cl.State.Inflight.Get(pk.PacketID); plain && !c.releases(pk.PacketID) {
			return pk, nil
		}
		delete(c.releasing, pk.PacketID)
		_, _ = c.Write([]byte{packets.Pubcomp << 4, 2, byte(pk.PacketID >> 8), byte(pk.PacketID)})
		return nothing, nil
	case packets.Subscribe, packets.Unsubscribe:
		c.renumber(&pk)
	case packets.Disconnect:
		c.graceful = pk.ReasonCode != packets.CodeDisconnectWillMessage.Code
	}
	return pk, nil
}

// releases reports whether a packet id is that of a QoS 2 publish to the chat.
func (c *conn) releases(id uint16) bool {
	_, ours := c.releasing[id]
	return ours
}

// renumber gives a SUBSCRIBE or UNSUBSCRIBE another packet id if Mochi would refuse
// the one that it has because a message to the client has the same: these are two
// spaces (MQTT 5, 2.2.1), which Mochi keeps in one map.
func (c *conn) renumber(pk *packets.Packet) {
	c.renumbered = 0
	if _, taken := c.client.State.Inflight.Get(pk.PacketID); !taken || pk.PacketID == 0 {
		return
	}
	for id := uint16(65535); id > 0; id-- {
		if _, taken := c.client.State.Inflight.Get(id); !taken {
			c.renumbered, pk.PacketID = pk.PacketID, id
			return
		}
	}
}

// OnPacketEncode corrects what Mochi is about to send: whether there was a session,
// and the packet ids of its messages.
func (h *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := connOf(cl)
	if c == nil || c.session == nil {
		return pk
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		if pk.ReasonCode == packets.CodeSuccess.Code {
			pk.SessionPresent = c.resumed
		}
	case packets.Publish:
		if pk.FixedHeader.Qos > 0 {
			pk.PacketID = c.session.LendID(pk.PacketID)
		}
	case packets.Pubrel:
		if id := c.session.Lent(pk.PacketID); id != 0 {
			pk.PacketID = id
		}
	case packets.Suback, packets.Unsuback:
		if c.renumbered != 0 {
			pk.PacketID, c.renumbered = c.renumbered, 0
		}
	}
	return pk
}

// subscribeTimeout bounds what a SUBSCRIBE waits for the directory.
const subscribeTimeout = 5 * time.Second

// OnSubscribed makes subscriptions durable before the SUBACK is written. What cannot be
// stored is refused in the SUBACK.
func (h *hook) OnSubscribed(cl *mqtt.Client, pk packets.Packet, reasons []byte) {
	b, c := h.b, connOf(cl)
	if c == nil || c.session == nil {
		return
	}
	var subs []delivery.Subscription
	for i, f := range pk.Filters {
		if reasons[i] > packets.CodeGrantedQos2.Code {
			continue
		}
		subs = append(subs, delivery.Subscription{
			Filter: f.Filter, QoS: f.Qos, NoLocal: f.NoLocal, Identifier: f.Identifier,
			RetainAsPublished: f.RetainAsPublished, RetainHandling: f.RetainHandling,
		})
	}
	if len(subs) == 0 {
		return
	}
	groups, err := b.groups(b.identity(c))
	if err == nil {
		err = c.session.Subscribe(subs, groups)
	}
	if err == nil {
		return
	}
	b.logger.Error("cannot store subscriptions; they are refused",
		"subject", c.subject(), "client_id", c.clientID, "error", err)
	for i := range reasons {
		if reasons[i] <= packets.CodeGrantedQos2.Code {
			reasons[i] = packets.ErrUnspecifiedError.Code
		}
	}
}

// OnUnsubscribed forgets subscriptions.
func (h *hook) OnUnsubscribed(cl *mqtt.Client, pk packets.Packet) {
	c := connOf(cl)
	if c == nil || c.session == nil || c.over.Load() || cl.Closed() {
		return // Mochi calls it for a session's end too
	}
	filters := make([]string, len(pk.Filters))
	for i, f := range pk.Filters {
		filters[i] = f.Filter
	}
	if err := c.session.Unsubscribe(filters); err != nil {
		h.b.logger.Error("cannot store that subscriptions have ended; after a restart they may be back",
			"subject", c.subject(), "client_id", c.clientID, "error", err)
	}
}

// privileged reports whether a role may read conversations that it is no part of.
func privileged(r authhook.Role) bool {
	return slices.Contains([]authhook.Role{authhook.RoleArchiver, authhook.RoleService, authhook.RoleAdmin}, r)
}

// groups returns the groups that somebody is in. If the directory cannot tell, it
// returns those of the token and the error.
func (b *Broker) groups(id *authhook.Identity) ([]string, error) {
	if id == nil {
		return nil, chat.Refuse(chat.CodeUnavailable, "not connected")
	}
	ctx, cancel := context.WithTimeout(b.ctx, subscribeTimeout)
	defer cancel()
	groups, err := b.policy.Groups(ctx, id)
	if err != nil {
		return id.Groups, err
	}
	return groups, nil
}
