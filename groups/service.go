// Package groups is the domain of groups and rooms: their members, invitations, links and
// bans, and the one table of who may do what in them. It speaks to PostgreSQL and knows
// nothing of HTTP, which package api turns into calls, nor of MQTT: what people should see
// of a change is a notice in the outbox (package schema/outbox), and what the broker must
// know is written by triggers (package directory follows them).
//
// What it guarantees:
//
//   - Who may do what is decided by the table of authorize.go, and nowhere else.
//   - A change, its notices and what it means for the broker are one transaction.
//   - Changes of one group happen one after the other, and so do their notices.
//   - Limits hold, however many calls come at once: what counts towards a limit
//     is counted under a lock on the group or the person.
//   - A group has an owner who can act, or is dissolved: nobody whose account is
//     deleted is left in one, whatever is done at the same moment.
//   - Nothing tells whether somebody has blocked the caller, nor of a group that
//     the caller could not find otherwise.
//
// Locks are taken in this order: persons by id (people.LockPersons), then the group, or
// groups by id.
//
// # Map
//
//	service.go      Service: New, Config, Forget
//	authorize.go    the table of rights: Role, Action, JoinPolicy, May
//	groups.go       a group's own life: Create, Edit, Transfer, Dissolve
//	members.go      Members: list, roles, nicknames, mutes, removal
//	bans.go         … and bans
//	joining.go      Joining: at once, or after approval
//	invitations.go  Invitations of people by name
//	links.go        Links that invite whoever has them
//	store.go        what they share
//
// Errors for clients are *chat.Error.
package groups

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/people"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// Config are the limits. Zero stands for the default.
type Config struct {
	MaxMembers     int // members of a group, default DefaultMaxMembers
	MaxGroups      int // groups that one is in, default DefaultMaxGroups
	MaxAdmins      int // admins of a group, default 50
	MaxBans        int // bans of a group, default 10,000
	MaxInvitations int // of a group that wait for an answer, and requests to join it, default 1,000
	MaxLinks       int // invitation links of a group, default 100
	// MaxMembersNotified is the number of members above which a group is not notified who
	// joins, leaves or is removed (only the person is): 5,000 devices that
	// come into a room one after the other would make 12 million deliveries
	// of what nobody reads. Default 200.
	MaxMembersNotified int
	// InvitationTTL is how long an invitation of one person is valid, default
	// DefaultInvitationTTL.
	InvitationTTL time.Duration
}

// Defaults of Config that a program may want to tell.
const (
	DefaultMaxMembers    = 100_000
	DefaultMaxGroups     = 500
	DefaultInvitationTTL = 30 * 24 * time.Hour
)

// withDefaults returns c with defaults in place of zeros.
func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *int
		value int
	}{
		{&c.MaxMembers, DefaultMaxMembers},
		{&c.MaxGroups, DefaultMaxGroups},
		{&c.MaxAdmins, 50},
		{&c.MaxBans, 10_000},
		{&c.MaxInvitations, 1_000},
		{&c.MaxLinks, 100},
		{&c.MaxMembersNotified, 200},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if c.InvitationTTL <= 0 {
		c.InvitationTTL = DefaultInvitationTTL
	}
	return c
}

// Service is the groups of one database. It is safe for concurrent use.
type Service struct {
	*store
	Members     *Members
	Joining     *Joining
	Invitations *Invitations
	Links       *Links
}

// New returns a Service.
func New(db *pgtx.DB, cfg Config) *Service {
	s := &store{cfg: cfg.withDefaults(), db: db}
	return &Service{store: s, Members: &Members{s}, Joining: &Joining{s}, Invitations: &Invitations{s}, Links: &Links{s}}
}

// Actor is who does something.
type Actor struct {
	ID       string
	Operator bool     // holds a token of role admin
	Device   bool     // holds a token of role device: a member at most
	Groups   []string // member of these by token
}

// Forget removes the person from all groups: those that they own go to the successor (the
// admin who joined first, else the member), or are dissolved with no person left. The groups
// are notified. It is part of the deletion of an account.
func (s *Service) Forget(ctx context.Context, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := people.LockPersons(ctx, s.db, id); err != nil {
			return err
		}
		if _, err := s.db.Exec(ctx, "lock groups", schema.LockGroupsOf, id); err != nil {
			return err
		}
		owned, err := pgtx.List(ctx, s.db, "read owned groups", pgx.RowTo[string], schema.SelectOwned, id)
		if err != nil {
			return err
		}
		for _, group := range owned {
			if err := s.transferOnOwnerExit(ctx, group, id); err != nil {
				return err
			}
		}
		if _, err := s.db.Exec(ctx, "notify groups", schema.InsertFarewells, id, s.cfg.MaxMembersNotified); err != nil {
			return err
		}
		for _, statement := range []string{schema.ForgetMemberships, schema.ForgetJoinRequests, schema.ForgetInvitations} {
			if _, err := s.db.Exec(ctx, "forget person", statement, id); err != nil {
				return err
			}
		}
		return nil
	})
}
