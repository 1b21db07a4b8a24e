package broker

import (
	"bytes"
	"context"
	"slices"
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
		mqtt.OnPacketEncode, mqtt.OnSubscribed, mqtt.OnUnsubscribed, mqtt.OnRetainMessage, mqtt.OnRetainedExpired,
		mqtt.OnQosDropped,
	}, event) >= 0
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

// OnPacketEncode corrects the packet ids of what Mochi is about to send.
func (h *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := connOf(cl)
	if c == nil || c.session == nil {
		return pk
	}
	switch pk.FixedHeader.Type {
	case packets.Publish:
		switch {
		case pk.FixedHeader.Qos == 0:
		case tooLargeFor(cl, pk):
			h.b.drop(c, pk) // and Mochi, who finds that too, does not send it
		default:
			if id, ok := c.lend(pk); ok {
				pk.PacketID = id
			} else {
				pk.Mods.MaxSize = 1 // Mochi does not send it; sendDeferred will
			}
		}
	case packets.Puback, packets.Pubrec, packets.Pubcomp:
		pk.PacketID = c.unalias(pk.PacketID, pk.FixedHeader.Type != packets.Pubrec)
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

// OnQosDropped takes back the packet id of a message that Mochi has given up.
func (h *hook) OnQosDropped(cl *mqtt.Client, pk packets.Packet) {
	if c := connOf(cl); c != nil && c.session != nil {
		c.session.Return(c.Conn, pk.PacketID)
	}
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
		if !delivery.IsChatFilter(f.Filter) {
			c.startMochiWriter()
		}
	}
	if len(subs) == 0 {
		return
	}
	before := b.memberships.Load()
	groups, err := b.groups(b.identity(c))
	if err != nil {
		// What may be read was decided before. The rest of the session goes on with
		// the memberships that are known.
		groups = append(c.session.Groups(), groups...)
	}
	if err = c.session.Subscribe(subs, groups); err == nil {
		b.regroupSince(c, before)
		return
	}
	b.logger.Error("cannot store subscriptions; they are refused",
		"subject", c.subject(), "client_id", c.clientID, "error", err)
	for i := range reasons {
		if reasons[i] <= packets.CodeGrantedQos2.Code {
			reasons[i] = packets.ErrUnspecifiedError.Code // Mochi's SUBACK has this very slice
		}
	}
	had := c.session.Filters()
	for _, f := range subs {
		if !slices.ContainsFunc(had, func(s delivery.Subscription) bool { return s.Filter == f.Filter }) {
			b.mochi.Topics.Unsubscribe(f.Filter, cl.ID)
			cl.State.Subscriptions.Delete(f.Filter)
		}
	}
}

// OnUnsubscribed forgets subscriptions.
func (h *hook) OnUnsubscribed(cl *mqtt.Client, pk packets.Packet) {
	c := connOf(cl)
	if c == nil || c.session == nil || cl.Closed() {
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
