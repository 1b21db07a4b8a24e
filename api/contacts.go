package api

import (
	"context"

	"mynah/groups"
)

type askInput struct {
	Body struct {
		ID   string `json:"id" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$" doc:"Whom to ask"`
		Note string `json:"note,omitempty" maxLength:"200"`
	}
}

type askOutput struct {
	State string `json:"state" enum:"asked,contact" doc:"contact if they had asked you before"`
}

func (a *API) askContact(ctx context.Context, in *askInput) (*body[askOutput], error) {
	me := callerOf(ctx).Subject
	// Each note is a notice to them.
	if err := a.countFor(ctx, callerOf(ctx), a.limits.askingOne, me+" "+in.Body.ID, 1); err != nil {
		return nil, err
	}
	contacts, err := a.social.Ask(ctx, me, in.Body.ID, in.Body.Note)
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

func (a *API) contactRequests(ctx context.Context, in *requestsInput) (*body[List[groups.Request]], error) {
	after, err := in.afterTime()
	if err != nil {
		return nil, err
	}
	rows, err := a.social.Requests(ctx, callerOf(ctx).Subject, in.Direction == "incoming", after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, a, rows, in.Limit, func(r groups.Request) any { return groups.TimeKey{At: r.Since, ID: r.ID} })
}

// afterTime reads the cursor of a list ordered by time, nil at its beginning.
func (p *Page) afterTime() (*groups.TimeKey, error) {
	var key groups.TimeKey
	if ok, err := p.after(&key); err != nil || !ok {
		return nil, err
	}
	return &key, nil
}

// afterID reads the cursor of a list ordered by id, "" at its beginning.
func (p *Page) afterID() (id string, err error) {
	_, err = p.after(&id)
	return id, err
}

func (a *API) acceptContact(ctx context.Context, in *IDPath) (*body[groups.Friend], error) {
	me := callerOf(ctx).Subject
	if err := a.social.Accept(ctx, me, in.ID); err != nil {
		return nil, err
	}
	return a.contact(ctx, in)
}

func (a *API) endContactRequest(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, a.social.EndRequest(ctx, callerOf(ctx).Subject, in.ID)
}

func (a *API) contact(ctx context.Context, in *IDPath) (*body[groups.Friend], error) {
	f, err := a.social.Friend(ctx, callerOf(ctx).Subject, in.ID)
	if err != nil {
		return nil, err
	}
	return personOf(ctx, a, f)
}

func (a *API) contacts(ctx context.Context, in *Page) (*body[List[groups.Friend]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := a.social.Friends(ctx, callerOf(ctx).Subject, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, a, rows, in.Limit, func(f groups.Friend) any { return f.ID })
}

type remarkInput struct {
	IDPath
	Body struct {
		Remark string `json:"remark" maxLength:"64" doc:"What you call them; empty for nothing"`
	}
}

func (a *API) remarkContact(ctx context.Context, in *remarkInput) (*body[groups.Friend], error) {
	f, err := a.social.SetRemark(ctx, callerOf(ctx).Subject, in.ID, in.Body.Remark)
	if err != nil {
		return nil, err
	}
	return personOf(ctx, a, f)
}

func (a *API) removeContact(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, a.social.RemoveContact(ctx, callerOf(ctx).Subject, in.ID)
}

func (a *API) blocks(ctx context.Context, in *Page) (*body[List[groups.BlockedPerson]], error) {
	after, err := in.afterID()
	if err != nil {
		return nil, err
	}
	rows, err := a.social.Blocks(ctx, callerOf(ctx).Subject, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return peopleOf(ctx, a, rows, in.Limit, func(b groups.BlockedPerson) any { return b.ID })
}

func (a *API) block(ctx context.Context, in *IDPath) (*empty, error) {
	me := callerOf(ctx).Subject
	return nil, a.social.Block(ctx, me, in.ID)
}

func (a *API) unblock(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, a.social.Unblock(ctx, callerOf(ctx).Subject, in.ID)
}

func (a *API) privacy(ctx context.Context, _ *empty) (*body[groups.Privacy], error) {
	p, err := a.social.Privacy(ctx, callerOf(ctx).Subject)
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

func (a *API) setPrivacy(ctx context.Context, in *privacyInput) (*body[groups.Privacy], error) {
	p, err := a.social.SetPrivacy(ctx, callerOf(ctx).Subject, in.Body.Write, in.Body.Presence)
	if err != nil {
		return nil, err
	}
	return answer(p), nil
}
