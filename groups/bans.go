package groups

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/people"
	"mynah/people/displaytext"
	"mynah/schema"
	"mynah/schema/outbox"
	"mynah/schema/pgtx"
)

// Ban is somebody who may not be in a group.
type Ban struct {
	ID string `json:"id"`
	people.Named
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

// PersonID returns the id of who is banned.
func (b *Ban) PersonID() string { return b.ID }

// Ban removes somebody and keeps them out, whatever their token says. Somebody who
// is no member can be banned, too.
func (m *Members) Ban(ctx context.Context, a Actor, group, id, reason string) error {
	if err := displaytext.Check("A reason", reason); err != nil {
		return err
	}
	return m.changeGroup(ctx, a, group, ManageBans, []string{id}, func(ctx context.Context, st *access) error {
		n, err := m.db.Count(ctx, schema.CountBans, group, m.cfg.MaxBans)
		if err != nil {
			return err
		}
		if n >= m.cfg.MaxBans {
			return chat.Refuse(chat.CodeLimit, "This group has banned as many as it can.")
		}
		return m.remove(ctx, a, st, id, "notice.group.banned", func() (int64, error) {
			for _, statement := range []string{schema.DeleteJoinRequest, schema.DeleteInvitation} {
				if _, err := m.db.Exec(ctx, "ban", statement, group, id); err != nil {
					return 0, err
				}
			}
			return m.db.Exec(ctx, "ban", schema.InsertBan, group, id, a.ID, reason)
		})
	})
}

// Unban lets somebody back in, who is not a member by that.
func (m *Members) Unban(ctx context.Context, a Actor, group, id string) error {
	return m.changeGroup(ctx, a, group, ManageBans, nil, func(ctx context.Context, _ *access) error {
		lifted, err := m.db.Exec(ctx, "lift ban", schema.DeleteBan, group, id)
		if err != nil || lifted == 0 {
			return err
		}
		return outbox.Notify(ctx, m.db, chat.UserTopic(id), "notice.group.unbanned", groupNotice{Group: group, By: a.ID, Who: id})
	})
}

// Bans returns at most limit of those banned after the id.
func (m *Members) Bans(ctx context.Context, a Actor, group, after string, limit int) ([]Ban, error) {
	if _, err := m.authorize(ctx, a, group, ManageBans); err != nil {
		return nil, err
	}
	return pgtx.List(ctx, m.db, "read bans", pgx.RowToStructByPos[Ban], schema.SelectBans, group, after, limit)
}
