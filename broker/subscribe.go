package broker

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/pubsub"
	"mynah/broker/session"
	"mynah/chat"
	"mynah/internal/loglimit"
)

// How many refused subscriptions are logged, of all connections: whoever may connect can
// cause them at will.
const (
	filterRefusalsAtOnce = 100
	filterRefusalsEvery  = time.Second
)

// subscriber deals with what clients subscribe to.
type subscriber struct {
	rights      *rights
	conns       *connections
	memberships *memberships
	topics      *pubsub.Topics
	refusalLog  *loglimit.Limiter
	// maxSubscriptions is how many a session may have.
	maxSubscriptions int
	logger           *slog.Logger
}

// subscribe deals with a SUBSCRIBE (MQTT 5, 3.8): what it may have is on disk before the
// SUBACK, and what is retained comes after it.
func (sub *subscriber) subscribe(c *conn, pk packets.Packet) error {
	if code := pk.SubscribeValidate(); code != packets.CodeSuccess {
		return code
	}
	ctx, cancel := context.WithTimeout(sub.rights.ctx, subscribeTimeout)
	defer cancel()
	had := c.allowance(sub.maxSubscriptions)
	filters, places := collapse(pk.Filters, sub.maxSubscriptions)
	refused := make([]packets.Code, len(filters)) // with the reason for the client
	full := had.refusal()
	isNew := make(map[string]bool, len(filters))
	var granted []session.Subscription
	var reserved []string // filters that others of the subject's sessions are not to have meanwhile
	defer func() { sub.topics.Release(c.session.Subject, reserved) }()
	for i, f := range filters {
		code := sub.checkFilter(ctx, c, f)
		if code == packets.CodeSuccess && !had.has(f.Filter) {
			switch {
			case !had.take(f.Filter):
				code = full
			case privileged(c.holder.Role):
				isNew[f.Filter] = true
			case sub.topics.Reserve(c.session.Subject, f.Filter):
				isNew[f.Filter] = true
				reserved = append(reserved, f.Filter)
			default:
				had.giveBack(f.Filter)
				code = packets.Code{Code: packets.ErrQuotaExceeded.Code, Reason: sub.topics.WildcardsRefused()}
			}
		}
		if refused[i] = code; code != packets.CodeSuccess {
			continue
		}
		granted = append(granted, session.Subscription{
			Filter: strings.Clone(f.Filter), // a piece of the packet, which it would keep
			QoS:    f.Qos, NoLocal: f.NoLocal || c.raw.Bridge(), Identifier: f.Identifier,
			RetainAsPublished: f.RetainAsPublished || c.raw.Bridge(), RetainHandling: f.RetainHandling,
		})
	}
	reasons := make([]byte, len(pk.Filters))
	var first refusedFilter
	for i, f := range pk.Filters {
		code := full
		if at := places[i]; at >= 0 {
			code = refused[at]
		}
		if code == packets.CodeSuccess {
			reasons[i] = f.Qos
			continue
		}
		reasons[i] = c.refusedCode(code)
		first.add(f.Filter, code)
	}
	if err := sub.grant(c, granted); err != nil {
		sub.logger.Error("cannot store subscriptions; they are refused",
			"subject", c.subject(), "client_id", c.clientID, "error", err)
		for i := range reasons {
			if reasons[i] <= packets.CodeGrantedQos2.Code {
				reasons[i] = packets.ErrUnspecifiedError.Code
				first.add(pk.Filters[i].Filter, errNotStored)
			}
		}
		granted = nil
	}
	if first.n > 0 {
		sub.logRefused(c, &first)
	}
	if err := c.client.WritePacket(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Suback}, PacketID: pk.PacketID, ReasonCodes: reasons,
		Properties: packets.Properties{ReasonString: c.subackReason(&first, len(reasons))},
	}); err != nil {
		return err
	}
	sub.queueRetained(c, granted, isNew)
	return nil
}

// collapse returns the filters of a SUBSCRIBE, each once and with the options that it is
// given last, as if they had come one after the other [MQTT-3.8.4-5], and at which place each
// one of the packet is there. Beyond limit, as many as a session may have, there is none, and -1:
// a packet has room for a hundred times that.
func collapse(all packets.Subscriptions, limit int) (filters packets.Subscriptions, places []int) {
	places = make([]int, len(all))
	known := make(map[string]int, min(len(all), limit))
	for i, f := range all {
		at, again := known[f.Filter]
		switch {
		case again:
			if f.RetainHandling != 0 { // it would not have what is retained sent, but the one before may
				f.RetainHandling = filters[at].RetainHandling
			}
			filters[at] = f
		case len(filters) == limit:
			at = -1
		default:
			at = len(filters)
			known[f.Filter] = at
			filters = append(filters, f)
		}
		places[i] = at
	}
	return filters, places
}

// errNotStored is why a subscription is refused whatever its filter is.
var errNotStored = packets.Code{Code: packets.ErrUnspecifiedError.Code, Reason: string(chat.CodeUnavailable) + ": the server could not store the subscription; try again"}

// checkFilter returns why a client may not have a subscription, packets.CodeSuccess if it may.
func (sub *subscriber) checkFilter(ctx context.Context, c *conn, f packets.Subscription) packets.Code {
	id := sub.rights.identity(c)
	switch {
	case pubsub.TooDeep(f.Filter):
		return packets.Code{Code: packets.ErrTopicFilterInvalid.Code, Reason: errTooDeep.Error()}
	case !pubsub.ValidFilter(f.Filter):
		return packets.ErrTopicFilterInvalid
	}
	if err := sub.rights.policy.CanSubscribe(ctx, id, f.Filter); err != nil {
		return packets.Code{Code: packets.ErrNotAuthorized.Code, Reason: asRefusal(authhook.WhyNotSubscribe(id, f.Filter, err)).Error()}
	}
	return packets.CodeSuccess
}

// refusedCode returns what a SUBACK says: MQTT 3.1.1 knows one failure only.
func (c *conn) refusedCode(code packets.Code) byte {
	if !c.v5.Load() {
		return packets.ErrUnspecifiedError.Code
	}
	return code.Code
}

// refusedFilter is the first filter of a packet that was refused.
type refusedFilter struct {
	filter string
	code   packets.Code
	n      int // filters of the packet that were refused
}

func (r *refusedFilter) add(filter string, code packets.Code) {
	if r.n++; r.n == 1 {
		r.filter, r.code = filter, code
	}
}

// subackReason returns the reason string of a SUBACK with so many reason codes (MQTT 5,
// 3.9.2.1.2): of one filter why it is refused; of several also which is the first that is,
// and how many more are. It is "" if none is, if the client wants no such explanations
// (3.1.2.11.7) and if it does not take a packet of that size [MQTT-3.9.2-1].
func (c *conn) subackReason(first *refusedFilter, codes int) string {
	if first.n == 0 || !c.v5.Load() || c.quiet {
		return ""
	}
	reason := first.code.Reason
	if codes > 1 {
		reason = chat.Shown(first.filter) + ": " + reason
		if first.n > 1 {
			reason = fmt.Sprintf("%s (and %d more of %d filters)", reason, first.n-1, codes)
		}
	}
	// Packet id, one property and the codes.
	property := 1 + 2 + len(reason)
	remaining := 2 + varintLen(property) + property + codes
	if c.maxPacket > 0 && 1+len(binary.AppendUvarint(nil, uint64(remaining)))+remaining > c.maxPacket { //nolint:gosec // a length
		return ""
	}
	return reason
}

// logRefused logs that a client is refused a subscription, a connection's once a minute.
func (sub *subscriber) logRefused(c *conn, first *refusedFilter) {
	c.filtersRefused.Do(func() {
		leftOut, ok := sub.refusalLog.Allow()
		if !ok {
			return
		}
		attrs := []any{
			"subject", c.subject(), "client_id", c.clientID,
			"filter", chat.Shown(first.filter), "reason", first.code.Reason, "refused", first.n,
		}
		if leftOut > 0 {
			attrs = append(attrs, "left_out", leftOut)
		}
		sub.logger.Info("a subscription was refused", attrs...)
	})
}

// grant stores subscriptions and makes them effective.
func (sub *subscriber) grant(c *conn, subs []session.Subscription) error {
	if len(subs) == 0 {
		return nil
	}
	before := sub.memberships.changes.Load()
	groups, err := sub.rights.groups(sub.rights.identity(c))
	if err != nil {
		// What may be read was decided before. The rest of the session goes on with
		// the memberships that are known.
		groups = append(c.session.GroupIDs(), groups...)
	}
	if err := c.session.Subscribe(subs, groups); err != nil {
		return err
	}
	sub.memberships.refreshIfStale(c, before)
	return nil
}

// queueRetained has what is retained sent to a new subscriber (MQTT 5, 3.8.4), as the
// Retain Handling says. A shared subscription gets none (4.8.2).
func (sub *subscriber) queueRetained(c *conn, subs []session.Subscription, isNew map[string]bool) {
	subs = slices.DeleteFunc(subs, func(f session.Subscription) bool {
		return session.IsChatFilter(f.Filter) || mqtt.IsSharedFilter(f.Filter) || f.RetainHandling == 2 || f.RetainHandling == 1 && !isNew[f.Filter]
	})
	s, queues := &c.session.Session, sub.topics.Queues()
	filters := make([]string, len(subs))
	for i, f := range subs {
		filters[i] = f.Filter
	}
	queues.ForgetRetained(s, filters...)
	for _, f := range subs {
		o := pubsub.Options{QoS: f.QoS}
		if f.Identifier != 0 {
			o.IDs = []int{f.Identifier}
		}
		queues.PutRetained(s, f.Filter, sub.topics.RetainedFor(s, f.Filter), o)
	}
}

// unsubscribe deals with an UNSUBSCRIBE (MQTT 5, 3.10).
func (sub *subscriber) unsubscribe(c *conn, pk packets.Packet) error {
	if code := pk.UnsubscribeValidate(); code != packets.CodeSuccess {
		return code
	}
	had := c.allowance(sub.maxSubscriptions)
	var filters []string
	reasons := make([]byte, len(pk.Filters))
	for i, f := range pk.Filters {
		if !had.has(f.Filter) {
			reasons[i] = packets.CodeNoSubscriptionExisted.Code
			continue
		}
		delete(had.filters, f.Filter)
		filters = append(filters, f.Filter)
	}
	if err := c.session.Unsubscribe(filters); err != nil {
		sub.logger.Error("cannot store that subscriptions have ended; after a restart they may be back",
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
