package authhook

import (
	"context"
	"errors"
	"slices"
	"strings"

	"mynah/chat"
)

// scope says how far a right goes.
type scope uint8

const (
	never    scope = iota // never
	byRule                // where the directory and the token's groups allow it
	anywhere              // wherever the topic kind is
)

// rights is what a role may do; roleRights is the whole of it.
type rights struct {
	role Role
	// Publish.
	toUsers  scope // user/<id> and its signal
	toGroups scope // group/<id> and its signal
	toPlain  scope // topics outside the chat; byRule is acl.pub
	// Subscribe. Everybody has their own user/<me>…, group/+ and what acl.sub
	// says of topics outside the chat.
	groups    scope // group/<id> and its signal
	presence  scope // presence/<id>; anywhere includes presence/+ and presence/#
	wildcards scope // filters below user/ and group/: byRule is user/# and group/# alone
	sys       scope // $SYS/#

	unlimited bool // no publish rate
}

// roleRights is the table of PROTOCOL.md, "Topics". Nobody publishes to
// presence/…, $SYS/…, user/<id>/error and other reserved topics, and everybody
// may publish to $mynah/token.
var roleRights = []rights{
	{role: RoleUser, toUsers: byRule, toGroups: byRule, toPlain: byRule, groups: byRule, presence: byRule},
	{role: RoleDevice, toUsers: byRule, toGroups: byRule, toPlain: byRule, groups: byRule, presence: byRule},
	{
		role: RoleService, toUsers: anywhere, toGroups: anywhere, toPlain: byRule,
		groups: anywhere, presence: anywhere, wildcards: anywhere, sys: anywhere, unlimited: true,
	},
	{role: RoleArchiver, groups: byRule, presence: byRule, wildcards: byRule, sys: anywhere, unlimited: true},
	{
		role: RoleAdmin, toUsers: anywhere, toGroups: anywhere, toPlain: byRule,
		groups: anywhere, presence: anywhere, wildcards: anywhere, sys: anywhere, unlimited: true,
	},
}

// rightsOf returns the rights of a role, or nil if there is no such role.
func rightsOf(role Role) *rights {
	for i := range roleRights {
		if roleRights[i].role == role {
			return &roleRights[i]
		}
	}
	return nil
}

// rights returns the rights of the identity's role, or nil if it has none.
func (id *Identity) rights() *rights {
	if id == nil {
		return nil
	}
	return rightsOf(id.Role)
}

// Refusals are values, made once: the publish path does not allocate for a
// client that asks for what it may not do. Those that stand for several faults are put into
// words, with the remedy, by WhyNotPublish and WhyNotSubscribe.
var (
	refusedTopic     = chat.Refuse(chat.CodeBadTopic, "not a topic name; wildcards are for subscriptions")
	refusedFilter    = chat.Refuse(chat.CodeBadTopic, "not a topic filter; + stands alone in its level, # alone in the last, and a shared one is $share/<name>/<filter>")
	refusedPublish   = chat.Refuse(chat.CodeNotAllowed, "you may not publish there")
	refusedSubscribe = chat.Refuse(chat.CodeNotAllowed, "you may not subscribe to that")
	refusedReserved  = chat.Refuse(chat.CodeNotAllowed, "only the broker publishes there")
	refusedRole      = chat.Refuse(chat.CodeNotAllowed, "this role may not publish")
	refusedMember    = chat.Refuse(chat.CodeNotMember, "you are not in this group; join it or ask to be invited")
	refusedShared    = chat.Refuse(chat.CodeNotAllowed, "chat topics cannot be shared subscriptions; subscribe without $share/<name>/")
	refusedRenewWill = chat.Refuse(chat.CodeNotAllowed, "a token is no will, since its connection is over by then; publish it to "+chat.RenewTopic+" while connected")
	refusedUnknown   = chat.Refuse(chat.CodeUnavailable, "cannot check that right now; try again")
)

// Policy decides who may do what. Its decisions follow from the identity, the
// Directory and the table of roles alone; all refusals are *chat.Error. A nil
// identity, as Hook.Identity returns for a client that is gone, may do nothing
// and is in no group. It is safe for concurrent use.
type Policy struct {
	dir Directory
}

// NewPolicy returns a policy over the directory; nil stands for OpenDirectory.
func NewPolicy(dir Directory) *Policy {
	if dir == nil {
		dir = OpenDirectory{}
	}
	return &Policy{dir: dir}
}

// Directory returns the directory that the policy asks.
func (p *Policy) Directory() Directory { return p.dir }

// CanPublish returns nil if the identity may publish to the topic. A signal is
// judged like the topic that it belongs to.
func (p *Policy) CanPublish(ctx context.Context, id *Identity, topic string) error {
	r := id.rights()
	if r == nil {
		return refusedRole
	}
	switch t := chat.ParseTopic(topic); t.Kind {
	case chat.KindUser, chat.KindUserSignal:
		switch {
		case r.toUsers == never:
			return refusedRole
		case r.toUsers == anywhere, t.ID == id.Subject: // a note to oneself
			return nil
		}
		return refusal(p.dir.MayWrite(ctx, id.Subject, t.ID))
	case chat.KindGroup, chat.KindGroupSignal:
		switch r.toGroups {
		case never:
			return refusedRole
		case anywhere:
			return nil
		}
		return refusal(p.dir.MaySpeak(ctx, id.Subject, t.ID, slices.Contains(id.Groups, t.ID)))
	case chat.KindRenew:
		return nil
	case chat.KindPlain:
		switch {
		case !validName(topic):
			return refusedTopic
		case r.toPlain == never:
			return refusedRole
		case !coveredByAny(id.Pub, topic):
			return refusedPublish
		}
		return nil
	default: // KindUserError, KindPresence, KindReserved
		if !validName(topic) {
			return refusedTopic
		}
		return refusedReserved
	}
}

// CanWill returns nil if the identity may leave a will on the topic: if it may
// publish there. A will on the renewal topic makes no sense and is refused; one that
// tells the state of a bridge goes nowhere, and a bridge would not connect without it.
func (p *Policy) CanWill(ctx context.Context, id *Identity, topic string) error {
	switch {
	case topic == chat.RenewTopic:
		return refusedRenewWill
	case chat.IsBridgeState(topic) && id.rights() != nil:
		return nil
	}
	return p.CanPublish(ctx, id, topic)
}

// CanSubscribe returns nil if the identity may subscribe to the filter, and with
// a topic name for a filter, if it may receive from that topic. Subscribing to
// an open room joins it.
//
// A filter outside the chat must be covered by one of acl.sub as a whole. "#",
// "+/x" and the like are outside the chat: with an acl that covers them they
// match plain topics, never chat messages and never $SYS.
func (p *Policy) CanSubscribe(ctx context.Context, id *Identity, filter string) error {
	r := id.rights()
	if r == nil {
		return refusedSubscribe
	}
	inner, shared, ok := unshare(filter)
	if !ok || !validFilter(inner) {
		return refusedFilter
	}
	first, _, _ := strings.Cut(inner, "/")
	switch {
	case first != "user" && first != "group" && first != "presence" && !strings.HasPrefix(first, "$"):
		if !coveredByAny(id.Sub, inner) {
			return refusedSubscribe
		}
		return nil
	case shared:
		return refusedShared
	case first == "user":
		return r.canRead(id, inner)
	case first == "group":
		return p.canReadGroup(ctx, id, r, inner)
	case first == "presence":
		return p.canSee(ctx, id, r, inner)
	case first == "$SYS" && r.sys == anywhere:
		return nil
	}
	return refusedSubscribe
}

// canRead decides on a filter below user/.
func (r *rights) canRead(id *Identity, filter string) error {
	switch t := chat.ParseTopic(filter); t.Kind {
	case chat.KindUser, chat.KindUserSignal, chat.KindUserError:
		if t.ID == id.Subject {
			return nil
		}
	}
	return r.canReadBelow(filter, "user/#")
}

// canReadBelow decides on filters that take in more than one's own.
func (r *rights) canReadBelow(filter, all string) error {
	if filter == "user" || filter == "group" { // no topics
		return refusedSubscribe
	}
	if r.wildcards == anywhere || r.wildcards == byRule && filter == all {
		return nil
	}
	return refusedSubscribe
}

// canReadGroup decides on a filter below group/.
func (p *Policy) canReadGroup(ctx context.Context, id *Identity, r *rights, filter string) error {
	if filter == "group/+" || filter == "group/+/signal" { // the groups that one is in
		return nil
	}
	switch t := chat.ParseTopic(filter); t.Kind {
	case chat.KindGroup, chat.KindGroupSignal:
		if r.groups == anywhere {
			return nil
		}
		return p.canListen(ctx, id, t.ID, t.Kind == chat.KindGroup && r.toGroups != never)
	}
	return r.canReadBelow(filter, "group/#")
}

// canListen returns nil if the identity may read in the group; with join it
// enters an open room for that.
func (p *Policy) canListen(ctx context.Context, id *Identity, group string, join bool) error {
	if slices.Contains(id.Groups, group) {
		if p.banned(ctx, id.Subject, group) {
			return refusedMember
		}
		return nil
	}
	groups, err := p.dir.Groups(ctx, id.Subject)
	if err != nil {
		return refusal(err)
	}
	if slices.Contains(groups, group) {
		return nil
	}
	if join {
		joined, err := p.dir.JoinBySubscribing(ctx, id.Subject, group)
		if err != nil {
			return refusal(err)
		}
		if joined {
			return nil
		}
	}
	return refusedMember
}

// banned reports whether the directory keeps a member by token out of the group.
// One who is only muted may listen, and if the directory cannot tell, the token
// counts: chat goes on on known memberships.
func (p *Policy) banned(ctx context.Context, subject, group string) bool {
	err, ok := errors.AsType[*chat.Error](p.dir.MaySpeak(ctx, subject, group, true))
	return ok && err.Code == chat.CodeNotMember
}

// canSee decides on a filter below presence/.
func (p *Policy) canSee(ctx context.Context, id *Identity, r *rights, filter string) error {
	t := chat.ParseTopic(filter)
	switch {
	case t.Kind == chat.KindPresence && (t.ID == id.Subject || r.presence == anywhere):
		return nil
	case t.Kind == chat.KindPresence && r.presence == byRule:
		return refusal(p.dir.MaySee(ctx, id.Subject, t.ID))
	case r.presence == anywhere && filter != "presence":
		return nil
	}
	return refusedSubscribe
}

// Groups returns the ids of all groups that the identity is in, sorted: those of
// its token, less those it is banned from, and those of the directory.
func (p *Policy) Groups(ctx context.Context, id *Identity) ([]string, error) {
	if id == nil {
		return nil, nil
	}
	listed, err := p.dir.Groups(ctx, id.Subject)
	if err != nil {
		return nil, refusal(err)
	}
	all := slices.Clone(listed)
	slices.Sort(all)
	known := all
	for _, g := range id.Groups {
		if _, ok := slices.BinarySearch(known, g); !ok && !p.banned(ctx, id.Subject, g) {
			all = append(all, g)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// refusal makes sure that only what was written for clients reaches them: any
// other error becomes "cannot check that right now".
func refusal(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*chat.Error](err); ok {
		return e
	}
	return refusedUnknown
}
