package api

import (
	"context"
	"time"

	"mynah/groups"
	"mynah/people"
	"mynah/schema"
)

// joiningHandlers are how people become members of groups: of their own accord, by name or
// by a link.
type joiningHandlers struct {
	groups *groups.Service
	people *people.Service
	limits *limits
}

type joinInput struct {
	IDPath
	Body struct {
		Note string `json:"note,omitempty" maxLength:"200" doc:"For who approves"`
	}
}

type joinOutput struct {
	State groups.Outcome `json:"state" enum:"member,asked" doc:"asked: wait for approval"`
}

func (h *joiningHandlers) joinGroup(ctx context.Context, in *joinInput) (*body[joinOutput], error) {
	o, err := h.groups.Joining.Join(ctx, actor(ctx), in.ID, in.Body.Note)
	if err != nil {
		return nil, err
	}
	return answer(joinOutput{State: o}), nil
}

func (h *joiningHandlers) joinRequests(ctx context.Context, in *GroupPage) (*body[List[groups.JoinRequest]], error) {
	after, err := in.afterTime()
	if err != nil {
		return nil, err
	}
	rows, err := h.groups.Joining.Requests(ctx, actor(ctx), in.ID, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, h.people.Profiles, rows, in.Limit, func(r groups.JoinRequest) any { return schema.TimeKey{At: r.At, ID: r.ID} })
}

func (h *joiningHandlers) approveJoin(ctx context.Context, in *MemberPath) (*empty, error) {
	return nil, h.groups.Joining.Decide(ctx, actor(ctx), in.ID, in.Who, true)
}

func (h *joiningHandlers) declineJoin(ctx context.Context, in *MemberPath) (*empty, error) {
	return nil, h.groups.Joining.Decide(ctx, actor(ctx), in.ID, in.Who, false)
}

type inviteInput struct {
	IDPath
	Body struct {
		IDs []string `json:"ids" minItems:"1" maxItems:"100" nullable:"false" doc:"People"`
	}
}

func (h *joiningHandlers) invite(ctx context.Context, in *inviteInput) (*empty, error) {
	if err := validIDs(in.Body.IDs); err != nil {
		return nil, err
	}
	c := callerOf(ctx)
	if err := countFor(ctx, c, h.limits.inviting, c.Subject, len(in.Body.IDs)); err != nil {
		return nil, err
	}
	return nil, h.groups.Invitations.Invite(ctx, actor(ctx), in.ID, in.Body.IDs)
}

func (h *joiningHandlers) invitations(ctx context.Context, in *GroupPage) (*body[List[groups.Invitation]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := h.groups.Invitations.List(ctx, actor(ctx), in.ID, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, h.people.Profiles, rows, in.Limit, func(i groups.Invitation) any { return i.ID })
}

func (h *joiningHandlers) uninvite(ctx context.Context, in *MemberPath) (*empty, error) {
	return nil, h.groups.Invitations.Withdraw(ctx, actor(ctx), in.ID, in.Who)
}

func (h *joiningHandlers) myInvitations(ctx context.Context, in *Page) (*body[List[groups.MyInvitation]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := h.groups.Invitations.Mine(ctx, callerOf(ctx).Subject, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return answer(listOf(rows, in.Limit, func(i groups.MyInvitation) any { return i.Group })), nil
}

func (h *joiningHandlers) declineInvitation(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, h.groups.Invitations.Decline(ctx, callerOf(ctx).Subject, in.ID)
}

type linkInput struct {
	IDPath
	Body struct {
		Hours int `json:"hours,omitempty" minimum:"1" maximum:"8760" default:"168" doc:"How long it is valid"`
		Uses  int `json:"uses,omitempty" minimum:"0" maximum:"100000" doc:"How many may join by it; 0 for as many as there is room for"`
	}
}

type linkOutput struct {
	Link  groups.Link `json:"link"`
	Token string      `json:"token" doc:"Whoever has it may join. It is shown this once"`
}

func (h *joiningHandlers) createLink(ctx context.Context, in *linkInput) (*body[linkOutput], error) {
	l, token, err := h.groups.Links.Create(ctx, actor(ctx), in.ID, time.Duration(in.Body.Hours)*time.Hour, in.Body.Uses)
	if err != nil {
		return nil, err
	}
	return answer(linkOutput{Link: *l, Token: token}), nil
}

func (h *joiningHandlers) links(ctx context.Context, in *GroupPage) (*body[List[groups.Link]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := h.groups.Links.List(ctx, actor(ctx), in.ID, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return answer(listOf(rows, in.Limit, func(l groups.Link) any { return l.ID })), nil
}

type linkPath struct {
	IDPath
	Link string `path:"link" minLength:"1" maxLength:"64" pattern:"^[A-Z0-9]+$"`
}

func (h *joiningHandlers) revokeLink(ctx context.Context, in *linkPath) (*empty, error) {
	return nil, h.groups.Links.Revoke(ctx, actor(ctx), in.ID, in.Link)
}

// followInput is named in openapi.json (FollowInputBody), so its name stays.
type followInput struct {
	Body struct {
		Token string `json:"token" minLength:"1" maxLength:"64" pattern:"^[A-Z0-9]+$" doc:"The link's token"`
	}
}

func (h *joiningHandlers) joinByLink(ctx context.Context, in *followInput) (*body[groups.Group], error) {
	g, err := h.groups.Links.Join(ctx, actor(ctx), in.Body.Token)
	if err != nil {
		return nil, err
	}
	return answer(*g), nil
}
