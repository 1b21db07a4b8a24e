package api

import (
	"context"
	"time"

	"mynah/groups"
	"mynah/people"
)

// memberHandlers are who is in a group, and who must not be.
type memberHandlers struct {
	groups *groups.Service
	people *people.Service
	now    func() time.Time
}

// MemberPath is somebody in a group.
type MemberPath struct {
	IDPath
	Who string `path:"who" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$"`
}

// GroupPage is a page of a list of a group.
type GroupPage struct {
	IDPath
	Page
}

type membersInput struct {
	IDPath
	Page
	Staff bool `query:"staff" doc:"Only the owner and the admins"`
}

func (h *memberHandlers) members(ctx context.Context, in *membersInput) (*body[List[groups.Person]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := h.groups.Members.List(ctx, actor(ctx), in.ID, in.Staff, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, h.people.Profiles, rows, in.Limit, func(p groups.Person) any { return p.ID })
}

func (h *memberHandlers) member(ctx context.Context, in *MemberPath) (*body[groups.Person], error) {
	p, err := h.groups.Members.Get(ctx, actor(ctx), in.ID, in.Who)
	if err != nil {
		return nil, err
	}
	return personOf(ctx, h.people.Profiles, p)
}

type editMemberInput struct {
	MemberPath
	Body struct {
		Role     *string `json:"role,omitempty" enum:"admin,member" doc:"For the owner"`
		Nickname *string `json:"nickname,omitempty" maxLength:"64"`
		Mute     *int    `json:"mute,omitempty" minimum:"0" maximum:"31536000" doc:"Seconds in which they may not speak; 0 ends it"`
	}
}

func (h *memberHandlers) editMember(ctx context.Context, in *editMemberInput) (*body[groups.Person], error) {
	e := groups.MemberEdit{Role: (*groups.Role)(in.Body.Role), Nickname: in.Body.Nickname}
	if in.Body.Mute != nil {
		var until time.Time
		if *in.Body.Mute > 0 {
			until = h.now().Add(time.Duration(*in.Body.Mute) * time.Second).UTC()
		}
		e.MutedUntil = &until
	}
	p, err := h.groups.Members.Edit(ctx, actor(ctx), in.ID, in.Who, e)
	if err != nil {
		return nil, err
	}
	return personOf(ctx, h.people.Profiles, p)
}

func (h *memberHandlers) kickMember(ctx context.Context, in *MemberPath) (*empty, error) {
	return nil, h.groups.Members.Kick(ctx, actor(ctx), in.ID, in.Who)
}

func (h *memberHandlers) leaveGroup(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, h.groups.Members.Leave(ctx, actor(ctx), in.ID)
}

func (h *memberHandlers) bans(ctx context.Context, in *GroupPage) (*body[List[groups.Ban]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := h.groups.Members.Bans(ctx, actor(ctx), in.ID, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, h.people.Profiles, rows, in.Limit, func(b groups.Ban) any { return b.ID })
}

type banInput struct {
	MemberPath
	Body struct {
		Reason string `json:"reason,omitempty" maxLength:"200" doc:"For the owner and admins"`
	}
}

func (h *memberHandlers) banMember(ctx context.Context, in *banInput) (*empty, error) {
	return nil, h.groups.Members.Ban(ctx, actor(ctx), in.ID, in.Who, in.Body.Reason)
}

func (h *memberHandlers) unbanMember(ctx context.Context, in *MemberPath) (*empty, error) {
	return nil, h.groups.Members.Unban(ctx, actor(ctx), in.ID, in.Who)
}
