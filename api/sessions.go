package api

import (
	"context"

	"mynah/chat"
	"mynah/people"
)

// sessionHandlers are the devices on which the caller is signed in.
type sessionHandlers struct{ people *people.Service }

func (h *sessionHandlers) sessions(ctx context.Context, in *Page) (*body[List[people.Session]], error) {
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
	rows, err := h.people.Sessions.List(ctx, c.Subject, from, in.Limit+1)
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

var errNoSession = chat.Refuse(chat.CodeNotFound, "You have no such session.")

func (h *sessionHandlers) endSession(ctx context.Context, in *sessionInput) (*empty, error) {
	c := callerOf(ctx)
	id := in.ID
	if id == "current" {
		id = c.Session
	}
	ended, err := h.people.Sessions.End(ctx, c.Subject, id)
	if err == nil && !ended {
		err = errNoSession
	}
	return nil, err
}

func (h *sessionHandlers) endOtherSessions(ctx context.Context, _ *empty) (*empty, error) {
	c := callerOf(ctx)
	return nil, h.people.Sessions.EndOthers(ctx, c.Subject, c.Session)
}
