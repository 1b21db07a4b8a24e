package broker

import (
	"context"
	"time"

	"mynah/authhook"
	"mynah/chat"
)

// Bounds of what is waited for the directory, when it has to look something up.
const (
	// publishTimeout is for a publish.
	publishTimeout = 2 * time.Second
	// subscribeTimeout is for a SUBSCRIBE, with all its filters: what is behind it on its
	// connection waits, too.
	subscribeTimeout = 5 * time.Second
)

// rights answers who a client is and what it may do by the token that it has now.
type rights struct {
	ctx     context.Context // ends when the broker stops
	auth    *authhook.Hook
	policy  *authhook.Policy
	lookups bool // the policy may have to wait for a directory
}

// identity returns who is at the other end, nil once the connection is about to end.
func (r *rights) identity(c *conn) *authhook.Identity { return r.auth.Identity(c.client) }

// groups returns the groups that somebody is in. If the directory cannot tell, it
// returns those of the token and the error.
func (r *rights) groups(id *authhook.Identity) ([]string, error) {
	if id == nil {
		return nil, chat.Refuse(chat.CodeUnavailable, "not connected")
	}
	ctx, cancel := context.WithTimeout(r.ctx, subscribeTimeout)
	defer cancel()
	groups, err := r.policy.Groups(ctx, id)
	if err != nil {
		return id.Groups, err
	}
	return groups, nil
}

// canPublish returns why somebody may not publish to a topic.
func (r *rights) canPublish(id *authhook.Identity, topic string) error {
	ctx, cancel := r.within(publishTimeout)
	defer cancel()
	return r.policy.CanPublish(ctx, id, topic)
}

// canRead returns why somebody may not have a topic's messages.
func (r *rights) canRead(id *authhook.Identity, topic string) error {
	ctx, cancel := r.within(subscribeTimeout)
	defer cancel()
	return r.policy.CanSubscribe(ctx, id, topic)
}

// within returns a context for a question to the policy. Without a directory the policy
// never waits, and a timer for each publish would be for nothing.
func (r *rights) within(timeout time.Duration) (context.Context, context.CancelFunc) {
	if !r.lookups {
		return r.ctx, func() {}
	}
	return context.WithTimeout(r.ctx, timeout)
}
