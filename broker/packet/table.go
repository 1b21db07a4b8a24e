package packet

import "github.com/mochi-mqtt/server/v2/packets"

// Type is the type of a packet that a client sends (MQTT 5, 2.1.2), or Will for the second
// set of properties in a CONNECT.
type Type uint8

// The packets that a client sends.
const (
	Connect     Type = Type(packets.Connect)
	Publish     Type = Type(packets.Publish)
	Puback      Type = Type(packets.Puback)
	Pubrec      Type = Type(packets.Pubrec)
	Pubrel      Type = Type(packets.Pubrel)
	Pubcomp     Type = Type(packets.Pubcomp)
	Subscribe   Type = Type(packets.Subscribe)
	Unsubscribe Type = Type(packets.Unsubscribe)
	Pingreq     Type = Type(packets.Pingreq)
	Disconnect  Type = Type(packets.Disconnect)
	Auth        Type = Type(packets.Auth)
	Will        Type = 16 // no packet type is that large
)

// packetRule says what a packet of a type may carry when a client sends it. Only PUBLISH
// has bytes after the parts that are named here.
type packetRule struct {
	fromClient bool        // by clients; the others are the server's, or reserved
	anyFlags   bool        // any flags of the fixed header are allowed (PUBLISH)
	flags      byte        // otherwise
	properties propertySet // with MQTT 5
	reasons    []byte      // with MQTT 5, where the packet has a reason code
}

// packetRules holds the rule of each type.
var packetRules = [17]packetRule{
	Connect: {fromClient: true, properties: propertiesOf(SessionExpiry, ReceiveMaximum, MaximumPacketSize, TopicAliasMaximum,
		RequestResponseInfo, RequestProblemInfo, User, AuthMethod, AuthData)}, // 3.1.2.11
	Will: {properties: propertiesOf(WillDelay, PayloadFormat, MessageExpiry, ContentType, ResponseTopic, CorrelationData, User)}, // 3.1.3.2
	Publish: {fromClient: true, anyFlags: true, properties: propertiesOf(PayloadFormat, MessageExpiry, TopicAlias, ResponseTopic,
		CorrelationData, User, SubscriptionID, ContentType)}, // 3.3.2.3; the broker refuses what only a server may send
	Puback:      {fromClient: true, properties: propertiesOf(ReasonString, User), reasons: publishReasons},          // 3.4.2
	Pubrec:      {fromClient: true, properties: propertiesOf(ReasonString, User), reasons: publishReasons},          // 3.5.2
	Pubrel:      {fromClient: true, flags: 2, properties: propertiesOf(ReasonString, User), reasons: pubrelReasons}, // 3.6
	Pubcomp:     {fromClient: true, properties: propertiesOf(ReasonString, User), reasons: pubrelReasons},           // 3.7.2
	Subscribe:   {fromClient: true, flags: 2, properties: propertiesOf(SubscriptionID, User)},                       // 3.8
	Unsubscribe: {fromClient: true, flags: 2, properties: propertiesOf(User)},                                       // 3.10
	Pingreq:     {fromClient: true},                                                                                 // 3.12
	Disconnect: {fromClient: true, properties: propertiesOf(SessionExpiry, ReasonString, User), reasons: []byte{
		0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99,
	}}, // 3.14.2
	Auth: {fromClient: true}, // never accepted: no authentication method is
}

var (
	publishReasons = []byte{0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}
	pubrelReasons  = []byte{0x00, 0x92}
)

// CheckFirstByte returns an error for the first byte of a packet if no client sends its
// type, or if the type does not have its flags (MQTT 5, 2.1.3).
func CheckFirstByte(head byte) error {
	switch r := &packetRules[head>>4]; {
	case !r.fromClient:
		return packets.ErrProtocolViolation
	case !r.anyFlags && head&0x0F != r.flags:
		return packets.ErrMalformedFlags // [MQTT-2.1.3-1]
	}
	return nil
}
