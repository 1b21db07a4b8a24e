// Package groups knows who belongs to whom: contacts, blocks, groups and rooms,
// their members, invitations and bans. It speaks to PostgreSQL and knows nothing
// of HTTP, which package api turns into calls, nor of MQTT: what people should see
// of a change is a notice in the outbox (package outreach publishes it), and what
// the broker must know is told by triggers (package directory follows them).
//
// What it guarantees:
//
//   - Who may do what is decided by the two tables of authorize.go, and nowhere else.
//   - A change, its notices and what it means for the broker are one transaction.
//   - Changes of one group happen one after the other, and so do their notices.
//   - Limits hold, however many calls come at once: what counts towards a limit
//     is counted under a lock on the group or the person.
//   - A group has an owner who can act, or is dissolved: nobody whose account is
//     deleted is left in one, whatever is done at the same moment.
//   - Nothing tells whether somebody has blocked the caller, nor of a group that
//     the caller could not find otherwise.
//
// Locks are taken in this order: persons by id, then the group, or groups by id.
//
// Errors for clients are *chat.Error.
package groups

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// Config are the limits. Zero stands for the default.
type Config struct {
	MaxMembers     int // members of a group (--max-group-members), default 100,000
	MaxGroups      int // groups that one is in (--max-groups), default 500
	MaxContacts    int // contacts of a person, default 5,000
	MaxRequests    int // requests of a person that wait for an answer, default 200
	MaxBlocks      int // people whom a person has blocked, default 1,000
	MaxAdmins      int // admins of a group, default 50
	MaxBans        int // bans of a group, default 10,000
	MaxInvitations int // of a group that wait for an answer, and requests to join it, default 1,000
	MaxLinks       int // invitation links of a group, default 100
	// QuietAbove is the number of members above which a group is not told who
	// joins, leaves or is removed (only the person is): 5,000 devices that
	// come into a room one after the other would make 12 million deliveries
	// of what nobody reads. Default 200.
	QuietAbove int
}

// withDefaults returns c with defaults in place of zeros.
func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *int
		value int
	}{
		{&c.MaxMembers, 100_000},
		{&c.MaxGroups, 500},
		{&c.MaxContacts, 5_000},
		{&c.MaxRequests, 200},
		{&c.MaxBlocks, 1_000},
		{&c.MaxAdmins, 50},
		{&c.MaxBans, 10_000},
		{&c.MaxInvitations, 1_000},
		{&c.MaxLinks, 100},
		{&c.QuietAbove, 200},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return c
}

// Service is the contacts and groups of one database. It is safe for concurrent
// use.
type Service struct {
	cfg Config
	db  *pgtx.DB
}

// New returns a Service.
func New(db *pgtx.DB, cfg Config) *Service {
	return &Service{cfg: cfg.withDefaults(), db: db}
}

// Actor is who does something.
type Actor struct {
	ID       string
	Operator bool     // holds a token of role admin
	Device   bool     // holds a token of role device: a member at most
	Groups   []string // member of these by token
}

// lockPersons keeps the contacts and group counts of the ids from changing until
// the transaction ends.
func (s *Service) lockPersons(ctx context.Context, ids ...string) error {
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if _, err := s.db.Q(ctx).Exec(ctx, schema.LockPerson, id); err != nil {
			return fmt.Errorf("lock person: %w", err)
		}
	}
	return nil
}

var errGone = chat.Refuse(chat.CodeUnauthenticated, "The account has been deleted.")

// present returns nil unless the person's account has been deleted. The person must
// be locked: a request of theirs may be under way while they are being forgotten, and
// must not bring back what Forget removes.
func (s *Service) present(ctx context.Context, id string) error {
	var deleted bool
	if err := s.db.Q(ctx).QueryRow(ctx, schema.IsDeleted, id).Scan(&deleted); err != nil {
		return fmt.Errorf("read account: %w", err)
	}
	if deleted {
		return errGone
	}
	return nil
}

// count runs a query that gives one number.
func (s *Service) count(ctx context.Context, query string, args ...any) (n int, err error) {
	if err = s.db.Q(ctx).QueryRow(ctx, query, args...).Scan(&n); err != nil {
		return 0, fmt.Errorf("count: %w", err)
	}
	return n, nil
}

// exec runs a statement and returns how many rows it affected.
func (s *Service) exec(ctx context.Context, what, statement string, args ...any) (int64, error) {
	tag, err := s.db.Q(ctx).Exec(ctx, statement, args...)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	return tag.RowsAffected(), nil
}

// list collects the rows of a query.
func list[T any](ctx context.Context, s *Service, what string, scan pgx.RowToFunc[T], query string, args ...any) ([]T, error) {
	rows, err := s.db.Q(ctx).Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	all, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return all, nil
}

// notice puts a notice into the outbox, as part of the context's transaction.
func (s *Service) notice(ctx context.Context, topic, kind string, body any) error {
	text, err := renderNotice(body)
	if err != nil {
		return err
	}
	_, err = s.exec(ctx, "write notice", schema.InsertNotice, topic, kind, text)
	return err
}

func renderNotice(body any) (string, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return "", fmt.Errorf("render notice: %w", err)
	}
	return string(text), nil
}

// Forget removes the person from everything: groups that they own go to the
// successor (the admin who joined first, else the member), or are dissolved with no
// person left. Groups and contacts are told. It is part of the deletion of an account.
func (s *Service) Forget(ctx context.Context, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.lockPersons(ctx, id); err != nil {
			return err
		}
		if _, err := s.exec(ctx, "lock groups", schema.LockGroupsOf, id); err != nil {
			return err
		}
		owned, err := list(ctx, s, "read owned groups", pgx.RowTo[string], schema.SelectOwned, id)
		if err != nil {
			return err
		}
		for _, group := range owned {
			if err := s.bequeath(ctx, group, id); err != nil {
				return err
			}
		}
		if _, err := s.exec(ctx, "tell groups", schema.InsertFarewells, id, s.cfg.QuietAbove); err != nil {
			return err
		}
		if _, err := s.exec(ctx, "tell contacts", schema.InsertContactFarewells, id); err != nil {
			return err
		}
		for _, statement := range []string{
			schema.DeleteSocialMemberships, schema.DeleteSocialContacts, schema.DeleteSocialBlocks,
			schema.DeleteSocialRequests, schema.DeleteSocialInvitations,
		} {
			if _, err := s.exec(ctx, "forget person", statement, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// bequeath gives a group that is locked and whose owner goes to the successor, or
// dissolves it.
func (s *Service) bequeath(ctx context.Context, group, owner string) error {
	var heir string
	err := s.db.Q(ctx).QueryRow(ctx, schema.SelectSuccessor, group, owner).Scan(&heir)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return s.dissolve(ctx, group, owner)
	case err != nil:
		return fmt.Errorf("find successor: %w", err)
	}
	// There is one owner at most. Who was it is removed with the other memberships.
	if _, err := s.exec(ctx, "retire owner", schema.UpdateMemberRole, group, owner, string(Member)); err != nil {
		return err
	}
	if _, err := s.exec(ctx, "set owner", schema.UpdateMemberRole, group, heir, string(Owner)); err != nil {
		return err
	}
	return s.notice(ctx, chat.GroupTopic(group), "notice.group.transferred", groupNotice{Group: group, By: owner, Who: heir})
}

// Acquainted tells which of the ids are contacts of the viewer or in a common
// group that is not open to everybody.
func (s *Service) Acquainted(ctx context.Context, viewer string, ids []string) (map[string]bool, error) {
	known, err := list(ctx, s, "read acquaintances", pgx.RowTo[string], schema.SelectAcquainted, viewer, ids)
	if err != nil {
		return nil, err
	}
	found := make(map[string]bool, len(known))
	for _, id := range known {
		found[id] = true
	}
	return found, nil
}
