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
	"mynah/schema"
	"mynah/schema/pgtx"
)

// Links are invitations for whoever has the link.
type Links struct{ *store }

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

// Create makes an invitation link and returns its token, which is shown once.
// maxUses is 0 for any number.
func (l *Links) Create(ctx context.Context, a Actor, group string, ttl time.Duration, maxUses int) (link *Link, token string, err error) {
	err = l.changeGroup(ctx, a, group, ManageLinks, nil, func(ctx context.Context, _ *access) error {
		n, err := l.db.Count(ctx, schema.CountLinks, group)
		if err != nil {
			return err
		}
		if n >= l.cfg.MaxLinks {
			return chat.Refuse(chat.CodeLimit, "This group has as many links as it can. They go when they have expired.")
		}
		token = rand.Text() // 130 bits
		link = &Link{ID: rand.Text(), By: a.ID}
		if maxUses > 0 {
			link.MaxUses = &maxUses
		}
		err = l.db.Q(ctx).QueryRow(ctx, schema.InsertLink, link.ID, group, hashLink(token), a.ID, ttl, link.MaxUses).Scan(&link.Expires, &link.Created)
		if err != nil {
			return fmt.Errorf("make link: %w", err)
		}
		return nil
	})
	return link, token, err
}

// List returns at most limit valid links after the id.
func (l *Links) List(ctx context.Context, a Actor, group, after string, limit int) ([]Link, error) {
	if _, err := l.authorize(ctx, a, group, ManageLinks); err != nil {
		return nil, err
	}
	return pgtx.List(ctx, l.db, "read links", pgx.RowToStructByPos[Link], schema.SelectLinks, group, after, limit)
}

// Revoke ends a link at once.
func (l *Links) Revoke(ctx context.Context, a Actor, group, id string) error {
	return l.changeGroup(ctx, a, group, ManageLinks, nil, func(ctx context.Context, _ *access) error {
		revoked, err := l.db.Exec(ctx, "revoke link", schema.RevokeLink, group, id)
		if err == nil && revoked == 0 {
			err = chat.Refuse(chat.CodeNotFound, "There is no such link.")
		}
		return err
	})
}

var errNoLink = chat.Refuse(chat.CodeNotFound, "This link is not valid: it has expired, was revoked or is used up.")

// Join makes the actor a member of the group that the link is for.
func (l *Links) Join(ctx context.Context, a Actor, token string) (g *Group, err error) {
	a.Operator = false
	hash := hashLink(token)
	var group string
	err = l.db.Q(ctx).QueryRow(ctx, schema.SelectLinkGroup, hash).Scan(&group)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, errNoLink
	}
	if err != nil {
		return nil, fmt.Errorf("read link: %w", err)
	}
	err = l.changeGroup(ctx, a, group, JoinByLink, []string{a.ID}, func(ctx context.Context, st *access) error {
		if !st.hasRow { // a member uses nothing up
			used, err := l.db.Exec(ctx, "use link", schema.UseLink, hash)
			if err != nil {
				return err
			}
			if used == 0 {
				return errNoLink
			}
			if err := l.addMember(ctx, st, a.ID, a.ID); err != nil {
				return err
			}
		}
		st, err := l.loadAccess(ctx, a, group)
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
