package api

import (
	"context"

	"mynah/authhook"
	"mynah/chat"
	"mynah/groups"
	"mynah/people"
)

// groupHandlers are groups and rooms themselves.
type groupHandlers struct {
	groups *groups.Service
	limits *limits
}

// actor is the caller as the groups know it.
func actor(ctx context.Context) groups.Actor {
	c := callerOf(ctx)
	return groups.Actor{ID: c.Subject, Operator: c.Role == authhook.RoleAdmin, Device: c.Role == authhook.RoleDevice, Groups: c.Groups}
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

func (h *groupHandlers) createGroup(ctx context.Context, in *groupInput) (*groupOutput, error) {
	c, b := callerOf(ctx), &in.Body
	if b.ID != "" && c.Role != authhook.RoleAdmin {
		// A free choice would show which groups exist, and take ids that
		// other issuers' tokens speak of.
		return nil, chat.Refuse(chat.CodeNotAllowed, "Only an admin chooses a group's id. Leave id out.")
	}
	if b.ID == "." || b.ID == ".." { // clients take them out of addresses
		return nil, chat.Refuse(chat.CodeConflict, "This id cannot be had. Choose another.")
	}
	if err := validIDs(b.Invite); err != nil {
		return nil, err
	}
	if err := countFor(ctx, c, h.limits.inviting, c.Subject, len(b.Invite)); err != nil {
		return nil, err
	}
	if err := people.CheckAvatar(b.Avatar); err != nil {
		return nil, err
	}
	ext, err := b.Ext.raw()
	if err != nil {
		return nil, err
	}
	g, err := h.groups.Create(ctx, actor(ctx), groups.GroupSpec{
		ID: b.ID, Name: b.Name, Avatar: b.Avatar, Announcement: b.Announcement, Ext: ext, Join: groups.JoinPolicy(b.Join), Invite: b.Invite,
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

func (h *groupHandlers) group(ctx context.Context, in *IDPath) (*body[groups.Group], error) {
	g, err := h.groups.Get(ctx, actor(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return answer(*g), nil
}

func (h *groupHandlers) myGroups(ctx context.Context, in *Page) (*body[List[groups.Group]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := h.groups.List(ctx, callerOf(ctx).Subject, after, in.Limit+1)
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

func (h *groupHandlers) editGroup(ctx context.Context, in *editGroupInput) (*body[groups.Group], error) {
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
	g, err := h.groups.Edit(ctx, actor(ctx), in.ID, groups.GroupEdit{
		Name: b.Name, Avatar: b.Avatar, Announcement: b.Announcement, Ext: ext, Join: (*groups.JoinPolicy)(b.Join), Muted: b.Muted,
	})
	if err != nil {
		return nil, err
	}
	return answer(*g), nil
}

func (h *groupHandlers) dissolveGroup(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, h.groups.Dissolve(ctx, actor(ctx), in.ID)
}

// toInput is named in openapi.json (ToInputBody), so its name stays.
type toInput struct {
	IDPath
	Body struct {
		To string `json:"to" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$" doc:"A member"`
	}
}

func (h *groupHandlers) transferGroup(ctx context.Context, in *toInput) (*empty, error) {
	return nil, h.groups.Transfer(ctx, actor(ctx), in.ID, in.Body.To)
}
