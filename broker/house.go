package broker

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/msglog"
	"mynah/chat"
)

// LastTopic is where the broker tells, retained, the seq of the newest message in the
// log, as decimal text. Roles that may read $SYS/# can measure by it how far behind
// they are.
const LastTopic = "$SYS/mynah/log/last"

// retainedPrefix begins the keys of retained messages of plain topics.
const retainedPrefix = "retained/"

// keepHouse does what is due every so often, until the broker stops.
func (b *Broker) keepHouse() {
	second, minute := time.NewTicker(time.Second), time.NewTicker(time.Minute)
	defer second.Stop()
	defer minute.Stop()
	var told uint64
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-second.C:
			if _, last := b.log.Bounds(); last != told {
				told = last
				if err := b.mochi.Publish(LastTopic, strconv.AppendUint(nil, last, 10), true, 0); err != nil {
					b.logger.Warn("cannot tell the position of the log", "topic", LastTopic, "error", err)
				}
			}
		case <-minute.C:
			b.trim()
		}
	}
}

// trim forgets messages that are old enough, and archived.
func (b *Broker) trim() {
	if b.cfg.Retention == (msglog.Retention{}) {
		return
	}
	archived := uint64(math.MaxUint64)
	if !b.cfg.NoArchive {
		// As long as no archiver has ever come, nothing may be forgotten.
		archived, _ = b.engine.Archived()
	}
	if _, err := b.log.Enforce(b.ctx, b.cfg.Retention, archived); err != nil && !errors.Is(err, context.Canceled) {
		b.logger.Error("cannot trim the message log", "error", err)
	}
}

// storedRetained is a retained message of a plain topic as it is stored.
type storedRetained struct {
	Topic   string `json:"topic"`
	Payload []byte `json:"payload"`
	QoS     byte   `json:"qos"`
	Created int64  `json:"created"` // seconds since 1970
	Expiry  int64  `json:"expiry"`  // seconds since 1970, 0 for never
}

// OnRetainMessage stores a retained message of a plain topic (r is 1), or forgets it
// (-1), so that it survives a restart.
func (h *hook) OnRetainMessage(cl *mqtt.Client, pk packets.Packet, r int64) {
	if cl.Net.Inline && chat.ParseTopic(pk.TopicName).Kind != chat.KindPlain {
		return // presence and $SYS have stores of their own or need none
	}
	op := msglog.Op{Key: retainedPrefix + pk.TopicName, Delete: r < 1}
	if r == 1 {
		v, err := json.Marshal(storedRetained{pk.TopicName, pk.Payload, pk.FixedHeader.Qos, pk.Created, pk.Expiry})
		if err != nil {
			return
		}
		op.Value = v
	}
	if err := h.b.log.Sessions().Apply([]msglog.Op{op}, false); err != nil {
		h.b.logger.Warn("cannot store a retained message; it will be gone after a restart", "topic", pk.TopicName, "error", err)
	}
}

// OnRetainedExpired forgets a retained message whose time is over.
func (h *hook) OnRetainedExpired(topic string) {
	op := msglog.Op{Key: retainedPrefix + topic, Delete: true}
	if err := h.b.log.Sessions().Apply([]msglog.Op{op}, false); err != nil {
		h.b.logger.Warn("cannot forget a retained message", "topic", topic, "error", err)
	}
}

// restoreRetained gives Mochi the retained messages that were stored.
func (b *Broker) restoreRetained() error {
	now := time.Now().Unix()
	return b.log.Sessions().Scan(retainedPrefix, func(_ string, value []byte) bool {
		var m storedRetained
		if json.Unmarshal(value, &m) == nil && (m.Expiry <= 0 || m.Expiry > now) {
			b.mochi.Topics.RetainMessage(packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Publish, Retain: true, Qos: m.QoS},
				TopicName:   m.Topic, Payload: m.Payload, Created: m.Created, Expiry: m.Expiry,
				ProtocolVersion: 5, // or Mochi does not look at Expiry
			})
		}
		return true
	})
}

// changed follows the directory: whoever has joined a group gets its messages from now
// on, whoever has left gets no more. Accounts that were disabled are the auth hook's.
func (b *Broker) changed(ch authhook.Change) {
	switch ch.Kind {
	case authhook.ChangeJoined, authhook.ChangeLeft:
		b.memberships.Add(1) // before looking at who is there: see regroupSince
		for _, s := range b.engine.Sessions(ch.Subject) {
			var err error
			if c, ok := b.conns.Load(s.Attached()); ok {
				err = b.regroup(c.(*conn)) //nolint:forcetypeassert // conns holds nothing else
			} else {
				err = s.ChangeGroup(ch.Group, ch.Kind == authhook.ChangeJoined)
			}
			if err != nil {
				b.logger.Error("cannot bring a session's groups up to date", "subject", ch.Subject, "group", ch.Group, "error", err)
			}
		}
	case authhook.ChangeAll:
		b.memberships.Add(1)
		b.conns.Range(func(_, v any) bool {
			c := v.(*conn) //nolint:forcetypeassert // conns holds nothing else
			if err := b.regroup(c); err != nil {
				b.logger.Error("cannot bring a session's groups up to date", "subject", c.subject(), "error", err)
			}
			return b.ctx.Err() == nil
		})
	case authhook.ChangeRights, authhook.ChangeDisabled:
		// Rights are asked for with every publish; the auth hook ends connections.
	}
}

// regroup asks anew which groups a connected subject is in, until the answer is not
// older than the last change.
func (b *Broker) regroup(c *conn) error {
	for {
		before := b.memberships.Load()
		groups, err := b.groups(b.identity(c))
		if err != nil {
			return err
		}
		if err := c.session.SetGroups(groups); err != nil || b.memberships.Load() == before {
			return err
		}
	}
}

// regroupSince is called when a session has been told groups that were asked for when
// memberships was before. A change since then may have come to the session first, and
// been overwritten.
func (b *Broker) regroupSince(c *conn, before uint64) {
	if b.memberships.Load() == before {
		return
	}
	if err := b.regroup(c); err != nil {
		b.logger.Error("cannot bring a session's groups up to date", "subject", c.subject(), "error", err)
	}
}
