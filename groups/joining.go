package groups

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/people"
	"mynah/people/displaytext"
	"mynah/schema"
	"mynah/schema/outbox"
	"mynah/schema/pgtx"
)

// Joining is how one becomes a member of one's own accord: at once or after approval.
type Joining struct{ *store }

// Outcome is what came of wanting to join.
type Outcome string

// The outcomes.
const (
	OutcomeMember Outcome = "member"
	OutcomeAsked  Outcome = "asked" // wait for approval
)

// Join makes the actor a member, or asks for approval with the note.
func (j *Joining) Join(ctx context.Context, a Actor, group, note string) (o Outcome, err error) {
	if err := displaytext.Check("A note", note); err != nil {
		return "", err
	}
	a.Operator = false // one joins as anybody does
	err = j.db.Tx(ctx, func(ctx context.Context) error {
		if err := people.LockPersons(ctx, j.db, a.ID); err != nil {
			return err
		}
		if _, err := j.db.Exec(ctx, "lock group", schema.LockGroup, group); err != nil {
			return err
		}
		st, err := j.loadAccess(ctx, a, group)
		if err != nil {
			return err
		}
		refused := st.allow(JoinGroup)
		if refused == nil {
			o = OutcomeMember
			return j.addMember(ctx, st, a.ID, a.ID)
		}
		if st.allow(AskToJoin) != nil {
			return refused
		}
		o = OutcomeAsked
		if err := people.RefuseDeleted(ctx, j.db, a.ID); err != nil {
			return err
		}
		return j.storeRequest(ctx, st, a.ID, note)
	})
	return o, err
}

// storeRequest notes a request to join.
func (j *Joining) storeRequest(ctx context.Context, st *access, who, note string) error {
	n, err := j.db.Count(ctx, schema.CountJoinRequests, st.ID, j.cfg.MaxInvitations)
	if err != nil {
		return err
	}
	if n >= j.cfg.MaxInvitations {
		return chat.Refuse(chat.CodeLimit, "Too many wait to be let into this group. Try again later.")
	}
	asked, err := j.db.Exec(ctx, "ask to join", schema.InsertJoinRequest, st.ID, who, note)
	if err != nil {
		return err
	}
	if asked == 0 { // they were notified, and see the note in the list
		_, err := j.db.Exec(ctx, "ask to join", schema.UpdateJoinRequest, st.ID, who, note)
		return err
	}
	return j.notifyStaff(ctx, "notice.group.request", groupNotice{Group: st.ID, Who: who, Note: note})
}

// JoinOpen makes somebody a member of an open group because they subscribe to it.
// It returns false if the group is not open, is not there, or has banned them.
func (j *Joining) JoinOpen(ctx context.Context, who, group string) (member bool, err error) {
	err = j.db.Tx(ctx, func(ctx context.Context) error {
		if err := people.LockPersons(ctx, j.db, who); err != nil {
			return err
		}
		if _, err := j.db.Exec(ctx, "lock group", schema.LockGroup, group); err != nil {
			return err
		}
		st, err := j.loadAccess(ctx, Actor{ID: who}, group)
		if errors.Is(err, errNoGroup) {
			return nil
		}
		if err != nil || st.Join != JoinOpen || st.allow(JoinGroup) != nil {
			return err
		}
		member = true
		return j.addMember(ctx, st, who, who)
	})
	return member && err == nil, err
}

// JoinRequest is somebody who asks to be let into a group.
type JoinRequest struct {
	ID string `json:"id"`
	people.Named
	Note string    `json:"note,omitempty"`
	At   time.Time `json:"at"`
}

// PersonID returns the id of who asks.
func (r *JoinRequest) PersonID() string { return r.ID }

// Requests returns at most limit requests, oldest first. after is nil for the
// beginning.
func (j *Joining) Requests(ctx context.Context, a Actor, group string, after *schema.TimeKey, limit int) ([]JoinRequest, error) {
	if _, err := j.authorize(ctx, a, group, DecideRequests); err != nil {
		return nil, err
	}
	if after == nil {
		after = &schema.TimeKey{}
	}
	return pgtx.List(ctx, j.db, "read join requests", pgx.RowToStructByPos[JoinRequest], schema.SelectJoinRequests, group, after.At, after.ID, limit)
}

var errNoRequest = chat.Refuse(chat.CodeNotFound, "There is no such request.")

// Decide approves or declines a request to join.
func (j *Joining) Decide(ctx context.Context, a Actor, group, who string, approve bool) error {
	return j.changeGroup(ctx, a, group, DecideRequests, []string{who}, func(ctx context.Context, st *access) error {
		ended, err := j.db.Exec(ctx, "end join request", schema.DeleteJoinRequest, group, who)
		if err != nil {
			return err
		}
		if ended == 0 {
			return errNoRequest
		}
		if approve {
			return j.addMember(ctx, st, who, a.ID)
		}
		return outbox.Notify(ctx, j.db, chat.UserTopic(who), "notice.group.declined", groupNotice{Group: group, Who: who})
	})
}
