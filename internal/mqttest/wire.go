package mqttest

import (
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/internal/mqttwire"
)

// Tests use Mochi's packet types, as the broker does, but not Mochi's codec. The bytes are
// encoded and decoded by mqttwire. Otherwise a mistake of Mochi's codec would be on both
// sides, and no test would find it.

// encode returns the packet as the version writes it.
func encode(version byte, pk *packets.Packet) []byte {
	p := mqttwire.Packet{
		Type: pk.FixedHeader.Type, Dup: pk.FixedHeader.Dup, QoS: pk.FixedHeader.Qos, Retain: pk.FixedHeader.Retain,
		ID: pk.PacketID, Topic: pk.TopicName, Payload: pk.Payload, Reason: pk.ReasonCode, SessionPresent: pk.SessionPresent,
		Codes: pk.ReasonCodes, Properties: properties(&pk.Properties),
	}
	for _, f := range pk.Filters {
		p.Filters = append(p.Filters, mqttwire.Filter{
			Topic: f.Filter, QoS: f.Qos, NoLocal: f.NoLocal, RetainAsPublished: f.RetainAsPublished, RetainHandling: f.RetainHandling,
		})
		if f.Identifier > 0 && len(pk.Properties.SubscriptionIdentifier) == 0 {
			p.Properties = p.Properties.WithInt(mqttwire.SubscriptionIdentifier, uint32(f.Identifier))
		}
	}
	if p.Type == mqttwire.CONNECT {
		c := &pk.Connect
		p.Connect = &mqttwire.Connect{
			Version: version, ClientID: c.ClientIdentifier, Username: string(c.Username), Password: string(c.Password),
			Clean: c.Clean, KeepAlive: c.Keepalive, Properties: p.Properties,
		}
		if c.WillFlag {
			p.Connect.Will = &mqttwire.Will{
				Topic: c.WillTopic, Payload: c.WillPayload, QoS: c.WillQos, Retain: c.WillRetain, Properties: properties(&c.WillProperties),
			}
		}
	}
	return p.Append(nil, version)
}

// decode reads one whole packet.
func decode(frame []byte, version byte) (packets.Packet, error) {
	p, err := mqttwire.Decode(frame, version)
	if err != nil {
		return packets.Packet{}, err
	}
	pk := packets.Packet{
		FixedHeader:     packets.FixedHeader{Type: p.Type, Dup: p.Dup, Qos: p.QoS, Retain: p.Retain},
		ProtocolVersion: version, PacketID: p.ID, TopicName: p.Topic, Payload: p.Payload, ReasonCode: p.Reason,
		SessionPresent: p.SessionPresent, ReasonCodes: p.Codes,
	}
	for one := range p.Properties.All() {
		setProperty(&pk.Properties, one)
	}
	return pk, nil
}

// properties encodes the properties that tests send.
func properties(from *packets.Properties) mqttwire.Properties {
	var p mqttwire.Properties
	number := func(id byte, n uint32, set bool) {
		if set || n > 0 {
			p = p.WithInt(id, n)
		}
	}
	text := func(id byte, s string) {
		if s != "" {
			p = p.WithText(id, s)
		}
	}
	number(mqttwire.PayloadFormatIndicator, uint32(from.PayloadFormat), from.PayloadFormatFlag)
	number(mqttwire.MessageExpiryInterval, from.MessageExpiryInterval, false)
	text(mqttwire.ContentType, from.ContentType)
	text(mqttwire.ResponseTopic, from.ResponseTopic)
	text(mqttwire.CorrelationData, string(from.CorrelationData))
	for _, id := range from.SubscriptionIdentifier {
		p = p.WithInt(mqttwire.SubscriptionIdentifier, uint32(id))
	}
	number(mqttwire.SessionExpiryInterval, from.SessionExpiryInterval, from.SessionExpiryIntervalFlag)
	text(mqttwire.AuthenticationMethod, from.AuthenticationMethod)
	text(mqttwire.AuthenticationData, string(from.AuthenticationData))
	number(mqttwire.RequestProblemInformation, uint32(from.RequestProblemInfo), from.RequestProblemInfoFlag)
	number(mqttwire.WillDelayInterval, from.WillDelayInterval, false)
	number(mqttwire.RequestResponseInformation, uint32(from.RequestResponseInfo), false)
	text(mqttwire.ReasonString, from.ReasonString)
	number(mqttwire.ReceiveMaximum, uint32(from.ReceiveMaximum), false)
	number(mqttwire.TopicAliasMaximum, uint32(from.TopicAliasMaximum), false)
	number(mqttwire.TopicAlias, uint32(from.TopicAlias), from.TopicAliasFlag)
	number(mqttwire.MaximumPacketSize, from.MaximumPacketSize, false)
	for _, u := range from.User {
		p = p.WithUser(u.Key, u.Val)
	}
	return p
}

// setProperty copies one decoded property into Mochi's type.
func setProperty(p *packets.Properties, one mqttwire.Property) {
	switch one.ID {
	case mqttwire.PayloadFormatIndicator:
		p.PayloadFormat, p.PayloadFormatFlag = byte(one.Int), true
	case mqttwire.MessageExpiryInterval:
		p.MessageExpiryInterval = one.Int
	case mqttwire.ContentType:
		p.ContentType = one.Text
	case mqttwire.ResponseTopic:
		p.ResponseTopic = one.Text
	case mqttwire.CorrelationData:
		p.CorrelationData = []byte(one.Text)
	case mqttwire.SubscriptionIdentifier:
		p.SubscriptionIdentifier = append(p.SubscriptionIdentifier, int(one.Int))
	case mqttwire.SessionExpiryInterval:
		p.SessionExpiryInterval, p.SessionExpiryIntervalFlag = one.Int, true
	case mqttwire.AssignedClientIdentifier:
		p.AssignedClientID = one.Text
	case mqttwire.ServerKeepAlive:
		p.ServerKeepAlive, p.ServerKeepAliveFlag = uint16(one.Int), true
	case mqttwire.AuthenticationMethod:
		p.AuthenticationMethod = one.Text
	case mqttwire.AuthenticationData:
		p.AuthenticationData = []byte(one.Text)
	case mqttwire.ResponseInformation:
		p.ResponseInfo = one.Text
	case mqttwire.ServerReference:
		p.ServerReference = one.Text
	case mqttwire.ReasonString:
		p.ReasonString = one.Text
	case mqttwire.ReceiveMaximum:
		p.ReceiveMaximum = uint16(one.Int)
	case mqttwire.TopicAliasMaximum:
		p.TopicAliasMaximum = uint16(one.Int)
	case mqttwire.TopicAlias:
		p.TopicAlias, p.TopicAliasFlag = uint16(one.Int), true
	case mqttwire.MaximumQoS:
		p.MaximumQos, p.MaximumQosFlag = byte(one.Int), true
	case mqttwire.RetainAvailable:
		p.RetainAvailable, p.RetainAvailableFlag = byte(one.Int), true
	case mqttwire.UserProperty:
		p.User = append(p.User, packets.UserProperty{Key: one.Name, Val: one.Text})
	case mqttwire.MaximumPacketSize:
		p.MaximumPacketSize = one.Int
	case mqttwire.WildcardSubscriptionAvailable:
		p.WildcardSubAvailable, p.WildcardSubAvailableFlag = byte(one.Int), true
	case mqttwire.SubscriptionIdentifierAvailable:
		p.SubIDAvailable, p.SubIDAvailableFlag = byte(one.Int), true
	case mqttwire.SharedSubscriptionAvailable:
		p.SharedSubAvailable, p.SharedSubAvailableFlag = byte(one.Int), true
	}
}
