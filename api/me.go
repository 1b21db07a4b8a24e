package api

import (
	"context"

	"mynah/people"
)

func (a *API) me(ctx context.Context, _ *empty) (*body[people.Account], error) {
	me, err := a.accounts.Me(ctx, callerOf(ctx).Subject)
	if err != nil {
		return nil, err
	}
	return answer(*me), nil
}

type editInput struct {
	Body struct {
		Name     *string `json:"name,omitempty" maxLength:"64"`
		Avatar   *string `json:"avatar,omitempty" maxLength:"1024" doc:"An https address, the id of an uploaded file, or empty"`
		Ext      *Object `json:"ext,omitempty" doc:"An object of the application's own, at most 16 KiB; it replaces the one before"`
		Settings *struct {
			FindByID    *bool `json:"find_by_id,omitempty"`
			FindByPhone *bool `json:"find_by_phone,omitempty"`
			FindByMail  *bool `json:"find_by_mail,omitempty"`
		} `json:"settings,omitempty"`
	}
}

func (a *API) editMe(ctx context.Context, in *editInput) (*body[people.Account], error) {
	edit := people.Edit{Name: in.Body.Name, Avatar: in.Body.Avatar}
	if in.Body.Ext != nil {
		raw, err := in.Body.Ext.raw()
		if err != nil {
			return nil, err
		}
		edit.Ext = &raw
	}
	if s := in.Body.Settings; s != nil {
		edit.FindByID, edit.FindByPhone, edit.FindByMail = s.FindByID, s.FindByPhone, s.FindByMail
	}
	me, err := a.accounts.EditProfile(ctx, callerOf(ctx).Subject, edit)
	if err != nil {
		return nil, err
	}
	return answer(*me), nil
}

func (a *API) deleteMe(ctx context.Context, _ *empty) (*empty, error) {
	c := callerOf(ctx)
	if err := a.fresh(c); err != nil {
		return nil, err
	}
	return nil, a.accounts.Delete(ctx, c.Subject)
}

type passwordInput struct {
	Body struct {
		Current string `json:"current,omitempty" maxLength:"256" format:"password" doc:"The password so far, if there is one"`
		New     string `json:"new" minLength:"8" maxLength:"256" format:"password"`
	}
}

// changePassword takes the password so far; a first one takes a fresh sign-in.
func (a *API) changePassword(ctx context.Context, in *passwordInput) (*empty, error) {
	c := callerOf(ctx)
	has, err := a.accounts.HasPassword(ctx, c.Subject)
	if err != nil {
		return nil, err
	}
	if has {
		from := client(ctx, DeviceField{})
		from.Session = c.Session
		_, err = a.accounts.CheckPassword(ctx, c.Subject, in.Body.Current, from)
	} else {
		err = a.fresh(c)
	}
	if err != nil {
		return nil, err
	}
	return nil, a.accounts.SetPassword(ctx, c.Subject, in.Body.New, c.Session)
}

type identities struct {
	Items []people.Identity `json:"items" nullable:"false"`
}

func (a *API) identities(ctx context.Context, _ *empty) (*body[identities], error) {
	list, err := a.accounts.Identities(ctx, callerOf(ctx).Subject)
	if err != nil {
		return nil, err
	}
	return answer(identities{Items: list}), nil
}

// link adds a proven identity to the caller's account.
func (a *API) link(ctx context.Context, prove func() (people.Proof, error)) (*empty, error) {
	c := callerOf(ctx)
	// Before the proof is asked for: it may be for one use.
	if err := a.fresh(c); err != nil {
		return nil, err
	}
	p, err := prove()
	if err != nil {
		return nil, err
	}
	return nil, a.accounts.Link(ctx, c.Subject, p)
}

type linkCodeInput struct{ Body CodeProof }

func (a *API) linkCode(ctx context.Context, in *linkCodeInput) (*empty, error) {
	return a.link(ctx, func() (people.Proof, error) {
		return a.accounts.CheckCode(ctx, in.Body.Challenge, in.Body.Code, people.PurposeLink)
	})
}

type linkWeChatInput struct{ Body WeChatProof }

func (a *API) linkWeChat(ctx context.Context, in *linkWeChatInput) (*empty, error) {
	return a.link(ctx, func() (people.Proof, error) { return a.accounts.CheckWeChat(ctx, in.Body.Code) })
}

type linkTicketInput struct{ Body TicketProof }

func (a *API) linkTicket(ctx context.Context, in *linkTicketInput) (*empty, error) {
	return a.link(ctx, func() (people.Proof, error) {
		return a.accounts.CheckTicket(ctx, in.Body.Ticket, in.Body.Verifier)
	})
}

type unlinkInput struct {
	Provider string `path:"provider" maxLength:"40" pattern:"^(password|phone|mail|wechat|oidc:[a-z0-9-]{1,32})$"`
}

func (a *API) unlink(ctx context.Context, in *unlinkInput) (*empty, error) {
	c := callerOf(ctx)
	if err := a.fresh(c); err != nil {
		return nil, err
	}
	return nil, a.accounts.Unlink(ctx, c.Subject, in.Provider)
}

func (a *API) sessions(ctx context.Context, in *Page) (*body[List[people.Session]], error) {
	c := callerOf(ctx)
	var after people.SessionKey
	ok, err := in.after(&after)
	if err != nil {
		return nil, err
	}
	from := &after
	if !ok {
		from = nil
	}
	rows, err := a.accounts.Sessions(ctx, c.Subject, from, in.Limit+1)
	if err != nil {
		return nil, err
	}
	for i := range rows {
		rows[i].Current = rows[i].ID == c.Session
	}
	return answer(listOf(rows, in.Limit, func(s people.Session) any {
		return people.SessionKey{Created: s.Created, ID: s.ID}
	})), nil
}

type sessionInput struct {
	ID string `path:"id" maxLength:"64" pattern:"^[A-Za-z0-9]+$" doc:"Its id, or current"`
}

func (a *API) endSession(ctx context.Context, in *sessionInput) (*empty, error) {
	c := callerOf(ctx)
	id := in.ID
	if id == "current" {
		id = c.Session
	}
	ended, err := a.accounts.EndSession(ctx, c.Subject, id)
	if err == nil && !ended {
		err = errNoSession
	}
	return nil, err
}

func (a *API) endOtherSessions(ctx context.Context, _ *empty) (*empty, error) {
	c := callerOf(ctx)
	return nil, a.accounts.EndSessions(ctx, c.Subject, c.Session)
}
