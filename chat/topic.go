package chat

import "strings"

// MaxIDLen is the longest id of a user, device, service or group, in bytes.
const MaxIDLen = 64

// ValidID reports whether s is an id: 1–64 characters of A-Z a-z 0-9 _ . ~ -.
func ValidID(s string) bool {
	if s == "" || len(s) > MaxIDLen {
		return false
	}
	for i := range len(s) {
		if !idByte[s[i]] {
			return false
		}
	}
	return true
}

// idByte says which bytes may stand in an id.
var idByte = func() (t [256]bool) {
	for c := range t {
		b := byte(c)
		t[c] = b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' ||
			b == '_' || b == '.' || b == '~' || b == '-'
	}
	return t
}()

// Prefixes of the topics that are the chat's own.
const (
	userPrefix     = "user/"
	groupPrefix    = "group/"
	presencePrefix = "presence/"
	signalSuffix   = "/signal"
	errorSuffix    = "/error"
)

// RenewTopic is where a client publishes a fresh token to stay connected.
const RenewTopic = "$mynah/token"

// Kind says what a topic is for.
type Kind uint8

// The kinds of topic. The zero Kind is a topic outside the chat.
const (
	KindPlain       Kind = iota // not a chat topic: plain MQTT, ruled by the token's acl
	KindUser                    // user/<id>: direct messages, logged
	KindGroup                   // group/<id>: a group's messages, logged
	KindUserSignal              // user/<id>/signal: not logged, QoS 0
	KindGroupSignal             // group/<id>/signal: not logged, QoS 0
	KindUserError               // user/<id>/error: the broker's refusals
	KindPresence                // presence/<id>: retained online state
	KindRenew                   // $mynah/token
	KindReserved                // below user/, group/, presence/ or $ but none of the above, or empty
)

// OfChat reports whether people publish messages of the chat to topics of the kind, kept
// ones or signals.
func (k Kind) OfChat() bool {
	switch k {
	case KindUser, KindGroup, KindUserSignal, KindGroupSignal:
		return true
	}
	return false
}

// Topic is a parsed topic name.
type Topic struct {
	Kind Kind
	ID   string // the user's or group's id; "" for KindPlain, KindRenew and KindReserved
}

// ParseTopic tells what a topic name (without wildcards) stands for.
func ParseTopic(name string) Topic {
	switch {
	case strings.HasPrefix(name, userPrefix):
		return parseBelow(name[len(userPrefix):], KindUser, KindUserSignal)
	case strings.HasPrefix(name, groupPrefix):
		return parseBelow(name[len(groupPrefix):], KindGroup, KindGroupSignal)
	case strings.HasPrefix(name, presencePrefix):
		if id := name[len(presencePrefix):]; ValidID(id) {
			return Topic{KindPresence, id}
		}
		return Topic{Kind: KindReserved}
	case name == RenewTopic:
		return Topic{Kind: KindRenew}
	case name == "", name == "user", name == "group", name == "presence", strings.HasPrefix(name, "$"):
		// "" is no topic (MQTT 5, 4.7.3), but what a publish with an alias
		// that was never resolved has: no acl may allow it.
		return Topic{Kind: KindReserved}
	}
	return Topic{Kind: KindPlain}
}

// parseBelow parses what follows user/ or group/.
func parseBelow(rest string, logged, signal Kind) Topic {
	if ValidID(rest) {
		return Topic{logged, rest}
	}
	if id, ok := strings.CutSuffix(rest, signalSuffix); ok && ValidID(id) {
		return Topic{signal, id}
	}
	if id, ok := strings.CutSuffix(rest, errorSuffix); ok && logged == KindUser && ValidID(id) {
		return Topic{KindUserError, id}
	}
	return Topic{Kind: KindReserved}
}

// UserTopic returns the topic of a user's direct messages.
func UserTopic(id string) string { return userPrefix + id }

// GroupTopic returns the topic of a group's messages.
func GroupTopic(id string) string { return groupPrefix + id }

// ErrorTopic returns the topic on which the broker explains refusals to a user.
func ErrorTopic(id string) string { return userPrefix + id + errorSuffix }

// PresenceTopic returns the topic that says whether a user is online.
func PresenceTopic(id string) string { return presencePrefix + id }

// IsBridgeState reports whether a topic is where a bridge of Mosquitto tells its peer whether
// it is connected, with a retained message and a will: $SYS/broker/connection/<id>/state. Who
// says so here is heard and not passed on.
func IsBridgeState(topic string) bool {
	id, ok := strings.CutPrefix(topic, "$SYS/broker/connection/")
	id, state := strings.CutSuffix(id, "/state")
	return ok && state && id != "" && !strings.Contains(id, "/") && !strings.ContainsAny(id, "+#")
}

// Conversation returns the conversation that a message from sender to the chat
// topic to belongs to: group/<id>, or dm/<a>/<b> with the two ids in byte order.
// It returns "" if to is not user/<id> or group/<id>.
func Conversation(sender, to string) string {
	switch t := ParseTopic(to); t.Kind {
	case KindGroup:
		return to
	case KindUser:
		a, b := sender, t.ID
		if b < a {
			a, b = b, a
		}
		return "dm/" + a + "/" + b
	default:
		return ""
	}
}
