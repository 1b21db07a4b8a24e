package api

import (
	"context"

	"mynah/people"
)

// named is an item of a list of people.
type named[T any] interface {
	*T
	PersonID() string
	SetName(name, avatar string)
}

// addNames fills in the names and pictures of a page of people, as far as the caller may see
// their profiles: with a query for all of them, and one for whom the caller knows of those
// that strangers do not find.
func addNames[T any, P named[T]](ctx context.Context, profiles *people.Profiles, page []T) error {
	if len(page) == 0 {
		return nil
	}
	ids := make([]string, len(page))
	for i := range page {
		ids[i] = P(&page[i]).PersonID()
	}
	list, err := profiles.List(ctx, callerOf(ctx).Subject, ids)
	if err != nil {
		return err
	}
	for i, p := range list { // in the order of the ids
		P(&page[i]).SetName(p.Name, p.Avatar)
	}
	return nil
}

// peopleOf makes a page of people out of rows, as listOf does, with their names.
func peopleOf[T any, P named[T]](ctx context.Context, profiles *people.Profiles, rows []T, limit int, key func(T) any) (*body[List[T]], error) {
	list := listOf(rows, limit, key)
	if err := addNames[T, P](ctx, profiles, list.Items); err != nil {
		return nil, err
	}
	return answer(list), nil
}

// personOf answers with one of them.
func personOf[T any, P named[T]](ctx context.Context, profiles *people.Profiles, one *T) (*body[T], error) {
	page := []T{*one}
	if err := addNames[T, P](ctx, profiles, page); err != nil {
		return nil, err
	}
	return answer(page[0]), nil
}
