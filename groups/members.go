package groups

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/people"
	"mynah/people/displaytext"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// Members are who is in a group, and who must not be.
type Members struct{ *store }

// Person is a member of a group as the others see them.
type Person struct {
	ID string `json:"id"`
	people.Named
	Role       Role       `json:"role" enum:"owner,admin,member"`
	Nickname   string     `json:"nickname,omitempty"`
	MutedUntil *time.Time `json:"muted_until,omitempty" doc:"May not speak before"`
	Joined     time.Time  `json:"joined"`
}

// PersonID returns the member's id.
func (p *Person) PersonID() string { return p.ID }

// List returns at most limit members after the id, or of the owner and admins
// only.
func (m *Members) List(ctx context.Context, a Actor, group string, staff bool, after string, limit int) ([]Person, error) {
	if _, err := m.authorize(ctx, a, group, ViewMembers); err != nil {
		return nil, err
	}
	query := schema.SelectMembers
	if staff {
		query = schema.SelectStaff
	}
	return pgtx.List(ctx, m.db, "read members", pgx.RowToStructByPos[Person], query, group, after, limit)
}

// Get returns a member of a group.
func (m *Members) Get(ctx context.Context, a Actor, group, id string) (*Person, error) {
	if _, err := m.authorize(ctx, a, group, ViewMembers); err != nil {
		return nil, err
	}
	return m.member(ctx, group, id)
}

// MemberEdit is a change of a membership; what is nil stays.
type MemberEdit struct {
	Role     *Role
	Nickname *string
	// MutedUntil mutes until then; the zero time ends it.
	MutedUntil *time.Time
}

// Edit changes a membership: one's own nickname, or, of others, what the
// table allows.
func (m *Members) Edit(ctx context.Context, a Actor, group, id string, e MemberEdit) (p *Person, err error) {
	if e.Nickname != nil {
		nickname, err := displaytext.Name("A nickname", *e.Nickname)
		if err != nil {
			return nil, err
		}
		e.Nickname = &nickname
	}
	err = m.changeGroup(ctx, a, group, ViewMembers, []string{id}, func(ctx context.Context, st *access) error {
		target, err := m.member(ctx, group, id)
		if err != nil {
			return err
		}
		if e.Nickname != nil {
			err = m.rename(ctx, a, st, target, *e.Nickname)
		}
		if e.Role != nil && err == nil {
			err = m.setRole(ctx, a, st, target, *e.Role)
		}
		if e.MutedUntil != nil && err == nil {
			err = m.mute(ctx, a, st, target, *e.MutedUntil)
		}
		if err == nil {
			p, err = m.member(ctx, group, id)
		}
		return err
	})
	return p, err
}

func (m *Members) rename(ctx context.Context, a Actor, st *access, target *Person, nickname string) error {
	action := SetNicknames
	if target.ID == a.ID {
		action = SetOwnNickname
	}
	if err := st.allow(action); err != nil && (action == SetNicknames || st.allow(SetNicknames) != nil) {
		return err
	}
	if target.Nickname == nickname {
		return nil
	}
	if _, err := m.db.Exec(ctx, "set nickname", schema.UpdateMemberNickname, st.ID, target.ID, nickname); err != nil {
		return err
	}
	if st.Members > m.cfg.MaxMembersNotified {
		return nil
	}
	return m.notifyGroup(ctx, "notice.group.nickname", groupNotice{Group: st.ID, By: a.ID, Who: target.ID, Name: &nickname})
}

func (m *Members) setRole(ctx context.Context, a Actor, st *access, target *Person, role Role) error {
	if err := st.allow(SetAdmins); err != nil {
		return err
	}
	switch {
	case target.Role == role:
		return nil
	case target.Role == Owner || role != Admin && role != Member:
		return chat.Refuse(chat.CodeInvalid, "The owner changes by transfer; the other roles are admin and member.")
	case role == Admin:
		if err := m.refuseDevice(ctx, target.ID); err != nil {
			return err
		}
		n, err := m.db.Count(ctx, schema.CountAdmins, st.ID)
		if err != nil {
			return err
		}
		if n >= m.cfg.MaxAdmins {
			return chat.Refuse(chat.CodeLimit, fmt.Sprintf("A group has at most %d admins.", m.cfg.MaxAdmins))
		}
	}
	if _, err := m.db.Exec(ctx, "set role", schema.UpdateMemberRole, st.ID, target.ID, string(role)); err != nil {
		return err
	}
	return m.notifyGroup(ctx, "notice.group.role", groupNotice{Group: st.ID, By: a.ID, Who: target.ID, Role: role})
}

// over returns the action that is needed to do something to the target: action,
// or higher if the target is an admin. To nobody it is allowed to do it to the owner.
func requiredAction(target *Person, action, higher Action) (Action, error) {
	switch target.Role {
	case Owner:
		return "", chat.Refuse(chat.CodeNotAllowed, "That cannot be done to the owner of a group.")
	case Admin:
		return higher, nil
	}
	return action, nil
}

func (m *Members) mute(ctx context.Context, a Actor, st *access, target *Person, until time.Time) error {
	action, err := requiredAction(target, MuteMember, MuteAdmin)
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
	if _, err := m.db.Exec(ctx, "mute member", schema.UpdateMemberMute, st.ID, target.ID, value); err != nil {
		return err
	}
	return m.notifyMembership(ctx, st, kind, n)
}

// Kick removes a member, who may come back if the way to join lets them.
func (m *Members) Kick(ctx context.Context, a Actor, group, id string) error {
	return m.changeGroup(ctx, a, group, ViewMembers, []string{id}, func(ctx context.Context, st *access) error {
		return m.remove(ctx, a, st, id, "notice.group.kicked", func() (int64, error) {
			return m.db.Exec(ctx, "remove member", schema.DeleteMember, group, id)
		})
	})
}

// remove removes a member by way of do, if the table allows it.
func (m *Members) remove(ctx context.Context, a Actor, st *access, id, kind string, do func() (int64, error)) error {
	action := RemoveMember
	target, err := m.member(ctx, st.ID, id)
	missing := errors.Is(err, errNoMember)
	switch {
	case missing: // who may remove members may know that there is none
	case err != nil:
		return err
	default:
		if action, err = requiredAction(target, RemoveMember, RemoveAdmin); err != nil {
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
	return m.notifyMembership(ctx, st, kind, groupNotice{Group: st.ID, By: a.ID, Who: id})
}

// Leave ends one's own membership. An owner hands the group over or dissolves it.
func (m *Members) Leave(ctx context.Context, a Actor, group string) error {
	a.Operator = false // one leaves as what one is in the group
	return m.changeGroup(ctx, a, group, Leave, []string{a.ID}, func(ctx context.Context, st *access) error {
		if !st.hasRow {
			return chat.Refuse(chat.CodeConflict, "You are in this group by your token, and as long as you have it.")
		}
		if st.Me.Role == Owner { // a device that plain SQL has made one
			if err := m.transferOnOwnerExit(ctx, group, a.ID); err != nil {
				return err
			}
		}
		if _, err := m.db.Exec(ctx, "leave group", schema.DeleteMember, group, a.ID); err != nil {
			return err
		}
		return m.notifyMembership(ctx, st, "notice.group.left", groupNotice{Group: group, Who: a.ID})
	})
}
