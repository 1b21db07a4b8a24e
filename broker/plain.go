package broker

import (
	"bytes"
	"fmt"

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
