package groups

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/people"
	"mynah/people/displaytext"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// Group is a group as those see it who may.
type Group struct {
	ID           string          `json:"id"`
	Name         string          `json:"name"`
	Avatar       string          `json:"avatar,omitempty" doc:"An https address, or the id of an uploaded file"`
	Announcement string          `json:"announcement,omitempty"`
	Ext          json.RawMessage `json:"ext,omitempty" doc:"An object of the application's own"`
	Join         JoinPolicy      `json:"join" enum:"open,approval,invitation" doc:"open: whoever subscribes to group/<id> becomes a member"`
	Muted        bool            `json:"muted" doc:"Only the owner and admins may speak"`
	Members      int             `json:"members"`
	Created      time.Time       `json:"created"`
	Me           *Membership     `json:"me,omitempty" doc:"Your own membership; absent if you are no member"`
}

// Membership is one's own place in a group.
type Membership struct {
	Role       Role       `json:"role" enum:"owner,admin,member"`
	Nickname   string     `json:"nickname,omitempty"`
	MutedUntil *time.Time `json:"muted_until,omitempty"`
	Joined     *time.Time `json:"joined,omitempty" doc:"Absent if you are a member by your token only"`
}

// GroupSpec is what a new group is to be.
type GroupSpec struct {
	ID                         string // "" for one of the server's choice
	Name, Avatar, Announcement string
	Ext                        json.RawMessage
	Join                       JoinPolicy // "" for JoinInvitation
	Invite                     []string
}

// GroupEdit is a change of a group; what is nil stays.
type GroupEdit struct {
	Name, Avatar, Announcement *string
	Ext                        json.RawMessage
	Join                       *JoinPolicy
	Muted                      *bool
}

const maxExt = 16 << 10

var errExt = chat.Refuse(chat.CodeInvalid, fmt.Sprintf("ext has at most %d bytes, as PostgreSQL writes it.", maxExt))

// checkGroup refuses what a group cannot have, and returns the name that it gets.
func checkGroup(name, announcement string, ext json.RawMessage) (string, error) {
	if len(ext) > maxExt {
		return "", errExt
	}
	// An announcement may have lines; a name is one.
	for line := range strings.SplitSeq(strings.ReplaceAll(announcement, "\t", " "), "\n") {
		if err := displaytext.Check("An announcement", strings.TrimSuffix(line, "\r")); err != nil {
			return "", err
		}
	}
	return displaytext.Name("A name", name)
}

// Create makes a group that the actor owns.
func (s *Service) Create(ctx context.Context, a Actor, spec GroupSpec) (g *Group, err error) {
	if a.Device {
		return nil, errDeviceIsMemberOnly
	}
	if spec.Name, err = checkGroup(spec.Name, spec.Announcement, spec.Ext); err != nil {
		return nil, err
	}
	if spec.ID == "" {
		spec.ID = "g" + strings.ToLower(rand.Text()[:20])
	}
	if spec.Join == "" {
		spec.Join = JoinInvitation
	}
	if len(spec.Ext) == 0 {
		spec.Ext = json.RawMessage("{}")
	}
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		if err := people.LockPersons(ctx, s.db, a.ID); err != nil {
			return err
		}
		if err := people.RefuseDeleted(ctx, s.db, a.ID); err != nil {
			return err
		}
		if err := s.refuseDevice(ctx, a.ID); err != nil {
			return err
		}
		if err := s.checkGroupCount(ctx, a.ID, a.ID); err != nil {
			return err
		}
		made, err := s.db.Exec(ctx, "make group", schema.InsertGroup, spec.ID, spec.Name, spec.Avatar, spec.Announcement, string(spec.Ext), string(spec.Join))
		if pgtx.OutOfRange(err, "groups_ext_check") {
			return errExt
		}
		if err != nil {
			return err
		}
		if made == 0 {
			return chat.Refuse(chat.CodeConflict, "This id cannot be had. Choose another.")
		}
		if _, err := s.db.Exec(ctx, "make owner", schema.InsertMember, spec.ID, a.ID, string(Owner)); err != nil {
			return err
		}
		st, err := s.loadAccess(ctx, Actor{ID: a.ID}, spec.ID)
		if err != nil {
			return err
		}
		if err := s.notifyMembership(ctx, st, "notice.group.created", groupNotice{Group: spec.ID, Who: a.ID, Name: &spec.Name}); err != nil {
			return err
		}
		if err := s.invite(ctx, st, a.ID, spec.Invite); err != nil {
			return err
		}
		g = &st.Group
		return nil
	})
	return g, err
}

// Get returns a group.
func (s *Service) Get(ctx context.Context, a Actor, group string) (*Group, error) {
	st, err := s.authorize(ctx, a, group, ViewGroup)
	if err != nil {
		return nil, err
	}
	if st.role == Outsider { // what is said inside stays inside
		st.Announcement = ""
	}
	return &st.Group, nil
}

// List returns at most limit groups that the person is in, after the id.
func (s *Service) List(ctx context.Context, me, after string, limit int) ([]Group, error) {
	return pgtx.List(ctx, s.db, "read groups", func(row pgx.CollectableRow) (Group, error) {
		g, _, err := scanGroup(row)
		return g, err
	}, schema.SelectMyGroups, me, after, limit)
}

// Edit changes a group. A notice tells of each thing that has changed.
func (s *Service) Edit(ctx context.Context, a Actor, group string, e GroupEdit) (g *Group, err error) {
	deref := func(p *string) string {
		if p == nil {
			return ""
		}
		return *p
	}
	name, err := checkGroup(deref(e.Name), deref(e.Announcement), e.Ext)
	if err != nil {
		return nil, err
	}
	if e.Name != nil {
		e.Name = &name
	}
	err = s.changeGroup(ctx, a, group, ViewGroup, nil, func(ctx context.Context, st *access) error {
		for _, need := range []struct {
			asked  bool
			action Action
		}{
			{e.Name != nil || e.Avatar != nil || e.Announcement != nil || e.Ext != nil, EditGroup},
			{e.Join != nil, SetJoin},
			{e.Muted != nil, MuteAll},
			{true, ViewMembers}, // to change nothing is for members, too
		} {
			if need.asked {
				if err := st.allow(need.action); err != nil {
					return err
				}
			}
		}
		var ext *string
		if e.Ext != nil {
			text := string(e.Ext)
			ext = &text
		}
		_, err := s.db.Exec(ctx, "edit group", schema.UpdateGroup, group, e.Name, e.Avatar, e.Announcement, ext, e.Join, e.Muted)
		if pgtx.OutOfRange(err, "groups_ext_check") {
			return errExt // 1e308 is five bytes here and 309 digits in jsonb
		}
		if err != nil {
			return err
		}
		if err := s.notifyEdit(ctx, &st.Group, a.ID, e); err != nil {
			return err
		}
		if st, err = s.loadAccess(ctx, a, group); err != nil {
			return err
		}
		g = &st.Group
		return nil
	})
	return g, err
}

// notifyEdit writes a notice for each thing that an edit changes.
func (s *Service) notifyEdit(ctx context.Context, old *Group, by string, e GroupEdit) error {
	notices := map[string]groupNotice{}
	base := groupNotice{Group: old.ID, By: by}
	add := func(kind string, changed bool, fill func(*groupNotice)) {
		if changed {
			n, ok := notices[kind]
			if !ok {
				n = base
			}
			fill(&n)
			notices[kind] = n
		}
	}
	add("notice.group.renamed", e.Name != nil && *e.Name != old.Name, func(n *groupNotice) { n.Name = e.Name })
	add("notice.group.announced", e.Announcement != nil && *e.Announcement != old.Announcement, func(n *groupNotice) { n.Announcement = e.Announcement })
	add("notice.group.changed", e.Avatar != nil && *e.Avatar != old.Avatar, func(n *groupNotice) { n.Avatar = e.Avatar })
	add("notice.group.changed", e.Join != nil && *e.Join != old.Join, func(n *groupNotice) { n.Join = e.Join })
	add("notice.group.changed", e.Ext != nil, func(*groupNotice) {})
	add("notice.group.muted", e.Muted != nil && *e.Muted && !old.Muted, func(n *groupNotice) { n.Muted = e.Muted })
	add("notice.group.unmuted", e.Muted != nil && !*e.Muted && old.Muted, func(n *groupNotice) { n.Muted = e.Muted })
	kinds := make([]string, 0, len(notices))
	for kind := range notices {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	for _, kind := range kinds {
		if err := s.notifyGroup(ctx, kind, notices[kind]); err != nil {
			return err
		}
	}
	return nil
}

// Dissolve ends a group for all. Its messages stay in the archive; its id is not
// used again. The credentials of its devices are revoked: nobody but an operator
// could do that afterwards. The members can read until the notice about it is in the log.
func (s *Service) Dissolve(ctx context.Context, a Actor, group string) error {
	return s.changeGroup(ctx, a, group, Dissolve, nil, func(ctx context.Context, _ *access) error {
		return s.dissolve(ctx, group, a.ID)
	})
}

// Transfer makes a member the owner; who was it becomes an admin. The successor is locked:
// one who is being forgotten would leave the group without an owner.
func (s *Service) Transfer(ctx context.Context, a Actor, group, to string) error {
	return s.changeGroup(ctx, a, group, Transfer, []string{to}, func(ctx context.Context, _ *access) error {
		successor, err := s.member(ctx, group, to)
		if err != nil {
			return err
		}
		if successor.Role == Owner {
			return nil
		}
		if err := s.refuseDevice(ctx, to); err != nil {
			return err
		}
		owner, err := s.owner(ctx, group)
		if err != nil {
			return err
		}
		if owner != "" {
			if _, err := s.db.Exec(ctx, "retire owner", schema.UpdateMemberRole, group, owner, string(Admin)); err != nil {
				return err
			}
		}
		if _, err := s.db.Exec(ctx, "set owner", schema.UpdateMemberRole, group, to, string(Owner)); err != nil {
			return err
		}
		return s.notifyGroup(ctx, "notice.group.transferred", groupNotice{Group: group, By: a.ID, Who: to})
	})
}

// Lock keeps the group as it is until the context's transaction ends.
func (s *Service) Lock(ctx context.Context, group string) error {
	_, err := s.db.Exec(ctx, "lock group", schema.LockGroup, group)
	return err
}

// MayManageDevices returns nil if the actor may make devices for the group.
func (s *Service) MayManageDevices(ctx context.Context, a Actor, group string) error {
	_, err := s.authorize(ctx, a, group, ManageDevices)
	return err
}
