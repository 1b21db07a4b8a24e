package pubsub

import (
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"

	"mynah/broker/packet"
	"mynah/chat"
)

// MaxLevels is how many levels a topic or a filter outside the chat may have: each is a node
// of a tree.
const MaxLevels = 128

// TooDeep reports whether a topic or a filter has more than MaxLevels levels.
func TooDeep(topic string) bool { return strings.Count(topic, "/") >= MaxLevels }

// ValidFilter reports whether a topic filter is one (MQTT 5, 4.7 and 4.8.2), and not too
// deep.
func ValidFilter(filter string) bool { return !TooDeep(filter) && packet.ValidFilter(filter) }

// hidden reports whether a filter that begins with a wildcard does not match a topic: one that
// begins with $ [MQTT-4.7.2-1], and presence, which is for those who ask for it by name and
// may see it. An acl of "#" is about topics outside the chat.
func hidden(topic string) bool {
	return strings.HasPrefix(topic, "$") || chat.ParseTopic(topic).Kind == chat.KindPresence
}

// matches reports whether a filter matches a topic (MQTT 5, 4.7).
func matches(filter, topic string) bool {
	if first, _, _ := strings.Cut(filter, "/"); (first == "+" || first == "#") && hidden(topic) {
		return false
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
