package api

import (
	"context"
	"time"

	"mynah/people"
)

// meHandlers are the caller's own account.
type meHandlers struct {
	people *people.Service
	now    func() time.Time
}

func (h *meHandlers) me(ctx context.Context, _ *empty) (*body[people.Account], error) {
	me, err := h.people.Profiles.Account(ctx, callerOf(ctx).Subject)
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

func (h *meHandlers) editMe(ctx context.Context, in *editInput) (*body[people.Account], error) {
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
	me, err := h.people.Profiles.Edit(ctx, callerOf(ctx).Subject, edit)
	if err != nil {
		return nil, err
	}
	return answer(*me), nil
}

func (h *meHandlers) deleteMe(ctx context.Context, _ *empty) (*empty, error) {
	c := callerOf(ctx)
	if err := requireFreshSignIn(c, h.now()); err != nil {
		return nil, err
	}
	return nil, h.people.Accounts.Delete(ctx, c.Subject)
}

type passwordInput struct {
	Body struct {
		Current string `json:"current,omitempty" maxLength:"256" format:"password" doc:"The password so far, if there is one"`
		New     string `json:"new" minLength:"8" maxLength:"256" format:"password"`
	}
}

// changePassword takes the password so far; a first one takes a fresh sign-in.
func (h *meHandlers) changePassword(ctx context.Context, in *passwordInput) (*empty, error) {
	c := callerOf(ctx)
	has, err := h.people.Passwords.Has(ctx, c.Subject)
	if err != nil {
		return nil, err
	}
	if has {
		from := client(ctx, DeviceField{})
		from.Session = c.Session
		_, err = h.people.Passwords.Check(ctx, c.Subject, in.Body.Current, from)
	} else {
		err = requireFreshSignIn(c, h.now())
	}
	if err != nil {
		return nil, err
	}
	return nil, h.people.Passwords.Set(ctx, c.Subject, in.Body.New, c.Session)
}

type identities struct {
	Items []people.Identity `json:"items" nullable:"false"`
}

func (h *meHandlers) identities(ctx context.Context, _ *empty) (*body[identities], error) {
	list, err := h.people.Identities.List(ctx, callerOf(ctx).Subject)
	if err != nil {
		return nil, err
	}
	return answer(identities{Items: list}), nil
}

// link adds a proven identity to the caller's account.
func (h *meHandlers) link(ctx context.Context, prove func() (people.Proof, error)) (*empty, error) {
	c := callerOf(ctx)
	// Before the proof is asked for: it may be for one use.
	if err := requireFreshSignIn(c, h.now()); err != nil {
		return nil, err
	}
	p, err := prove()
	if err != nil {
		return nil, err
	}
	return nil, h.people.Identities.Link(ctx, c.Subject, p)
}

type linkCodeInput struct{ Body CodeProof }

func (h *meHandlers) linkCode(ctx context.Context, in *linkCodeInput) (*empty, error) {
	return h.link(ctx, func() (people.Proof, error) {
		return h.people.Codes.Check(ctx, in.Body.Challenge, in.Body.Code, people.PurposeLink)
	})
}

type linkWeChatInput struct{ Body WeChatProof }

func (h *meHandlers) linkWeChat(ctx context.Context, in *linkWeChatInput) (*empty, error) {
	return h.link(ctx, func() (people.Proof, error) { return h.people.WeChat.Check(ctx, in.Body.Code) })
}

type linkTicketInput struct{ Body TicketProof }

func (h *meHandlers) linkTicket(ctx context.Context, in *linkTicketInput) (*empty, error) {
	return h.link(ctx, func() (people.Proof, error) {
		return h.people.OIDC.Check(ctx, in.Body.Ticket, in.Body.Verifier)
	})
}

type unlinkInput struct {
	Provider string `path:"provider" maxLength:"40" pattern:"^(password|phone|mail|wechat|oidc:[a-z0-9-]{1,32})$"`
}

func (h *meHandlers) unlink(ctx context.Context, in *unlinkInput) (*empty, error) {
	c := callerOf(ctx)
	if err := requireFreshSignIn(c, h.now()); err != nil {
		return nil, err
	}
	return nil, h.people.Identities.Unlink(ctx, c.Subject, in.Provider)
}
