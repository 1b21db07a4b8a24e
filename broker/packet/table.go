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

// rule says what a packet of a type may carry when a client sends it. No packet but PUBLISH
// has anything behind what is named here.
type rule struct {
	sent       bool   // by clients; the others are the server's, or reserved
	anyFlags   bool   // of the fixed header: PUBLISH says something with them
	flags      byte   // otherwise
	properties set    // with MQTT 5
	reasons    []byte // with MQTT 5, where the packet has a reason code
}

// table is the one place that says so, for all types.
var table = [17]rule{
	Connect: {sent: true, properties: of(SessionExpiry, ReceiveMaximum, MaximumPacketSize, TopicAliasMaximum,
		RequestResponseInfo, RequestProblemInfo, User, AuthMethod, AuthData)}, // 3.1.2.11
	Will: {properties: of(WillDelay, PayloadFormat, MessageExpiry, ContentType, ResponseTopic, CorrelationData, User)}, // 3.1.3.2
	Publish: {sent: true, anyFlags: true, properties: of(PayloadFormat, MessageExpiry, TopicAlias, ResponseTopic,
		CorrelationData, User, SubscriptionID, ContentType)}, // 3.3.2.3; what of it only a server may say, the broker refuses
	Puback:      {sent: true, properties: of(ReasonString, User), reasons: publishReasons},         // 3.4.2
	Pubrec:      {sent: true, properties: of(ReasonString, User), reasons: publishReasons},         // 3.5.2
	Pubrel:      {sent: true, flags: 2, properties: of(ReasonString, User), reasons: foundReasons}, // 3.6
	Pubcomp:     {sent: true, properties: of(ReasonString, User), reasons: foundReasons},           // 3.7.2
	Subscribe:   {sent: true, flags: 2, properties: of(SubscriptionID, User)},                      // 3.8
	Unsubscribe: {sent: true, flags: 2, properties: of(User)},                                      // 3.10
	Pingreq:     {sent: true},                                                                      // 3.12
	Disconnect: {sent: true, properties: of(SessionExpiry, ReasonString, User), reasons: []byte{
		0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99,
	}}, // 3.14.2
	Auth: {sent: true}, // never accepted: no authentication method is
}

var (
	publishReasons = []byte{0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}
	foundReasons   = []byte{0x00, 0x92}
)

// CheckHead returns what is wrong with the first byte of a packet: a type that no client
// sends, or flags that the type does not have (MQTT 5, 2.1.3).
func CheckHead(head byte) error {
	switch r := &table[head>>4]; {
	case !r.sent:
		return packets.ErrProtocolViolation
	case !r.anyFlags && head&0x0F != r.flags:
		return packets.ErrMalformedFlags // [MQTT-2.1.3-1]
	}
	return nil
}
