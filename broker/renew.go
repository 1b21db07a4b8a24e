package broker

import (
	"context"
	"slices"
	"strings"

	"mynah/authhook"
	"mynah/broker/session"
)

// renew lets a client stay with a fresh token of the same holder.
func (sub *subscriber) renew(c *conn, token []byte) error {
	ctx, cancel := context.WithTimeout(sub.rights.ctx, subscribeTimeout)
	defer cancel()
	old := sub.rights.identity(c)
	if old == nil {
		return errNotDecided // its token ends this moment
	}
	id, err := sub.rights.auth.Renew(ctx, c.client, strings.TrimSpace(string(token)))
	if err != nil {
		c.renewalsRefused.Do(func() {
			sub.logger.Info("a token for renewal was refused", "subject", c.subject(), "client_id", c.clientID, "reason", err)
		})
		return authhook.ClientError(err)
	}
	sub.forgetForbidden(&c.session.Session)
	groups, unknown := sub.rights.groups(id)
	if unknown != nil {
		// Those of the old token are gone for certain; what the directory said stays.
		sub.logger.Warn("the groups of a client with a fresh token cannot be looked up; it keeps those that it had not from its old token",
			"subject", c.subject(), "error", unknown)
		kept := slices.DeleteFunc(c.session.GroupIDs(), func(g string) bool { return slices.Contains(old.Groups, g) })
		groups = append(kept, groups...)
	}
	return c.session.SetGroups(groups)
}

// mayReceive reports whether a session's client may read a topic by the token that it has
// now. What comes while it is away is kept, and asked about when it is back.
func (sub *subscriber) mayReceive(s *session.Session, topic string) bool {
	c := sub.conns.ofSession(s)
	if c == nil {
		return true
	}
	id := sub.rights.identity(c)
	return id == nil || sub.rights.canRead(id, topic) == nil
}

// forgetForbidden takes out of a session's queue what its client may not read any more.
func (sub *subscriber) forgetForbidden(s *session.Session) {
	forbidden := map[string]struct{}{}
	for _, topic := range sub.topics.Queues().Topics(s) {
		if !sub.mayReceive(s, topic) {
			forbidden[topic] = struct{}{}
		}
	}
	if len(forbidden) > 0 {
		sub.topics.Queues().ForgetTopics(s, forbidden)
	}
}
