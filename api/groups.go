package api

import (
	"context"
	"time"

	"mynah/authhook"
	"mynah/chat"
	"mynah/groups"
	"mynah/people"
)

// actor is the caller as the groups know it.
func actor(ctx context.Context) groups.Actor {
	c := callerOf(ctx)
	return groups.Actor{ID: c.Subject, Operator: c.Role == authhook.RoleAdmin, Device: c.Role == authhook.RoleDevice, Groups: c.Groups}
}

// ownsGroup returns nil if the subject may make and manage devices for the group.
// Of any other group it is told the same, whether it exists or not.
func (a *API) ownsGroup(ctx context.Context, subject, group string) error {
	err := a.social.MayManageDevices(ctx, groups.Actor{ID: subject}, group)
	if isRefusal(err) {
		return chat.Refuse(chat.CodeNotAllowed, "Only the owner of a group manages its devices.")
	}
	return err
}

type groupInput struct {
	Body struct {
		ID           string   `json:"id,omitempty" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$" doc:"For an admin only; leave it out to have one chosen"`
		Name         string   `json:"name" minLength:"1" maxLength:"64"`
		Avatar       string   `json:"avatar,omitempty" maxLength:"1024" doc:"An https address, the id of an uploaded file, or empty"`
		Announcement string   `json:"announcement,omitempty" maxLength:"2000"`
		Ext          *Object  `json:"ext,omitempty" doc:"An object of the application's own, at most 16 KiB"`
		Join         string   `json:"join,omitempty" enum:"open,approval,invitation" default:"invitation" doc:"open makes a room: whoever subscribes to group/<id> becomes a member"`
		Invite       []string `json:"invite,omitempty" maxItems:"100" doc:"People to invite"`
	}
}

type groupOutput struct {
	Location string `header:"Location"`
	Body     groups.Group
}

func (a *API) createGroup(ctx context.Context, in *groupInput) (*groupOutput, error) {
	c, b := callerOf(ctx), &in.Body
	if b.ID != "" && c.Role != authhook.RoleAdmin {
		// A free choice would tell which groups exist, and take ids that
		// other issuers' tokens speak of.
		return nil, chat.Refuse(chat.CodeNotAllowed, "Only an admin chooses a group's id. Leave id out.")
	}
	if b.ID == "." || b.ID == ".." { // clients take them out of addresses
		return nil, chat.Refuse(chat.CodeConflict, "This id cannot be had. Choose another.")
	}
	if err := validIDs(b.Invite); err != nil {
		return nil, err
	}
	if err := a.countFor(ctx, c, a.limits.inviting, c.Subject, len(b.Invite)); err != nil {
		return nil, err
	}
	if err := people.CheckAvatar(b.Avatar); err != nil {
		return nil, err
	}
	ext, err := b.Ext.raw()
	if err != nil {
		return nil, err
	}
	g, err := a.social.Create(ctx, actor(ctx), groups.GroupSpec{
		ID: b.ID, Name: b.Name, Avatar: b.Avatar, Announcement: b.Announcement, Ext: ext, Join: groups.Join(b.Join), Invite: b.Invite,
	})
	if err != nil {
		return nil, err
	}
	return &groupOutput{Location: "/v1/groups/" + g.ID, Body: *g}, nil
}

func validIDs(ids []string) error {
	for _, id := range ids {
		if !chat.ValidID(id) {
			return chat.Refuse(chat.CodeInvalid, "An id is 1–64 characters of A-Z a-z 0-9 _ . ~ -")
		}
	}
	return nil
}

func (a *API) group(ctx context.Context, in *IDPath) (*body[groups.Group], error) {
	g, err := a.social.Group(ctx, actor(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return answer(*g), nil
}

func (a *API) myGroups(ctx context.Context, in *Page) (*body[List[groups.Group]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := a.social.Groups(ctx, callerOf(ctx).Subject, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return answer(listOf(rows, in.Limit, func(g groups.Group) any { return g.ID })), nil
}

type editGroupInput struct {
	IDPath
	Body struct {
		Name         *string `json:"name,omitempty" minLength:"1" maxLength:"64"`
		Avatar       *string `json:"avatar,omitempty" maxLength:"1024"`
		Announcement *string `json:"announcement,omitempty" maxLength:"2000"`
		Ext          *Object `json:"ext,omitempty" doc:"It replaces the one before"`
		Join         *string `json:"join,omitempty" enum:"open,approval,invitation" doc:"For the owner"`
		Muted        *bool   `json:"muted,omitempty" doc:"Only the owner and admins may speak"`
	}
}

func (a *API) editGroup(ctx context.Context, in *editGroupInput) (*body[groups.Group], error) {
	b := &in.Body
	if b.Avatar != nil {
		if err := people.CheckAvatar(*b.Avatar); err != nil {
			return nil, err
		}
	}
	ext, err := b.Ext.raw()
	if err != nil {
		return nil, err
	}
	g, err := a.social.Edit(ctx, actor(ctx), in.ID, groups.GroupEdit{
		Name: b.Name, Avatar: b.Avatar, Announcement: b.Announcement, Ext: ext, Join: (*groups.Join)(b.Join), Muted: b.Muted,
	})
	if err != nil {
		return nil, err
	}
	return answer(*g), nil
}

func (a *API) dissolveGroup(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, a.social.Dissolve(ctx, actor(ctx), in.ID)
}

type toInput struct {
	IDPath
	Body struct {
		To string `json:"to" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$" doc:"A member"`
	}
}

func (a *API) transferGroup(ctx context.Context, in *toInput) (*empty, error) {
	return nil, a.social.Transfer(ctx, actor(ctx), in.ID, in.Body.To)
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

func (a *API) joinGroup(ctx context.Context, in *joinInput) (*body[joinOutput], error) {
	o, err := a.social.Join(ctx, actor(ctx), in.ID, in.Body.Note)
	if err != nil {
		return nil, err
	}
	return answer(joinOutput{State: o}), nil
}

func (a *API) leaveGroup(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, a.social.Leave(ctx, actor(ctx), in.ID)
}

type membersInput struct {
	IDPath
	Page
	Staff bool `query:"staff" doc:"Only the owner and the admins"`
}

func (a *API) members(ctx context.Context, in *membersInput) (*body[List[groups.Person]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := a.social.Members(ctx, actor(ctx), in.ID, in.Staff, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, a, rows, in.Limit, func(p groups.Person) any { return p.ID })
}

// MemberPath is somebody in a group.
type MemberPath struct {
	IDPath
	Who string `path:"who" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$"`
}

func (a *API) member(ctx context.Context, in *MemberPath) (*body[groups.Person], error) {
	p, err := a.social.Member(ctx, actor(ctx), in.ID, in.Who)
	if err != nil {
		return nil, err
	}
	return personOf(ctx, a, p)
}

type editMemberInput struct {
	MemberPath
	Body struct {
		Role     *string `json:"role,omitempty" enum:"admin,member" doc:"For the owner"`
		Nickname *string `json:"nickname,omitempty" maxLength:"64"`
		Mute     *int    `json:"mute,omitempty" minimum:"0" maximum:"31536000" doc:"Seconds in which they may not speak; 0 ends it"`
	}
}

func (a *API) editMember(ctx context.Context, in *editMemberInput) (*body[groups.Person], error) {
	e := groups.MemberEdit{Role: (*groups.Role)(in.Body.Role), Nickname: in.Body.Nickname}
	if in.Body.Mute != nil {
		var until time.Time
		if *in.Body.Mute > 0 {
			until = a.cfg.now().Add(time.Duration(*in.Body.Mute) * time.Second).UTC()
		}
		e.MutedUntil = &until
	}
	p, err := a.social.EditMember(ctx, actor(ctx), in.ID, in.Who, e)
	if err != nil {
		return nil, err
	}
	return personOf(ctx, a, p)
}

func (a *API) kickMember(ctx context.Context, in *MemberPath) (*empty, error) {
	return nil, a.social.Kick(ctx, actor(ctx), in.ID, in.Who)
}

// GroupPage is a page of a list of a group.
type GroupPage struct {
	IDPath
	Page
}

func (a *API) bans(ctx context.Context, in *GroupPage) (*body[List[groups.Ban]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := a.social.Bans(ctx, actor(ctx), in.ID, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, a, rows, in.Limit, func(b groups.Ban) any { return b.ID })
}

type banInput struct {
	MemberPath
	Body struct {
		Reason string `json:"reason,omitempty" maxLength:"200" doc:"For the owner and admins"`
	}
}

func (a *API) banMember(ctx context.Context, in *banInput) (*empty, error) {
	return nil, a.social.Ban(ctx, actor(ctx), in.ID, in.Who, in.Body.Reason)
}

func (a *API) unbanMember(ctx context.Context, in *MemberPath) (*empty, error) {
	return nil, a.social.Unban(ctx, actor(ctx), in.ID, in.Who)
}
