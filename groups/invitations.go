package groups

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/people"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// Invitations are how one becomes a member by somebody else's word.
type Invitations struct{ *store }

// Invitation is somebody who is invited to a group.
type Invitation struct {
	ID string `json:"id"`
	people.Named
	By      string    `json:"by"`
	At      time.Time `json:"at"`
	Expires time.Time `json:"expires"`
}

// PersonID returns the id of who is invited.
func (i *Invitation) PersonID() string { return i.ID }

// Invite invites people, who join with it whatever the way to join. Members, the
// banned and those who are invited already are left out. For who has blocked the actor
// the invitation is noted all the same, and hidden: nothing tells of it.
func (i *Invitations) Invite(ctx context.Context, a Actor, group string, ids []string) error {
	return i.changeGroup(ctx, a, group, Invite, nil, func(ctx context.Context, st *access) error {
		return i.invite(ctx, st, a.ID, ids)
	})
}

// List returns at most limit of those invited after the id.
func (i *Invitations) List(ctx context.Context, a Actor, group, after string, limit int) ([]Invitation, error) {
	if _, err := i.authorize(ctx, a, group, ManageInvitations); err != nil {
		return nil, err
	}
	return pgtx.List(ctx, i.db, "read invitations", pgx.RowToStructByPos[Invitation], schema.SelectInvitations, group, after, limit)
}

// Withdraw withdraws an invitation.
func (i *Invitations) Withdraw(ctx context.Context, a Actor, group, id string) error {
	return i.changeGroup(ctx, a, group, ManageInvitations, nil, func(ctx context.Context, _ *access) error {
		_, err := i.db.Exec(ctx, "withdraw invitation", schema.DeleteInvitation, group, id)
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

// Mine returns at most limit groups that the person is invited to, after
// the group's id.
func (i *Invitations) Mine(ctx context.Context, me, after string, limit int) ([]MyInvitation, error) {
	return pgtx.List(ctx, i.db, "read invitations", pgx.RowToStructByPos[MyInvitation], schema.SelectMyInvitations, me, after, limit)
}

// Decline ends an invitation that the person has.
func (i *Invitations) Decline(ctx context.Context, me, group string) error {
	_, err := i.db.Exec(ctx, "decline invitation", schema.DeleteInvitation, group, me)
	return err
}
