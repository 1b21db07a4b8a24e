package groups

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/people/displaytext"
	"mynah/schema"
)

// Person is a member of a group as the others see them.
type Person struct {
	ID string `json:"id"`
	Named
	Role       Role       `json:"role" enum:"owner,admin,member"`
	Nickname   string     `json:"nickname,omitempty"`
	MutedUntil *time.Time `json:"muted_until,omitempty" doc:"May not speak before"`
	Joined     time.Time  `json:"joined"`
}

var errNoMember = chat.Refuse(chat.CodeNotFound, "There is no such member of this group.")

// member returns a member of the group.
func (s *Service) member(ctx context.Context, group, id string) (*Person, error) {
	all, err := list(ctx, s, "read member", pgx.RowToStructByPos[Person], schema.SelectMember, group, id)
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
func (s *Service) owner(ctx context.Context, group string) (id string, err error) {
	err = s.db.Q(ctx).QueryRow(ctx, schema.SelectOwner, group).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read owner: %w", err)
	}
	return id, nil
}

// Members returns at most limit members after the id, or of the owner and admins
// only.
func (s *Service) Members(ctx context.Context, a Actor, group string, staff bool, after string, limit int) ([]Person, error) {
	if _, err := s.view(ctx, a, group, ViewMembers); err != nil {
		return nil, err
	}
	query := schema.SelectMembers
	if staff {
		query = schema.SelectStaff
	}
	return list(ctx, s, "read members", pgx.RowToStructByPos[Person], query, group, after, limit)
}

// Member returns a member of a group.
func (s *Service) Member(ctx context.Context, a Actor, group, id string) (*Person, error) {
	if _, err := s.view(ctx, a, group, ViewMembers); err != nil {
		return nil, err
	}
	return s.member(ctx, group, id)
}

// MemberEdit is a change of a membership; what is nil stays.
type MemberEdit struct {
	Role     *Role
	Nickname *string
	// MutedUntil mutes until then; the zero time ends it.
	MutedUntil *time.Time
}

// EditMember changes a membership: one's own nickname, or, of others, what the
// table allows.
func (s *Service) EditMember(ctx context.Context, a Actor, group, id string, e MemberEdit) (p *Person, err error) {
	if e.Nickname != nil {
		nickname, err := displaytext.Name("A nickname", *e.Nickname)
		if err != nil {
			return nil, err
		}
		e.Nickname = &nickname
	}
	err = s.change(ctx, a, group, ViewMembers, []string{id}, func(ctx context.Context, st *standing) error {
		target, err := s.member(ctx, group, id)
		if err != nil {
			return err
		}
		if e.Nickname != nil {
			err = s.rename(ctx, a, st, target, *e.Nickname)
		}
		if e.Role != nil && err == nil {
			err = s.setRole(ctx, a, st, target, *e.Role)
		}
		if e.MutedUntil != nil && err == nil {
			err = s.mute(ctx, a, st, target, *e.MutedUntil)
		}
		if err == nil {
			p, err = s.member(ctx, group, id)
		}
		return err
	})
	return p, err
}

func (s *Service) rename(ctx context.Context, a Actor, st *standing, target *Person, nickname string) error {
	action := NameOthers
	if target.ID == a.ID {
		action = NameOneself
	}
	if err := st.allow(action); err != nil && (action == NameOthers || st.allow(NameOthers) != nil) {
		return err
	}
	if target.Nickname == nickname {
		return nil
	}
	if _, err := s.exec(ctx, "set nickname", schema.UpdateMemberNickname, st.ID, target.ID, nickname); err != nil {
		return err
	}
	if st.Members > s.cfg.QuietAbove {
		return nil
	}
	return s.tell(ctx, "notice.group.nickname", groupNotice{Group: st.ID, By: a.ID, Who: target.ID, Name: &nickname})
}

func (s *Service) setRole(ctx context.Context, a Actor, st *standing, target *Person, role Role) error {
	if err := st.allow(SetAdmins); err != nil {
		return err
	}
	switch {
	case target.Role == role:
		return nil
	case target.Role == Owner || role != Admin && role != Member:
		return chat.Refuse(chat.CodeInvalid, "The owner changes by transfer; the other roles are admin and member.")
	case role == Admin:
		if err := s.noDevice(ctx, target.ID); err != nil {
			return err
		}
		n, err := s.count(ctx, schema.CountAdmins, st.ID)
		if err != nil {
			return err
		}
		if n >= s.cfg.MaxAdmins {
			return chat.Refuse(chat.CodeLimit, fmt.Sprintf("A group has at most %d admins.", s.cfg.MaxAdmins))
		}
	}
	if _, err := s.exec(ctx, "set role", schema.UpdateMemberRole, st.ID, target.ID, string(role)); err != nil {
		return err
	}
	return s.tell(ctx, "notice.group.role", groupNotice{Group: st.ID, By: a.ID, Who: target.ID, Role: role})
}

// over returns the action that is needed to do something to the target: action,
// or higher if the target is an admin. To nobody it is allowed to do it to the owner.
func over(target *Person, action, higher Action) (Action, error) {
	switch target.Role {
	case Owner:
		return "", chat.Refuse(chat.CodeNotAllowed, "That cannot be done to the owner of a group.")
	case Admin:
		return higher, nil
	}
	return action, nil
}

func (s *Service) mute(ctx context.Context, a Actor, st *standing, target *Person, until time.Time) error {
	action, err := over(target, MuteMember, MuteAdmin)
	if err == nil {
		err = st.allow(action)
	}
	if err != nil {
		return err
	}
	n := groupNotice{Group: st.ID, By: a.ID, Who: target.ID, Until: &until}
	kind := "notice.group.member.muted"
	var value *time.Time
	if until.After(time.Now()) {
		value = &until
	} else {
		kind, n.Until = "notice.group.member.unmuted", nil
	}
	if _, err := s.exec(ctx, "mute member", schema.UpdateMemberMute, st.ID, target.ID, value); err != nil {
		return err
	}
	return s.tellOfMember(ctx, st, kind, n)
}

// Kick removes a member, who may come back if the way to join lets them.
func (s *Service) Kick(ctx context.Context, a Actor, group, id string) error {
	return s.change(ctx, a, group, ViewMembers, []string{id}, func(ctx context.Context, st *standing) error {
		return s.remove(ctx, a, st, id, "notice.group.kicked", func() (int64, error) {
			return s.exec(ctx, "remove member", schema.DeleteMember, group, id)
		})
	})
}

// remove removes a member by way of do, if the table allows it.
func (s *Service) remove(ctx context.Context, a Actor, st *standing, id, kind string, do func() (int64, error)) error {
	action := RemoveMember
	target, err := s.member(ctx, st.ID, id)
	missing := errors.Is(err, errNoMember)
	switch {
	case missing: // who may remove members is told that there is none
	case err != nil:
		return err
	default:
		if action, err = over(target, RemoveMember, RemoveAdmin); err != nil {
			return errors.Join(st.allow(RemoveMember), err)
		}
	}
	if err := st.allow(action); err != nil {
		return err
	}
	if missing && kind == "notice.group.kicked" {
		return errNoMember
	}
	changed, err := do()
	if err != nil || changed == 0 {
		return err
	}
	return s.tellOfMember(ctx, st, kind, groupNotice{Group: st.ID, By: a.ID, Who: id})
}

// Leave ends one's own membership. An owner hands the group over or dissolves it.
func (s *Service) Leave(ctx context.Context, a Actor, group string) error {
	a.Operator = false // one leaves as what one is in the group
	return s.change(ctx, a, group, Leave, []string{a.ID}, func(ctx context.Context, st *standing) error {
		if !st.row {
			return chat.Refuse(chat.CodeConflict, "You are in this group by your token, and as long as you have it.")
		}
		if st.Me.Role == Owner { // a device that plain SQL has made one
			if err := s.bequeath(ctx, group, a.ID); err != nil {
				return err
			}
		}
		if _, err := s.exec(ctx, "leave group", schema.DeleteMember, group, a.ID); err != nil {
			return err
		}
		return s.tellOfMember(ctx, st, "notice.group.left", groupNotice{Group: group, Who: a.ID})
	})
}

// Ban is somebody who may not be in a group.
type Ban struct {
	ID string `json:"id"`
	Named
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

// Ban removes somebody and keeps them out, whatever their token says. Somebody who
// is no member can be banned, too.
func (s *Service) Ban(ctx context.Context, a Actor, group, id, reason string) error {
	if err := displaytext.Check("A reason", reason); err != nil {
		return err
	}
	return s.change(ctx, a, group, ManageBans, []string{id}, func(ctx context.Context, st *standing) error {
		n, err := s.count(ctx, schema.CountBans, group, s.cfg.MaxBans)
		if err != nil {
			return err
		}
		if n >= s.cfg.MaxBans {
			return chat.Refuse(chat.CodeLimit, "This group has banned as many as it can.")
		}
		return s.remove(ctx, a, st, id, "notice.group.banned", func() (int64, error) {
			for _, statement := range []string{schema.DeleteJoinRequest, schema.DeleteInvitation} {
				if _, err := s.exec(ctx, "ban", statement, group, id); err != nil {
					return 0, err
				}
			}
			return s.exec(ctx, "ban", schema.InsertBan, group, id, a.ID, reason)
		})
	})
}

// Unban lets somebody back in, who is not a member by that.
func (s *Service) Unban(ctx context.Context, a Actor, group, id string) error {
	return s.change(ctx, a, group, ManageBans, nil, func(ctx context.Context, _ *standing) error {
		lifted, err := s.exec(ctx, "lift ban", schema.DeleteBan, group, id)
		if err != nil || lifted == 0 {
			return err
		}
		return s.notice(ctx, chat.UserTopic(id), "notice.group.unbanned", groupNotice{Group: group, By: a.ID, Who: id})
	})
}

// Bans returns at most limit of those banned after the id.
func (s *Service) Bans(ctx context.Context, a Actor, group, after string, limit int) ([]Ban, error) {
	if _, err := s.view(ctx, a, group, ManageBans); err != nil {
		return nil, err
	}
	return list(ctx, s, "read bans", pgx.RowToStructByPos[Ban], schema.SelectBans, group, after, limit)
}
