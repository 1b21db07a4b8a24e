package api

import (
	"context"
	"time"

	"mynah/groups"
)

func (a *API) joinRequests(ctx context.Context, in *GroupPage) (*body[List[groups.JoinRequest]], error) {
	after, err := in.afterTime()
	if err != nil {
		return nil, err
	}
	rows, err := a.social.JoinRequests(ctx, actor(ctx), in.ID, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, a, rows, in.Limit, func(r groups.JoinRequest) any { return groups.TimeKey{At: r.At, ID: r.ID} })
}

func (a *API) approveJoin(ctx context.Context, in *MemberPath) (*empty, error) {
	return nil, a.social.Decide(ctx, actor(ctx), in.ID, in.Who, true)
}

func (a *API) declineJoin(ctx context.Context, in *MemberPath) (*empty, error) {
	return nil, a.social.Decide(ctx, actor(ctx), in.ID, in.Who, false)
}

type inviteInput struct {
	IDPath
	Body struct {
		IDs []string `json:"ids" minItems:"1" maxItems:"100" nullable:"false" doc:"People"`
	}
}

func (a *API) invite(ctx context.Context, in *inviteInput) (*empty, error) {
	if err := validIDs(in.Body.IDs); err != nil {
		return nil, err
	}
	c := callerOf(ctx)
	if err := a.countFor(ctx, c, a.limits.inviting, c.Subject, len(in.Body.IDs)); err != nil {
		return nil, err
	}
	return nil, a.social.Invite(ctx, actor(ctx), in.ID, in.Body.IDs)
}

func (a *API) invitations(ctx context.Context, in *GroupPage) (*body[List[groups.Invitation]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := a.social.Invitations(ctx, actor(ctx), in.ID, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, a, rows, in.Limit, func(i groups.Invitation) any { return i.ID })
}

func (a *API) uninvite(ctx context.Context, in *MemberPath) (*empty, error) {
	return nil, a.social.Uninvite(ctx, actor(ctx), in.ID, in.Who)
}

func (a *API) myInvitations(ctx context.Context, in *Page) (*body[List[groups.MyInvitation]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := a.social.MyInvitations(ctx, callerOf(ctx).Subject, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return answer(listOf(rows, in.Limit, func(i groups.MyInvitation) any { return i.Group })), nil
}

func (a *API) declineInvitation(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, a.social.DeclineInvitation(ctx, callerOf(ctx).Subject, in.ID)
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

func (a *API) createLink(ctx context.Context, in *linkInput) (*body[linkOutput], error) {
	l, token, err := a.social.CreateLink(ctx, actor(ctx), in.ID, time.Duration(in.Body.Hours)*time.Hour, in.Body.Uses)
	if err != nil {
		return nil, err
	}
	return answer(linkOutput{Link: *l, Token: token}), nil
}

func (a *API) links(ctx context.Context, in *GroupPage) (*body[List[groups.Link]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := a.social.Links(ctx, actor(ctx), in.ID, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return answer(listOf(rows, in.Limit, func(l groups.Link) any { return l.ID })), nil
}

type linkPath struct {
	IDPath
	Link string `path:"link" minLength:"1" maxLength:"64" pattern:"^[A-Z0-9]+$"`
}

func (a *API) revokeLink(ctx context.Context, in *linkPath) (*empty, error) {
	return nil, a.social.RevokeLink(ctx, actor(ctx), in.ID, in.Link)
}

type followInput struct {
	Body struct {
		Token string `json:"token" minLength:"1" maxLength:"64" pattern:"^[A-Z0-9]+$" doc:"The link's token"`
	}
}

func (a *API) joinByLink(ctx context.Context, in *followInput) (*body[groups.Group], error) {
	g, err := a.social.JoinByLink(ctx, actor(ctx), in.Body.Token)
	if err != nil {
		return nil, err
	}
	return answer(*g), nil
}
