package api

import (
	"context"

	"mynah/chat"
	"mynah/people"
)

// IDPath is the id of an account or a group in a path.
type IDPath struct {
	ID string `path:"id" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$"`
}

func (a *API) profile(ctx context.Context, in *IDPath) (*body[people.Profile], error) {
	list, err := a.accounts.Profiles(ctx, callerOf(ctx).Subject, []string{in.ID})
	if err != nil {
		return nil, err
	}
	return answer(list[0]), nil
}

// named fills in the names and pictures of a page of people, as far as the caller may see
// their profiles: with a query for all of them, and one for whom the caller knows of those
// that strangers do not find.
func named[T any, P interface {
	*T
	Who() string
	Show(name, avatar string)
}](ctx context.Context, a *API, page []T) error {
	if len(page) == 0 {
		return nil
	}
	ids := make([]string, len(page))
	for i := range page {
		ids[i] = P(&page[i]).Who()
	}
	profiles, err := a.accounts.Profiles(ctx, callerOf(ctx).Subject, ids)
	if err != nil {
		return err
	}
	for i, p := range profiles { // in the order of the ids
		P(&page[i]).Show(p.Name, p.Avatar)
	}
	return nil
}

// peopleOf makes a page of people out of rows, as listOf does, with their names.
func peopleOf[T any, P interface {
	*T
	Who() string
	Show(name, avatar string)
}](ctx context.Context, a *API, rows []T, limit int, key func(T) any) (*body[List[T]], error) {
	list := listOf(rows, limit, key)
	if err := named[T, P](ctx, a, list.Items); err != nil {
		return nil, err
	}
	return answer(list), nil
}

// personOf answers with one of them.
func personOf[T any, P interface {
	*T
	Who() string
	Show(name, avatar string)
}](ctx context.Context, a *API, one *T) (*body[T], error) {
	page := []T{*one}
	if err := named[T, P](ctx, a, page); err != nil {
		return nil, err
	}
	return answer(page[0]), nil
}

type lookUpInput struct {
	Body struct {
		IDs []string `json:"ids" minItems:"1" maxItems:"100" nullable:"false" doc:"Account ids"`
	}
}

type profiles struct {
	Items []people.Profile `json:"items" nullable:"false" doc:"One for each id, in the same order; blank for who cannot be seen"`
}

func (a *API) lookUp(ctx context.Context, in *lookUpInput) (*body[profiles], error) {
	for _, id := range in.Body.IDs {
		if !chat.ValidID(id) {
			return nil, chat.Refuse(chat.CodeInvalid, "An id is 1–64 characters of A-Z a-z 0-9 _ . ~ -")
		}
	}
	list, err := a.accounts.Profiles(ctx, callerOf(ctx).Subject, in.Body.IDs)
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
func (a *API) find(ctx context.Context, in *findInput) (*body[people.Profile], error) {
	p, err := a.accounts.Find(ctx, callerOf(ctx).Subject, in.Body.By, in.Body.Key)
	if err != nil {
		return nil, err
	}
	return answer(*p), nil
}
