package authhook

import (
	"errors"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/chat"
)

// connectRefusal is the reason for which a CONNECT is refused, as code of MQTT
// 5 and of 3.1.1.
type connectRefusal struct {
	v5 packets.Code // MQTT 5 section 3.2.2.2
	v3 byte         // MQTT 3.1.1 section 3.2.2.3
}

// The return codes of MQTT 3.1.1 that refuse.
const (
	v3BadClientID    byte = 2
	v3Unavailable    byte = 3
	v3BadCredentials byte = 4
	v3NotAuthorised  byte = 5
)

// connectRefusalOf maps the error of a refusal to the codes for the client. "Bad
// credentials" is for what is no valid token, "not authorised" for a holder who
// may not come in now, and "unavailable" for who is to try again.
func connectRefusalOf(err error) connectRefusal {
	told := ClientError(err)
	code := func(c packets.Code) packets.Code {
		c.Reason = told.Reason
		return c
	}
	switch {
	case errors.Is(err, errClientID):
		c := packets.ErrClientIdentifierNotValid
		c.Reason = errClientID.Error()
		return connectRefusal{v5: c, v3: v3BadClientID}
	case errors.Is(err, errAuthMethod):
		c := packets.ErrBadAuthenticationMethod
		c.Reason = errAuthMethod.Error()
		return connectRefusal{v5: c, v3: v3NotAuthorised}
	case told.Code == chat.CodeRateLimited:
		return connectRefusal{v5: code(packets.ErrConnectionRateExceeded), v3: v3Unavailable}
	case told.Code == chat.CodeUnavailable:
		return connectRefusal{v5: code(packets.ErrServerUnavailable), v3: v3Unavailable}
	case told.Code == chat.CodeBadTopic:
		return connectRefusal{v5: code(packets.ErrTopicNameInvalid), v3: v3NotAuthorised}
	}
	for _, reason := range []error{ErrTokenTooLong, ErrMalformed, ErrAlgorithm, ErrUnknownKey, ErrSignature, ErrIssuer, ErrAudience, ErrClaims} {
		if errors.Is(err, reason) {
			return connectRefusal{v5: code(packets.ErrBadUsernameOrPassword), v3: v3BadCredentials}
		}
	}
	return connectRefusal{v5: code(packets.ErrNotAuthorized), v3: v3NotAuthorised}
}

// refuse writes the CONNACK and returns the error with which OnConnect ends the
// connection. We write it ourselves: after OnConnect's error Mochi writes none,
// and the one that it writes when OnConnectAuthenticate says no is 0x86 without
// a reason for MQTT 5 and 5 for MQTT 3.1.1, whatever was wrong. It would also
// ask every other hook first and take any one's yes.
func (v connectRefusal) refuse(cl *mqtt.Client) error {
	code := v.v5.Code
	if cl.Properties.ProtocolVersion < 5 {
		code = v.v3
	}
	err := cl.WritePacket(packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connack},
		ReasonCode:  code,
		Properties:  packets.Properties{ReasonString: v.v5.Reason},
	})
	if err != nil {
		return errors.Join(v.v5, err)
	}
	return v.v5
}
