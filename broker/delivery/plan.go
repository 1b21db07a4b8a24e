package delivery

import (
	"mynah/broker/msglog"
	"mynah/broker/session"
	"mynah/chat"
)

// plan is what a session that is behind reads: its logged topics, or the whole log if
// it subscribes to every user's or every group's messages. A plan is never changed,
// only replaced.
type plan struct {
	topics []*topicSub
	users  *topicSub // subscription to all users' topics
	groups *topicSub // subscription to all groups' topics
	byName map[string]*topicSub
}

func newPlan(topics map[string]*topicSub) *plan {
	p := &plan{byName: topics}
	for topic, t := range topics {
		switch {
		case t.signal:
		case topic == session.AllUsers:
			p.users = t
		case topic == session.AllGroups:
			p.groups = t
		default:
			p.topics = append(p.topics, t)
		}
	}
	return p
}

// item is a message that a session is to get, and by which subscription.
type item struct {
	rec *msglog.Record
	sub *topicSub
}

// topic returns the topic of the item's PUBLISH and the prev that belongs to it.
func (it item) topic() (topic string, prev uint64) {
	switch it.sub.topic {
	case session.AllUsers, session.AllGroups, it.rec.To:
		return it.rec.To, it.rec.Prev
	}
	return it.sub.topic, it.rec.PrevSender
}

// match returns the subscription by which a subscriber to everything gets a message:
// the one by name, unless it is younger than the message.
func (p *plan) match(rec *msglog.Record) *topicSub {
	wild, sender := p.groups, (*topicSub)(nil)
	if chat.ParseTopic(rec.To).Kind != chat.KindGroup {
		wild, sender = p.users, p.byName[chat.UserTopic(rec.From)]
	}
	for _, t := range [...]*topicSub{p.byName[rec.To], wild, sender} {
		if t != nil && rec.Seq > t.since {
			return t
		}
	}
	return nil
}
