package directory

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/groups"
	"mynah/schema"
)

// subject is what is known of somebody, the zero value for nothing. It is not
// changed after it was loaded. Slices are sorted.
type subject struct {
	Known      bool // has an account
	Registered bool // can sign in here
	Refused    bool // disabled or deleted
	Deleted    bool
	Write      string // who may write to them; "" for the default
	Presence   string // who may see them; "" for the default
	Groups     []membership
	Banned     []string // groups
	Blocks     []string // whom they have blocked
	Contacts   []string
	Revoked    []string // sid and jti of tokens that are taken back
}

// membership is somebody in a group.
type membership struct {
	Group      string
	Staff      bool // owner or admin
	MutedUntil time.Time
}

// membershipIn returns the membership in the group, or nil.
func (s *subject) membershipIn(group string) *membership {
	i, ok := slices.BinarySearchFunc(s.Groups, group, func(m membership, g string) int { return strings.Compare(m.Group, g) })
	if !ok {
		return nil
	}
	return &s.Groups[i]
}

func contains(sorted []string, id string) bool {
	_, ok := slices.BinarySearch(sorted, id)
	return ok
}

// group is what is known of a group, the zero value for nothing.
type group struct {
	Known     bool
	Muted     bool
	Dissolved bool
	Join      groups.JoinPolicy
}

// loadSubjects reads all that is known of the ids in one round trip.
func (d *Directory) loadSubjects(ctx context.Context, ids []string) (map[string]*subject, error) {
	found := make(map[string]*subject, len(ids))
	for _, id := range ids {
		found[id] = &subject{}
	}
	var batch pgx.Batch
	batch.Queue(schema.DirectoryAccounts, ids).Query(func(rows pgx.Rows) error {
		var id string
		var s subject
		_, err := pgx.ForEachRow(rows, []any{&id, &s.Registered, &s.Refused, &s.Deleted, &s.Write, &s.Presence}, func() error {
			one := found[id]
			one.Known, one.Registered, one.Refused, one.Deleted = true, s.Registered, s.Refused, s.Deleted
			one.Write, one.Presence = s.Write, s.Presence
			return nil
		})
		return err
	})
	batch.Queue(schema.DirectoryMembers, ids).Query(func(rows pgx.Rows) error {
		var id string
		var m membership
		var muted *time.Time
		_, err := pgx.ForEachRow(rows, []any{&id, &m.Group, &m.Staff, &muted}, func() error {
			if m.MutedUntil = (time.Time{}); muted != nil {
				m.MutedUntil = *muted
			}
			found[id].Groups = append(found[id].Groups, m)
			return nil
		})
		return err
	})
	for _, q := range []struct {
		query string
		field func(*subject) *[]string
	}{
		{schema.DirectoryBans, func(s *subject) *[]string { return &s.Banned }},
		{schema.DirectoryBlocks, func(s *subject) *[]string { return &s.Blocks }},
		{schema.DirectoryContacts, func(s *subject) *[]string { return &s.Contacts }},
		{schema.DirectoryRevocations, func(s *subject) *[]string { return &s.Revoked }},
	} {
		batch.Queue(q.query, ids).Query(func(rows pgx.Rows) error {
			var id, other string
			_, err := pgx.ForEachRow(rows, []any{&id, &other}, func() error {
				f := q.field(found[id])
				*f = append(*f, other)
				return nil
			})
			return err
		})
	}
	if err := d.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("load people: %w", err)
	}
	for _, s := range found {
		slices.SortFunc(s.Groups, func(a, b membership) int { return strings.Compare(a.Group, b.Group) })
		for _, ids := range [][]string{s.Banned, s.Blocks, s.Contacts, s.Revoked} {
			slices.Sort(ids)
		}
	}
	return found, nil
}

// loadGroups reads what is known of the ids.
func (d *Directory) loadGroups(ctx context.Context, ids []string) (map[string]*group, error) {
	found := make(map[string]*group, len(ids))
	for _, id := range ids {
		found[id] = &group{Join: groups.JoinInvitation}
	}
	rows, err := d.pool.Query(ctx, schema.DirectoryGroups, ids)
	if err != nil {
		return nil, fmt.Errorf("load groups: %w", err)
	}
	var id string
	var g group
	_, err = pgx.ForEachRow(rows, []any{&id, &g.Join, &g.Muted, &g.Dissolved}, func() error {
		one := g
		one.Known = true
		found[id] = &one
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load groups: %w", err)
	}
	return found, nil
}
