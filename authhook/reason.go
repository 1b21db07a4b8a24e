package authhook

import (
	"errors"
	"strings"

	"mynah/chat"
)

// WhyNotPublish returns a refusal of CanPublish or CanWill for the client: with what is
// wrong with the topic, or whose it is, and the remedy. Reasons of the directory are its own,
// and nil stays nil.
func WhyNotPublish(id *Identity, topic string, err error) error {
	switch refusal, _ := errors.AsType[*chat.Error](err); refusal {
	case refusedTopic:
		switch {
		case topic == "":
			return chat.Refuse(chat.CodeBadTopic, "the topic is empty; name one, such as user/<id> or group/<id>")
		case !strings.ContainsAny(topic, "+#"):
			return chat.Refuse(chat.CodeBadTopic, "not a topic name; it has to be UTF-8 without U+0000, of at most 65,535 bytes")
		}
	case refusedRole:
		return chat.Refuse(chat.CodeNotAllowed, roleMayNot(id, "publish there"))
	case refusedPublish:
		reason := chat.Misnamed(topic)
		if reason == "" {
			reason = "acl.pub of your token has no filter for " + chat.Shown(topic) +
				"; ask for a token that has one, or publish to user/<id> or group/<id>"
		}
		return chat.Refuse(chat.CodeNotAllowed, reason)
	case refusedReserved:
		return chat.Refuse(chat.CodeNotAllowed, whyReserved(topic))
	}
	return err
}

// whyReserved says why nobody publishes to a topic.
func whyReserved(topic string) string {
	if reason := chat.Misnamed(topic); reason != "" {
		return reason
	}
	first, rest, _ := strings.Cut(topic, "/")
	switch {
	case first == "user":
		return "only the broker publishes to user/<id>/error; write to user/<id>"
	case first == "presence":
		return "only the broker publishes to presence/<id>, when somebody comes or goes; tell other things on user/<id>/signal or group/<id>/signal"
	case first == "$SYS":
		return "only the broker publishes below $SYS/; choose a topic that does not begin with $"
	case first+"/" == sharePrefix:
		_, inner, _ := strings.Cut(rest, "/")
		return "$share/ is for subscriptions; publish to " + chat.Shown(inner)
	case first == "$mynah":
		return "below $mynah/ there is " + chat.RenewTopic + " alone, for a fresh token"
	}
	return "topics that begin with $ are the broker's; choose one that does not"
}

// WhyNotSubscribe returns a refusal of CanSubscribe for the client, as WhyNotPublish does.
func WhyNotSubscribe(id *Identity, filter string, err error) error {
	inner, _, _ := unshare(filter)
	switch refusal, _ := errors.AsType[*chat.Error](err); refusal {
	case refusedShared:
		if reason := chat.Misnamed(inner); reason != "" {
			return chat.Refuse(chat.CodeNotAllowed, reason)
		}
	case refusedFilter:
		if filter == "" {
			return chat.Refuse(chat.CodeBadTopic, "the filter is empty; name one, such as user/<me> or group/+")
		}
	case refusedSubscribe:
		return chat.Refuse(chat.CodeNotAllowed, whyUnreadable(id, inner))
	}
	return err
}

// whyUnreadable says why somebody may not subscribe to a filter.
func whyUnreadable(id *Identity, filter string) string {
	if id.rights() == nil {
		return roleMayNot(id, "subscribe")
	}
	if reason := chat.Misnamed(filter); reason != "" {
		return reason
	}
	first, _, _ := strings.Cut(filter, "/")
	wild := strings.ContainsAny(filter, "+#")
	switch {
	case first == "user" && wild:
		return "what is below user/ is for each alone, and all of it for roles service and admin (user/# for archiver); yours is " + chat.UserTopic(id.Subject)
	case first == "user":
		return "that is for " + chat.ParseTopic(filter).ID + " alone; yours is " + chat.UserTopic(id.Subject)
	case first == "group":
		return "all of group/ is for roles service and admin (group/# for archiver); subscribe to group/+ and group/+/signal for the groups that you are in"
	case first == "presence":
		return "presence of all is for roles service and admin; subscribe to presence/<id> of each"
	case first == "$SYS":
		return "$SYS/ is for roles archiver, service and admin; connect with a token of one of them"
	case first == "$mynah":
		return "nothing is sent on $mynah/; publish a fresh token to " + chat.RenewTopic + " to stay connected"
	case strings.HasPrefix(first, "$"):
		return "of what begins with $ there are $SYS/ and $share/<name>/<filter> alone; choose a topic that does not begin with $"
	}
	return "acl.sub of your token has no filter that covers " + chat.Shown(filter) +
		"; ask for a token that has one. The chat is on " + chat.UserTopic(id.Subject) + " and group/+"
}

// roleMayNot says that a role has not the right to do something.
func roleMayNot(id *Identity, do string) string {
	if id == nil {
		return "the connection has no holder any more; connect again"
	}
	return "role " + chat.Shown(string(id.Role)) + " may not " + do + "; connect with a token of role user, device, service or admin"
}
