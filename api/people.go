package api

import (
	"context"

	"mynah/chat"
	"mynah/people"
)

// profileHandlers are other people's profiles.
type profileHandlers struct{ people *people.Service }

// IDPath is the id of an account or a group in a path.
type IDPath struct {
	ID string `path:"id" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$"`
}

func (h *profileHandlers) profile(ctx context.Context, in *IDPath) (*body[people.Profile], error) {
	list, err := h.people.Profiles.List(ctx, callerOf(ctx).Subject, []string{in.ID})
	if err != nil {
		return nil, err
	}
	return answer(list[0]), nil
}

type lookUpInput struct {
	Body struct {
		IDs []string `json:"ids" minItems:"1" maxItems:"100" nullable:"false" doc:"Account ids"`
	}
}

type profiles struct {
	Items []people.Profile `json:"items" nullable:"false" doc:"One for each id, in the same order; blank for who cannot be seen"`
}

func (h *profileHandlers) lookUp(ctx context.Context, in *lookUpInput) (*body[profiles], error) {
	for _, id := range in.Body.IDs {
		if !chat.ValidID(id) {
			return nil, chat.Refuse(chat.CodeInvalid, "An id is 1–64 characters of A-Z a-z 0-9 _ . ~ -")
		}
	}
	list, err := h.people.Profiles.List(ctx, callerOf(ctx).Subject, in.Body.IDs)
	if err != nil {
		return nil, err
	}
	return answer(profiles{Items: list}), nil
}

type findInput struct {
	Body struct {
		By  string `json:"by" enum:"id,phone,mail"`
		Key string `json:"key" minLength:"1" maxLength:"254" doc:"The exact id, phone number or mail address"`
	}
}

// find is a POST, so that phone numbers are not in the addresses that proxies log.
func (h *profileHandlers) find(ctx context.Context, in *findInput) (*body[people.Profile], error) {
	p, err := h.people.Profiles.Find(ctx, callerOf(ctx).Subject, in.Body.By, in.Body.Key)
	if err != nil {
		return nil, err
	}
	return answer(*p), nil
}
