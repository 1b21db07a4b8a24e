package groups

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/people"
	"mynah/schema"
	"mynah/schema/outbox"
	"mynah/schema/pgtx"
)

// store is what the parts of a Service share: it asks the table of rights about a group, and
// does what more than one of them needs. The group must be locked when a method is called
// that changes something (changeGroup locks it).
type store struct {
	cfg Config
	db  *pgtx.DB
}

// access is a group and what an actor is in it.
type access struct {
	Group
	role      Role
	hasRow    bool // the actor has a membership in the database
	dissolved bool
}

// scanGroup reads the columns of schema.SelectMyGroups, or with more, those of
// schema.SelectStanding.
func scanGroup(row pgx.Row, more ...any) (g Group, dissolved bool, err error) {
	var role, nickname string
	var muted, joined *time.Time
	fields := []any{
		&g.ID, &g.Name, &g.Avatar, &g.Announcement, &g.Ext, &g.Join, &g.Muted, &g.Members, &g.Created, &dissolved,
		&role, &nickname, &muted, &joined,
	}
	if err := row.Scan(append(fields, more...)...); err != nil {
		return g, false, err
	}
	if string(g.Ext) == "{}" {
		g.Ext = nil
	}
	if muted != nil && !muted.After(time.Now()) {
		muted = nil
	}
	if role != "" {
		g.Me = &Membership{Role: Role(role), Nickname: nickname, MutedUntil: muted, Joined: joined}
	}
	return g, dissolved, nil
}

// loadAccess reads a group and what the actor is in it. A group that was dissolved
// is not there.
func (s *store) loadAccess(ctx context.Context, a Actor, group string) (*access, error) {
	var st access
	var banned, invited bool
	var err error
	st.Group, st.dissolved, err = scanGroup(s.db.Q(ctx).QueryRow(ctx, schema.SelectStanding, group, a.ID), &banned, &invited)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && st.dissolved {
		return nil, errNoGroup
	}
	if err != nil {
		return nil, fmt.Errorf("read group: %w", err)
	}
	st.hasRow = st.Me != nil
	byToken := slices.Contains(a.Groups, group)
	switch {
	case a.Operator:
		st.role = Operator
	case banned:
		st.role = Banned
	case st.hasRow:
		st.role = st.Me.Role
	case byToken:
		st.role = Member
		st.Me = &Membership{Role: Member}
	case invited:
		st.role = Invited
	default:
		st.role = Outsider
	}
	if a.Device && st.Me != nil && st.role != Banned {
		st.role = Device
	}
	return &st, nil
}

// authorize returns the group if the actor may take the action.
func (s *store) authorize(ctx context.Context, a Actor, group string, action Action) (*access, error) {
	st, err := s.loadAccess(ctx, a, group)
	if err != nil {
		return nil, err
	}
	return st, May(st.role, action, st.Join)
}

// changeGroup runs fn in a transaction in which nobody else changes the group, if the
// table lets the actor take the action. persons are those whose membership may
// change, or must not meanwhile.
func (s *store) changeGroup(ctx context.Context, a Actor, group string, action Action, persons []string, fn func(context.Context, *access) error) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := people.LockPersons(ctx, s.db, persons...); err != nil {
			return err
		}
		if _, err := s.db.Exec(ctx, "lock group", schema.LockGroup, group); err != nil {
			return err
		}
		st, err := s.authorize(ctx, a, group, action)
		if err != nil {
			return err
		}
		return fn(ctx, st)
	})
}

// allow asks the table about one action more.
func (st *access) allow(action Action) error { return May(st.role, action, st.Join) }

// groupNotice is the body of notices about groups. Fields that do not concern a
// notice are left out.
type groupNotice struct {
	Group        string      `json:"group"`
	By           string      `json:"by,omitempty"`
	Who          string      `json:"who,omitempty"`
	Name         *string     `json:"name,omitempty"`
	Avatar       *string     `json:"avatar,omitempty"`
	Announcement *string     `json:"announcement,omitempty"`
	Join         *JoinPolicy `json:"join,omitempty"`
	Muted        *bool       `json:"muted,omitempty"`
	Until        *time.Time  `json:"until,omitempty"`
	Role         Role        `json:"role,omitempty"`
	Note         string      `json:"note,omitempty"`
}

// notifyGroup puts a notice for the whole group into the outbox.
func (s *store) notifyGroup(ctx context.Context, kind string, n groupNotice) error {
	return outbox.Notify(ctx, s.db, chat.GroupTopic(n.Group), kind, n)
}

// notifyMembership puts a notice about a member who comes or goes into the outbox:
// for the group unless it is large, and for that person.
func (s *store) notifyMembership(ctx context.Context, st *access, kind string, n groupNotice) error {
	if st.Members <= s.cfg.MaxMembersNotified {
		if err := s.notifyGroup(ctx, kind, n); err != nil {
			return err
		}
	}
	return outbox.Notify(ctx, s.db, chat.UserTopic(n.Who), kind, n)
}

// notifyStaff puts a notice for the owner and each admin into the outbox.
func (s *store) notifyStaff(ctx context.Context, kind string, n groupNotice) error {
	return outbox.NotifyStaff(ctx, s.db, n.Group, kind, n)
}

// member returns a member of the group.
func (s *store) member(ctx context.Context, group, id string) (*Person, error) {
	all, err := pgtx.List(ctx, s.db, "read member", pgx.RowToStructByPos[Person], schema.SelectMember, group, id)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errNoMember
	}
	return &all[0], nil
}

// owner returns the id of the group's owner, "" if it has none (a group made with
// SQL may).
func (s *store) owner(ctx context.Context, group string) (id string, err error) {
	err = s.db.Q(ctx).QueryRow(ctx, schema.SelectOwner, group).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read owner: %w", err)
	}
	return id, nil
}

// refuseDevice returns nil unless the account is a device's. Its token is in a thing that
// hangs somewhere, for years.
func (s *store) refuseDevice(ctx context.Context, id string) error {
	var device bool
	if err := s.db.Q(ctx).QueryRow(ctx, schema.IsDevice, id).Scan(&device); err != nil {
		return fmt.Errorf("read account: %w", err)
	}
	if device {
		return errDeviceIsMemberOnly
	}
	return nil
}

// checkGroupCount returns nil if the person may be in one group more. The person
// must be locked. by is who reads the refusal.
func (s *store) checkGroupCount(ctx context.Context, person, by string) error {
	n, err := s.db.Count(ctx, schema.CountGroups, person)
	if err != nil {
		return err
	}
	switch {
	case n < s.cfg.MaxGroups:
		return nil
	case person == by:
		return chat.Refuse(chat.CodeLimit, fmt.Sprintf("You are in %d groups, which is as many as one can be in.", n))
	}
	return chat.Refuse(chat.CodeLimit, "This person is in as many groups as one can be in.")
}

// addMember makes somebody a member of a group that is locked, as they themselves are.
func (s *store) addMember(ctx context.Context, st *access, who, by string) error {
	if _, err := s.member(ctx, st.ID, who); err == nil || !errors.Is(err, errNoMember) {
		return err // nil: is a member already
	}
	if err := people.RefuseDeleted(ctx, s.db, who); err != nil {
		return err
	}
	if st.Members >= s.cfg.MaxMembers {
		return chat.Refuse(chat.CodeLimit, fmt.Sprintf("This group has %d members and is full.", st.Members))
	}
	if err := s.checkGroupCount(ctx, who, by); err != nil {
		return err
	}
	if _, err := s.db.Exec(ctx, "join", schema.InsertMember, st.ID, who, string(Member)); err != nil {
		return err
	}
	for _, statement := range []string{schema.DeleteJoinRequest, schema.DeleteInvitation} {
		if _, err := s.db.Exec(ctx, "join", statement, st.ID, who); err != nil {
			return err
		}
	}
	n := groupNotice{Group: st.ID, Who: who}
	if by != who {
		n.By = by
	}
	return s.notifyMembership(ctx, st, "notice.group.joined", n)
}

// invite invites people to a group that is locked.
func (s *store) invite(ctx context.Context, st *access, by string, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	n, err := s.db.Count(ctx, schema.CountInvitations, st.ID, s.cfg.MaxInvitations)
	if err != nil {
		return err
	}
	if n+len(ids) > s.cfg.MaxInvitations {
		return chat.Refuse(chat.CodeLimit, "Too many are invited to this group. Wait for their answers, or withdraw some.")
	}
	for _, id := range ids {
		their, err := s.loadAccess(ctx, Actor{ID: id}, st.ID)
		if err != nil {
			return err
		}
		if their.role != Outsider { // Invited: they have been notified
			continue
		}
		var state string
		var blocking, blocked bool
		if err := s.db.Q(ctx).QueryRow(ctx, schema.SelectRelation, by, id).Scan(&state, &blocking, &blocked); err != nil {
			return fmt.Errorf("read relation: %w", err)
		}
		if _, err := s.db.Exec(ctx, "invite", schema.UpsertInvitation, st.ID, id, by, s.cfg.InvitationTTL, blocked); err != nil {
			return err
		}
		if blocked {
			continue
		}
		n := groupNotice{Group: st.ID, By: by, Who: id, Name: &st.Name}
		if err := outbox.Notify(ctx, s.db, chat.UserTopic(id), "notice.group.invited", n); err != nil {
			return err
		}
	}
	return nil
}

// dissolve ends a group that is locked.
func (s *store) dissolve(ctx context.Context, group, by string) error {
	for _, statement := range []string{
		schema.DissolveGroup, schema.DeleteGroupRequests, schema.DeleteGroupInvitations, schema.DeleteGroupLinks,
		schema.RevokeGroupDevices,
	} {
		if _, err := s.db.Exec(ctx, "dissolve group", statement, group); err != nil {
			return err
		}
	}
	return s.notifyGroup(ctx, "notice.group.dissolved", groupNotice{Group: group, By: by})
}

// transferOnOwnerExit gives a group that is locked and whose owner goes to the successor, or
// dissolves it.
func (s *store) transferOnOwnerExit(ctx context.Context, group, owner string) error {
	var successor string
	err := s.db.Q(ctx).QueryRow(ctx, schema.SelectSuccessor, group, owner).Scan(&successor)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return s.dissolve(ctx, group, owner)
	case err != nil:
		return fmt.Errorf("find successor: %w", err)
	}
	// There is one owner at most. Who was it is removed with the other memberships.
	if _, err := s.db.Exec(ctx, "retire owner", schema.UpdateMemberRole, group, owner, string(Member)); err != nil {
		return err
	}
	if _, err := s.db.Exec(ctx, "set owner", schema.UpdateMemberRole, group, successor, string(Owner)); err != nil {
		return err
	}
	return outbox.Notify(ctx, s.db, chat.GroupTopic(group), "notice.group.transferred", groupNotice{Group: group, By: owner, Who: successor})
}

var errDeviceIsMemberOnly = chat.Refuse(chat.CodeInvalid, "A device is a member only: it cannot own or administer a group.")

var errNoMember = chat.Refuse(chat.CodeNotFound, "There is no such member of this group.")
