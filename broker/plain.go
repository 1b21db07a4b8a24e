package broker

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/chat"
)

// What Mochi does wrong with the packet ids and the size of messages on topics outside
// the chat: see MOCHI.md, "Loss and order".

// alias returns the packet id under which Mochi gets to know a client's PUBLISH: the
// client's own, unless Mochi has a message to the client under the same one, which it
// would take for the same packet and forget.
func (c *conn) alias(id uint16) uint16 {
	if id == 0 {
		return 0
	}
	if mochi := c.aliasOf(id); mochi != id {
		return mochi // it comes again
	}
	inflight := c.client.State.Inflight
	has, taken := inflight.Get(id)
	if !taken || has.FixedHeader.Type == packets.Pubrec { // the latter is the client's own
		return id
	}
	for mochi := uint16(65535); mochi > 0; mochi-- {
		_, taken := inflight.Get(mochi)
		if _, used := c.aliases[mochi]; taken || used {
			continue
		}
		if c.aliases == nil {
			c.aliases = map[uint16]uint16{}
		}
		c.aliases[mochi] = id
		return mochi
	}
	return id
}

// aliasOf returns Mochi's packet id of a PUBLISH of the client.
func (c *conn) aliasOf(id uint16) uint16 {
	for mochi, its := range c.aliases {
		if its == id {
			return mochi
		}
	}
	return id
}

// unalias returns the client's packet id of what Mochi acknowledges; done says that this
// ends the exchange.
func (c *conn) unalias(mochi uint16, done bool) uint16 {
	id, ok := c.aliases[mochi]
	if !ok {
		return mochi
	}
	if done {
		delete(c.aliases, mochi)
	}
	return id
}

// deferred are messages that Mochi was about to send to a client that has as many
// unacknowledged ones as its Receive Maximum allows. Mochi keeps an account of that too,
// but does not give back all that it takes, and deadlocks over it.
type deferred struct {
	n    atomic.Int32 // messages in list, or about to be
	mu   sync.Mutex   // taken before Session.mu
	list []packets.Packet
}

// lend gets a packet id for a message of Mochi's. It reports false if the message has to
// wait for room.
func (c *conn) lend(pk packets.Packet) (id uint16, ok bool) {
	d := &c.waiting
	d.n.Add(1) // before there is no room, so that whoever makes some sees it
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.list) == 0 {
		if id, ok = c.session.LendID(pk.PacketID); ok {
			d.n.Add(-1)
			return id, true
		}
	} else if id := c.session.Lent(pk.PacketID); id != 0 {
		d.n.Add(-1)
		return id, true
	}
	d.list = append(d.list, pk)
	return 0, false
}

// sendDeferred sends what has been waiting for an acknowledgement, as far as there is room.
func (c *conn) sendDeferred() {
	d := &c.waiting
	if d.n.Load() == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.list) > 0 {
		pk := d.list[0]
		if _, still := c.client.State.Inflight.Get(pk.PacketID); still {
			id, ok := c.session.LendID(pk.PacketID)
			if !ok {
				return
			}
			pk.PacketID = id
			if pk.Expiry > 0 {
				pk.Properties.MessageExpiryInterval = uint32(max(pk.Expiry-time.Now().Unix(), 1)) //nolint:gosec // as Mochi does
			}
			var b bytes.Buffer
			if pk.PublishEncode(&b) == nil {
				_, _ = c.Write(b.Bytes())
			}
		}
		d.list = slices.Delete(d.list, 0, 1)
		d.n.Add(-1)
	}
}

// resendPlain sends again what the client has not acknowledged on topics outside the chat,
// in the order in which it was sent, and then what it has not been sent. Mochi's own way
// orders by the second, and stops at the first that does not fit.
func (c *conn) resendPlain() {
	cl := c.client
	list := cl.State.Inflight.GetAll(false)
	lent := make(map[uint16]uint16, len(list))
	for _, pk := range list {
		lent[pk.PacketID] = c.session.Lent(pk.PacketID)
	}
	slices.SortStableFunc(list, func(a, b packets.Packet) int {
		idA, idB := lent[a.PacketID], lent[b.PacketID]
		switch {
		case idA != 0 && idB != 0:
			return int(int16(idA - idB)) //nolint:gosec // the ids go round
		case idA != 0:
			return -1
		case idB != 0:
			return 1
		}
		return int(int16(a.PacketID - b.PacketID)) //nolint:gosec // as above
	})
	for _, pk := range list {
		if pk.FixedHeader.Type == packets.Publish {
			pk.FixedHeader.Dup = lent[pk.PacketID] != 0 // [MQTT-3.3.1-1]
		}
		_ = cl.WritePacket(pk) // what cannot be written now is written by sendDeferred, or the connection is over
	}
}

// tooLargeFor reports whether a PUBLISH is longer than the client's Maximum Packet Size.
func tooLargeFor(cl *mqtt.Client, pk packets.Packet) bool {
	most := cl.Properties.Props.MaximumPacketSize
	if most == 0 {
		return false
	}
	var b bytes.Buffer
	pk.ProtocolVersion = cl.Properties.ProtocolVersion
	return pk.PublishEncode(&b) != nil || b.Len() > int(most)
}

// drop forgets a message of Mochi's that is too large for the client, as the
// specification has it [MQTT-3.1.2-25], and tells the client. Mochi keeps it, and then
// refuses the client's next connection because it cannot send it.
func (b *Broker) drop(c *conn, pk packets.Packet) {
	inflight := c.client.State.Inflight
	if inflight.Delete(pk.PacketID) {
		inflight.IncreaseSendQuota()
	}
	c.session.Return(c.Conn, pk.PacketID)
	refusal := chat.Refuse(chat.CodeTooLarge,
		fmt.Sprintf("a message on %s is larger than the maximum packet size that you announced", pk.TopicName))
	b.engine.Signal(chat.ErrorTopic(c.subject()), refusal.Payload(pk.TopicName, ""))
}

// dropTooLarge does so with what a client has inherited that now takes less than before.
func (b *Broker) dropTooLarge(c *conn) {
	for _, pk := range c.client.State.Inflight.GetAll(false) {
		if pk.FixedHeader.Type == packets.Publish && tooLargeFor(c.client, pk) {
			b.drop(c, pk)
		}
	}
}
