package broker

import (
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

// subscribeTimeout bounds what a SUBSCRIBE, with all its filters, waits for the directory:
// what is behind it waits, too.
const subscribeTimeout = 5 * time.Second

// subscribe deals with a SUBSCRIBE (MQTT 5, 3.8): what it may have is on disk before the
// SUBACK, and what is retained comes after it.
func (b *Broker) subscribe(c *conn, pk packets.Packet) error {
	if code := pk.SubscribeValidate(); code != packets.CodeSuccess {
		return code
	}
	ctx, cancel := context.WithTimeout(b.ctx, subscribeTimeout)
	defer cancel()
	reasons := make([]byte, len(pk.Filters))
	had := c.allowance()
	isNew := make(map[string]bool, len(pk.Filters))
	var granted []delivery.Subscription
	for i, f := range pk.Filters {
		code := b.mayHave(ctx, c, f)
		if code == packets.CodeSuccess && !had.has(f.Filter) {
			if had.take(f.Filter) {
				isNew[f.Filter] = true
			} else {
				code = packets.ErrQuotaExceeded
			}
		}
		if code != packets.CodeSuccess {
			reasons[i] = c.refusedFilter(code)
			continue
		}
		reasons[i] = f.Qos
		granted = append(granted, delivery.Subscription{
			Filter: strings.Clone(f.Filter), // a piece of the packet, which it would keep
			QoS:    f.Qos, NoLocal: f.NoLocal, Identifier: f.Identifier,
			RetainAsPublished: f.RetainAsPublished, RetainHandling: f.RetainHandling,
		})
	}
	if err := b.grant(c, granted); err != nil {
		b.logger.Error("cannot store subscriptions; they are refused",
			"subject", c.subject(), "client_id", c.clientID, "error", err)
		for i := range reasons {
			if reasons[i] <= packets.CodeGrantedQos2.Code {
				reasons[i] = packets.ErrUnspecifiedError.Code
			}
		}
		granted = nil
	}
	if err := c.client.WritePacket(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Suback}, PacketID: pk.PacketID, ReasonCodes: reasons,
	}); err != nil {
		return err
	}
	for _, f := range granted {
		b.queueRetained(c, f, isNew[f.Filter])
	}
	return nil
}

// mayHave returns why a client may not have a subscription, packets.CodeSuccess if it may.
func (b *Broker) mayHave(ctx context.Context, c *conn, f packets.Subscription) packets.Code {
	id := b.identity(c)
	switch {
	case !validFilter(f.Filter):
		return packets.ErrTopicFilterInvalid
	case id == nil || !b.mayRead(ctx, id, f.Filter):
		return packets.ErrNotAuthorized
	}
	return packets.CodeSuccess
}

// refusedFilter returns what a SUBACK says: MQTT 3.1.1 knows one failure only.
func (c *conn) refusedFilter(code packets.Code) byte {
	if !c.v5.Load() {
		return packets.ErrUnspecifiedError.Code
	}
	return code.Code
}

// grant stores subscriptions and makes them effective.
func (b *Broker) grant(c *conn, subs []delivery.Subscription) error {
	if len(subs) == 0 {
		return nil
	}
	before := b.memberships.Load()
	groups, err := b.groups(b.identity(c))
	if err != nil {
		// What may be read was decided before. The rest of the session goes on with
		// the memberships that are known.
		groups = append(c.session.Groups(), groups...)
	}
	if err := c.session.Subscribe(subs, groups); err != nil {
		return err
	}
	b.regroupSince(c, before)
	return nil
}

// queueRetained has what is retained sent to a new subscriber (MQTT 5, 3.8.4), as the
// Retain Handling says. A shared subscription gets none (4.8.2).
func (b *Broker) queueRetained(c *conn, f delivery.Subscription, isNew bool) {
	if delivery.IsChatFilter(f.Filter) || mqtt.IsSharedFilter(f.Filter) || f.RetainHandling == 2 || f.RetainHandling == 1 && !isNew {
		return
	}
	o := delivery.PlainOptions{QoS: f.QoS}
	if f.Identifier != 0 {
		o.IDs = []int{f.Identifier}
	}
	c.session.QueueRetained(f.Filter, b.plain.retainedFor(c.session, f.Filter), o)
}

// unsubscribe deals with an UNSUBSCRIBE (MQTT 5, 3.10).
func (b *Broker) unsubscribe(c *conn, pk packets.Packet) error {
	if code := pk.UnsubscribeValidate(); code != packets.CodeSuccess {
		return code
	}
	had := c.allowance()
	filters, reasons := make([]string, len(pk.Filters)), make([]byte, len(pk.Filters))
	for i, f := range pk.Filters {
		filters[i] = f.Filter
		if !had.has(f.Filter) {
			reasons[i] = packets.CodeNoSubscriptionExisted.Code
		}
	}
	if err := c.session.Unsubscribe(filters); err != nil {
		b.logger.Error("cannot store that subscriptions have ended; after a restart they may be back",
			"subject", c.subject(), "client_id", c.clientID, "error", err)
	}
	return c.client.WritePacket(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Unsuback}, PacketID: pk.PacketID, ReasonCodes: reasons,
	})
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
