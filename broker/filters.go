package broker

import (
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// maxLevels is how many levels a topic or a filter outside the chat may have: each is a node
// of a tree.
const maxLevels = 128

func tooDeep(topic string) bool { return strings.Count(topic, "/") >= maxLevels }

// validFilter reports whether a topic filter is one (MQTT 5, 4.7 and 4.8.2), and not too
// deep.
func validFilter(filter string) bool {
	if tooDeep(filter) {
		return false
	}
	if mqtt.IsSharedFilter(filter) {
		var name string
		if name, filter = cutShared(filter); name == "" || strings.ContainsAny(name, "+#") {
			return false // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
		}
	}
	if filter == "" {
		return false // [MQTT-4.7.3-1]
	}
	for {
		level, rest, more := strings.Cut(filter, "/")
		switch {
		case len(level) > 1 && strings.ContainsAny(level, "+#"):
			return false // [MQTT-4.7.1-1], [MQTT-4.7.1-2]
		case level == "#" && more:
			return false // [MQTT-4.7.1-1]
		case !more:
			return true
		}
		filter = rest
	}
}

// matches reports whether a filter matches a topic (MQTT 5, 4.7).
func matches(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && !strings.HasPrefix(filter, "$") {
		return false // [MQTT-4.7.2-1]
	}
	for {
		f, fRest, fMore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, tRest, tMore := strings.Cut(topic, "/")
		switch {
		case f != "+" && f != t:
			return false
		case !fMore:
			return !tMore
		case !tMore:
			return fRest == "#" // which matches the parent, too
		}
		filter, topic = fRest, tRest
	}
}

// cutShared takes a shared subscription's filter apart (MQTT 5, 4.8.2).
func cutShared(filter string) (name, inner string) {
	name, inner, _ = strings.Cut(strings.TrimPrefix(filter[len(mqtt.SharePrefix):], "/"), "/")
	return name, inner
}

// checkSubscribe returns what is wrong with the variable header and the payload of a
// SUBSCRIBE (MQTT 5, 3.8.2 and 3.8.3; 3.1.1, 3.8.3). Mochi's codec runs off the end of one
// that is cut short and lets pass what is forbidden.
func checkSubscribe(body []byte, v5 bool) error {
	if len(body) < 2 {
		return packets.ErrMalformedPacketID
	}
	body = body[2:]
	if v5 {
		var err error
		if _, body, err = cutProperties(body, subscribeProps); err != nil {
			return err
		}
	}
	if len(body) == 0 {
		return packets.ErrProtocolViolationNoFilters // [MQTT-3.8.3-2]
	}
	reserved := byte(0xFC)
	if v5 {
		reserved = 0xC0
	}
	for len(body) > 0 {
		filter, rest, ok := cutString(body)
		if !ok || len(rest) == 0 {
			return packets.ErrMalformedPacket
		}
		options := rest[0]
		switch {
		case options&reserved != 0, options&3 == 3:
			return packets.ErrMalformedPacket // [MQTT-3.8.3-5], [MQTT-3-8.3-4]
		case options>>4&3 == 3:
			return packets.ErrProtocolViolation // Retain Handling (3.8.3.1)
		case options&4 != 0 && mqtt.IsSharedFilter(filter):
			return packets.ErrProtocolViolationInvalidSharedNoLocal // [MQTT-3.8.3-4]
		}
		body = rest[1:]
	}
	return nil
}

// checkUnsubscribe does the same for an UNSUBSCRIBE of MQTT 5 (3.10.2).
func checkUnsubscribe(body []byte) error {
	if len(body) < 2 {
		return packets.ErrMalformedPacketID
	}
	_, _, err := cutProperties(body[2:], unsubscribeProps)
	return err
}

// cutString takes a UTF-8 encoded string (MQTT 5, 1.5.4) from the front of b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	data, rest, ok := cutBytes(b)
	return string(data), rest, ok
}
