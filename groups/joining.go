package groups

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/people/displaytext"
	"mynah/schema"
)

// Outcome is what came of wanting to join.
type Outcome string

// The outcomes.
const (
	IsMember Outcome = "member"
	IsAsking Outcome = "asked" // wait for approval
)

// Join makes the actor a member, or asks for approval with the note.
func (s *Service) Join(ctx context.Context, a Actor, group, note string) (o Outcome, err error) {
	if err := displaytext.Check("A note", note); err != nil {
		return "", err
	}
	a.Operator = false // one joins as anybody does
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.lockPersons(ctx, a.ID); err != nil {
			return err
		}
		if _, err := s.exec(ctx, "lock group", schema.LockGroup, group); err != nil {
			return err
		}
		st, err := s.standing(ctx, a, group)
		if err != nil {
			return err
		}
		refused := st.allow(JoinGroup)
		if refused == nil {
			o = IsMember
			return s.admit(ctx, st, a.ID, a.ID)
		}
		if st.allow(AskToJoin) != nil {
			return refused
		}
		o = IsAsking
		if err := s.present(ctx, a.ID); err != nil {
			return err
		}
		return s.ask(ctx, st, a.ID, note)
	})
	return o, err
}

// ask notes a request to join.
func (s *Service) ask(ctx context.Context, st *standing, who, note string) error {
	n, err := s.count(ctx, schema.CountJoinRequests, st.ID, s.cfg.MaxInvitations)
	if err != nil {
		return err
	}
	if n >= s.cfg.MaxInvitations {
		return chat.Refuse(chat.CodeLimit, "Too many wait to be let into this group. Try again later.")
	}
	asked, err := s.exec(ctx, "ask to join", schema.InsertJoinRequest, st.ID, who, note)
	if err != nil {
		return err
	}
	if asked == 0 { // they have been told, and see the note in the list
		_, err := s.exec(ctx, "ask to join", schema.UpdateJoinRequest, st.ID, who, note)
		return err
	}
	return s.tellStaff(ctx, "notice.group.request", groupNotice{Group: st.ID, Who: who, Note: note})
}

// tellStaff puts a notice for the owner and each admin into the outbox.
func (s *Service) tellStaff(ctx context.Context, kind string, n groupNotice) error {
	text, err := renderNotice(n)
	if err != nil {
		return err
	}
	_, err = s.exec(ctx, "write notice", schema.InsertStaffNotice, n.Group, kind, text)
	return err
}

// admit makes somebody a member of a group that is locked, as they themselves are.
func (s *Service) admit(ctx context.Context, st *standing, who, by string) error {
	if _, err := s.member(ctx, st.ID, who); err == nil || !errors.Is(err, errNoMember) {
		return err // nil: is a member already
	}
	if err := s.present(ctx, who); err != nil {
		return err
	}
	if st.Members >= s.cfg.MaxMembers {
		return chat.Refuse(chat.CodeLimit, fmt.Sprintf("This group has %d members and is full.", st.Members))
	}
	if err := s.roomForGroup(ctx, who, by); err != nil {
		return err
	}
	if _, err := s.exec(ctx, "join", schema.InsertMember, st.ID, who, string(Member)); err != nil {
		return err
	}
	for _, statement := range []string{schema.DeleteJoinRequest, schema.DeleteInvitation} {
		if _, err := s.exec(ctx, "join", statement, st.ID, who); err != nil {
			return err
		}
	}
	n := groupNotice{Group: st.ID, Who: who}
	if by != who {
		n.By = by
	}
	return s.tellOfMember(ctx, st, "notice.group.joined", n)
}

// JoinOpen makes somebody a member of an open group because they subscribe to it.
// It returns false if the group is not open, is not there, or has banned them.
func (s *Service) JoinOpen(ctx context.Context, who, group string) (member bool, err error) {
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.lockPersons(ctx, who); err != nil {
			return err
		}
		if _, err := s.exec(ctx, "lock group", schema.LockGroup, group); err != nil {
			return err
		}
		st, err := s.standing(ctx, Actor{ID: who}, group)
		if errors.Is(err, errNoGroup) {
			return nil
		}
		if err != nil || st.Join != JoinOpen || st.allow(JoinGroup) != nil {
			return err
		}
		member = true
		return s.admit(ctx, st, who, who)
	})
	return member && err == nil, err
}

// JoinRequest is somebody who asks to be let into a group.
type JoinRequest struct {
	ID string `json:"id"`
	Named
	Note string    `json:"note,omitempty"`
	At   time.Time `json:"at"`
}

// JoinRequests returns at most limit requests, oldest first. after is nil for the
// beginning.
func (s *Service) JoinRequests(ctx context.Context, a Actor, group string, after *TimeKey, limit int) ([]JoinRequest, error) {
	if _, err := s.view(ctx, a, group, DecideRequests); err != nil {
		return nil, err
	}
	if after == nil {
		after = &TimeKey{}
	}
	return list(ctx, s, "read join requests", pgx.RowToStructByPos[JoinRequest], schema.SelectJoinRequests, group, after.At, after.ID, limit)
}

var errNoRequest = chat.Refuse(chat.CodeNotFound, "There is no such request.")

// Decide approves or declines a request to join.
func (s *Service) Decide(ctx context.Context, a Actor, group, who string, approve bool) error {
	return s.change(ctx, a, group, DecideRequests, []string{who}, func(ctx context.Context, st *standing) error {
		ended, err := s.exec(ctx, "end join request", schema.DeleteJoinRequest, group, who)
		if err != nil {
			return err
		}
		if ended == 0 {
			return errNoRequest
		}
		if approve {
			return s.admit(ctx, st, who, a.ID)
		}
		return s.notice(ctx, chat.UserTopic(who), "notice.group.declined", groupNotice{Group: group, Who: who})
	})
}

// invitationTTL is how long an invitation of one person is valid.
const invitationTTL = 30 * 24 * time.Hour

// Invitation is somebody who is invited to a group.
type Invitation struct {
	ID string `json:"id"`
	Named
	By      string    `json:"by"`
	At      time.Time `json:"at"`
	Expires time.Time `json:"expires"`
}

// Invite invites people, who join with it whatever the way to join. Members, the
// banned and those who are invited already are left out. For who has blocked the actor
// the invitation is noted all the same, and hidden: nothing tells of it.
func (s *Service) Invite(ctx context.Context, a Actor, group string, ids []string) error {
	return s.change(ctx, a, group, Invite, nil, func(ctx context.Context, st *standing) error {
		return s.invite(ctx, st, a.ID, ids)
	})
}

// invite invites people to a group that is locked.
func (s *Service) invite(ctx context.Context, st *standing, by string, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	n, err := s.count(ctx, schema.CountInvitations, st.ID, s.cfg.MaxInvitations)
	if err != nil {
		return err
	}
	if n+len(ids) > s.cfg.MaxInvitations {
		return chat.Refuse(chat.CodeLimit, "Too many are invited to this group. Wait for their answers, or withdraw some.")
	}
	for _, id := range ids {
		their, err := s.standing(ctx, Actor{ID: id}, st.ID)
		if err != nil {
			return err
		}
		if their.role != Outsider { // Invited: they have been told
			continue
		}
		var state string
		var blocking, blocked bool
		if err := s.db.Q(ctx).QueryRow(ctx, schema.SelectRelation, by, id).Scan(&state, &blocking, &blocked); err != nil {
			return fmt.Errorf("read relation: %w", err)
		}
		if _, err := s.exec(ctx, "invite", schema.UpsertInvitation, st.ID, id, by, invitationTTL, blocked); err != nil {
			return err
		}
		if blocked {
			continue
		}
		n := groupNotice{Group: st.ID, By: by, Who: id, Name: &st.Name}
		if err := s.notice(ctx, chat.UserTopic(id), "notice.group.invited", n); err != nil {
			return err
		}
	}
	return nil
}

// Invitations returns at most limit of those invited after the id.
func (s *Service) Invitations(ctx context.Context, a Actor, group, after string, limit int) ([]Invitation, error) {
	if _, err := s.view(ctx, a, group, ManageInvitations); err != nil {
		return nil, err
	}
	return list(ctx, s, "read invitations", pgx.RowToStructByPos[Invitation], schema.SelectInvitations, group, after, limit)
}

// Uninvite withdraws an invitation.
func (s *Service) Uninvite(ctx context.Context, a Actor, group, id string) error {
	return s.change(ctx, a, group, ManageInvitations, nil, func(ctx context.Context, _ *standing) error {
		_, err := s.exec(ctx, "withdraw invitation", schema.DeleteInvitation, group, id)
		return err
	})
}

// MyInvitation is a group that one is invited to.
type MyInvitation struct {
	Group   string    `json:"group"`
	Name    string    `json:"name"`
	Avatar  string    `json:"avatar,omitempty"`
	Members int       `json:"members"`
	By      string    `json:"by"`
	At      time.Time `json:"at"`
	Expires time.Time `json:"expires"`
}

// MyInvitations returns at most limit groups that the person is invited to, after
// the group's id.
func (s *Service) MyInvitations(ctx context.Context, me, after string, limit int) ([]MyInvitation, error) {
	return list(ctx, s, "read invitations", pgx.RowToStructByPos[MyInvitation], schema.SelectMyInvitations, me, after, limit)
}

// DeclineInvitation ends an invitation that the person has.
func (s *Service) DeclineInvitation(ctx context.Context, me, group string) error {
	_, err := s.exec(ctx, "decline invitation", schema.DeleteInvitation, group, me)
	return err
}

// Link is an invitation link.
type Link struct {
	ID      string    `json:"id"`
	By      string    `json:"by"`
	Uses    int       `json:"uses"`
	MaxUses *int      `json:"max_uses,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
}

// hashLink is what the database has of a link's token.
func hashLink(token string) []byte {
	sum := sha256.Sum256([]byte("link\n" + token))
	return sum[:]
}

// CreateLink makes an invitation link and returns its token, which is shown once.
// maxUses is 0 for any number.
func (s *Service) CreateLink(ctx context.Context, a Actor, group string, ttl time.Duration, maxUses int) (l *Link, token string, err error) {
	err = s.change(ctx, a, group, ManageLinks, nil, func(ctx context.Context, _ *standing) error {
		n, err := s.count(ctx, schema.CountLinks, group)
		if err != nil {
			return err
		}
		if n >= s.cfg.MaxLinks {
			return chat.Refuse(chat.CodeLimit, "This group has as many links as it can. They go when they have expired.")
		}
		token = rand.Text() // 130 bits
		l = &Link{ID: rand.Text(), By: a.ID}
		if maxUses > 0 {
			l.MaxUses = &maxUses
		}
		err = s.db.Q(ctx).QueryRow(ctx, schema.InsertLink, l.ID, group, hashLink(token), a.ID, ttl, l.MaxUses).Scan(&l.Expires, &l.Created)
		if err != nil {
			return fmt.Errorf("make link: %w", err)
		}
		return nil
	})
	return l, token, err
}

// Links returns at most limit valid links after the id.
func (s *Service) Links(ctx context.Context, a Actor, group, after string, limit int) ([]Link, error) {
	if _, err := s.view(ctx, a, group, ManageLinks); err != nil {
		return nil, err
	}
	return list(ctx, s, "read links", pgx.RowToStructByPos[Link], schema.SelectLinks, group, after, limit)
}

// RevokeLink ends a link at once.
func (s *Service) RevokeLink(ctx context.Context, a Actor, group, id string) error {
	return s.change(ctx, a, group, ManageLinks, nil, func(ctx context.Context, _ *standing) error {
		revoked, err := s.exec(ctx, "revoke link", schema.RevokeLink, group, id)
		if err == nil && revoked == 0 {
			err = chat.Refuse(chat.CodeNotFound, "There is no such link.")
		}
		return err
	})
}

var errNoLink = chat.Refuse(chat.CodeNotFound, "This link is not valid: it has expired, was revoked or is used up.")

// JoinByLink makes the actor a member of the group that the link is for.
func (s *Service) JoinByLink(ctx context.Context, a Actor, token string) (g *Group, err error) {
	a.Operator = false
	hash := hashLink(token)
	var group string
	err = s.db.Q(ctx).QueryRow(ctx, schema.SelectLinkGroup, hash).Scan(&group)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, errNoLink
	}
	if err != nil {
		return nil, fmt.Errorf("read link: %w", err)
	}
	err = s.change(ctx, a, group, JoinByLink, []string{a.ID}, func(ctx context.Context, st *standing) error {
		if !st.row { // a member uses nothing up
			used, err := s.exec(ctx, "use link", schema.UseLink, hash)
			if err != nil {
				return err
			}
			if used == 0 {
				return errNoLink
			}
			if err := s.admit(ctx, st, a.ID, a.ID); err != nil {
				return err
			}
		}
		st, err := s.standing(ctx, a, group)
		if err != nil {
			return err
		}
		g = &st.Group
		return nil
	})
	if errors.Is(err, errNoGroup) { // banned
		err = errNoLink
	}
	return g, err
}
