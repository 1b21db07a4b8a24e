package api

import (
	"context"

	"mynah/people"
	"mynah/people/contacts"
	"mynah/schema"
)

// contactHandlers are the caller's contacts, blocks and privacy.
type contactHandlers struct {
	contacts *contacts.Service
	people   *people.Service
	limits   *limits
}

type askInput struct {
	Body struct {
		ID   string `json:"id" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$" doc:"Whom to ask"`
		Note string `json:"note,omitempty" maxLength:"200"`
	}
}

type askOutput struct {
	State string `json:"state" enum:"asked,contact" doc:"contact if they had asked you before"`
}

func (h *contactHandlers) askContact(ctx context.Context, in *askInput) (*body[askOutput], error) {
	me := callerOf(ctx).Subject
	// Each note is a notice to them.
	if err := countFor(ctx, callerOf(ctx), h.limits.askingOne, me+" "+in.Body.ID, 1); err != nil {
		return nil, err
	}
	contacts, err := h.contacts.Ask(ctx, me, in.Body.ID, in.Body.Note)
	if err != nil {
		return nil, err
	}
	out := askOutput{State: "asked"}
	if contacts {
		out.State = "contact"
	}
	return answer(out), nil
}

type requestsInput struct {
	Page
	Direction string `query:"direction" enum:"incoming,outgoing" default:"incoming"`
}

func (h *contactHandlers) contactRequests(ctx context.Context, in *requestsInput) (*body[List[contacts.Request]], error) {
	after, err := in.afterTime()
	if err != nil {
		return nil, err
	}
	rows, err := h.contacts.Requests(ctx, callerOf(ctx).Subject, in.Direction == "incoming", after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, h.people.Profiles, rows, in.Limit, func(r contacts.Request) any { return schema.TimeKey{At: r.Since, ID: r.ID} })
}

func (h *contactHandlers) acceptContact(ctx context.Context, in *IDPath) (*body[contacts.Friend], error) {
	me := callerOf(ctx).Subject
	if err := h.contacts.Accept(ctx, me, in.ID); err != nil {
		return nil, err
	}
	return h.contact(ctx, in)
}

func (h *contactHandlers) endContactRequest(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, h.contacts.EndRequest(ctx, callerOf(ctx).Subject, in.ID)
}

func (h *contactHandlers) contact(ctx context.Context, in *IDPath) (*body[contacts.Friend], error) {
	f, err := h.contacts.Get(ctx, callerOf(ctx).Subject, in.ID)
	if err != nil {
		return nil, err
	}
	return personOf(ctx, h.people.Profiles, f)
}

func (h *contactHandlers) list(ctx context.Context, in *Page) (*body[List[contacts.Friend]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := h.contacts.List(ctx, callerOf(ctx).Subject, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, h.people.Profiles, rows, in.Limit, func(f contacts.Friend) any { return f.ID })
}

type remarkInput struct {
	IDPath
	Body struct {
		Remark string `json:"remark" maxLength:"64" doc:"What you call them; empty for nothing"`
	}
}

func (h *contactHandlers) remarkContact(ctx context.Context, in *remarkInput) (*body[contacts.Friend], error) {
	f, err := h.contacts.SetRemark(ctx, callerOf(ctx).Subject, in.ID, in.Body.Remark)
	if err != nil {
		return nil, err
	}
	return personOf(ctx, h.people.Profiles, f)
}

func (h *contactHandlers) removeContact(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, h.contacts.Remove(ctx, callerOf(ctx).Subject, in.ID)
}

func (h *contactHandlers) blocks(ctx context.Context, in *Page) (*body[List[contacts.BlockedPerson]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := h.contacts.Blocks(ctx, callerOf(ctx).Subject, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, h.people.Profiles, rows, in.Limit, func(b contacts.BlockedPerson) any { return b.ID })
}

func (h *contactHandlers) block(ctx context.Context, in *IDPath) (*empty, error) {
	me := callerOf(ctx).Subject
	return nil, h.contacts.Block(ctx, me, in.ID)
}

func (h *contactHandlers) unblock(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, h.contacts.Unblock(ctx, callerOf(ctx).Subject, in.ID)
}

func (h *contactHandlers) privacy(ctx context.Context, _ *empty) (*body[contacts.Privacy], error) {
	p, err := h.contacts.Privacy(ctx, callerOf(ctx).Subject)
	if err != nil {
		return nil, err
	}
	return answer(p), nil
}

type privacyInput struct {
	Body struct {
		Write    *string `json:"write,omitempty" enum:"anyone,contacts," doc:"Who may write to you; empty for the server's default"`
		Presence *string `json:"presence,omitempty" enum:"anyone,acquainted,nobody," doc:"Who may see whether you are online; empty for the default, acquainted"`
	}
}

func (h *contactHandlers) setPrivacy(ctx context.Context, in *privacyInput) (*body[contacts.Privacy], error) {
	p, err := h.contacts.SetPrivacy(ctx, callerOf(ctx).Subject, in.Body.Write, in.Body.Presence)
	if err != nil {
		return nil, err
	}
	return answer(p), nil
}
