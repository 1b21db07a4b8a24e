package people

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/internal/ratelimit"
	"mynah/people/displaytext"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// MaxName is the longest name, in characters; MaxExt the largest ext, in bytes.
const (
	MaxName = 64
	MaxExt  = 16 << 10
)

// Profile is what others see of an account.
type Profile struct {
	ID     string          `json:"id"`
	Kind   string          `json:"kind" enum:"user,device,service"`
	Name   string          `json:"name"`
	Avatar string          `json:"avatar,omitempty" doc:"An https address, or the id of an uploaded file"`
	Ext    json.RawMessage `json:"ext,omitempty" doc:"An object of the application's own"`
}

// Settings are what the person lets others do.
type Settings struct {
	FindByID    bool `json:"find_by_id" doc:"Strangers may find the profile by the exact id"`
	FindByPhone bool `json:"find_by_phone" doc:"… by a linked phone number"`
	FindByMail  bool `json:"find_by_mail" doc:"… by a linked mail address"`
}

// Account is an account as its owner sees it.
type Account struct {
	Profile
	Settings Settings  `json:"settings"`
	Created  time.Time `json:"created"`
}

// Profiles are what others see of people.
type Profiles struct {
	*store
	searches *ratelimit.Limiter // by one person
}

// Account returns the account.
func (s *Profiles) Account(ctx context.Context, id string) (*Account, error) {
	var a Account
	err := s.db.Q(ctx).QueryRow(ctx, schema.SelectAccount, id).Scan(&a.ID, &a.Kind, &a.Name, &a.Avatar, &a.Ext,
		&a.Settings.FindByID, &a.Settings.FindByPhone, &a.Settings.FindByMail, &a.Created)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, errNoProfile
	}
	if err != nil {
		return nil, fmt.Errorf("read account: %w", err)
	}
	return &a, nil
}

var errNoProfile = chat.Refuse(chat.CodeNotFound, "There is nobody whom you could find by that.")

// Edit is a change of a profile; what is nil stays.
type Edit struct {
	Name, Avatar                      *string
	Ext                               *json.RawMessage
	FindByID, FindByPhone, FindByMail *bool
}

// Edit changes the account's profile.
func (s *Profiles) Edit(ctx context.Context, id string, e Edit) (*Account, error) {
	if e.Name != nil {
		name, err := displaytext.Name("A name", *e.Name)
		if err != nil {
			return nil, err
		}
		e.Name = &name
	}
	if e.Avatar != nil {
		if err := CheckAvatar(*e.Avatar); err != nil {
			return nil, err
		}
	}
	var ext *string
	if e.Ext != nil {
		if len(*e.Ext) > MaxExt {
			return nil, errExt
		}
		text := string(*e.Ext)
		ext = &text
	}
	changed, err := s.db.Q(ctx).Exec(ctx, schema.UpdateProfile, id, e.Name, e.Avatar, ext, e.FindByID, e.FindByPhone, e.FindByMail)
	if pgtx.OutOfRange(err, "accounts_ext_check") {
		return nil, errExt // 1e308 is five bytes here and 309 digits in jsonb
	}
	if err != nil {
		return nil, fmt.Errorf("edit profile: %w", err)
	}
	if changed.RowsAffected() == 0 {
		return nil, errNoProfile
	}
	return s.Account(ctx, id)
}

var errExt = chat.Refuse(chat.CodeInvalid, fmt.Sprintf("ext has at most %d bytes, as PostgreSQL writes it.", MaxExt))

// CheckAvatar returns nil for "", an https address, and the id of an uploaded
// file. javascript: and data: addresses must not reach other people's pages.
func CheckAvatar(avatar string) error {
	if avatar == "" || chat.ValidID(avatar) {
		return nil
	}
	u, err := url.Parse(avatar)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.ContainsAny(avatar, " <>\"'`\\") {
		return chat.Refuse(chat.CodeInvalid, "An avatar is an https address or the id of an uploaded file.")
	}
	return nil
}

// acquainted tells which of the ids the viewer may see although they do not let strangers
// find them: contacts, and members of a common group that is not open to everybody.
func (s *Profiles) acquainted(ctx context.Context, viewer string, ids []string) (map[string]bool, error) {
	list, err := pgtx.List(ctx, s.db, "read acquaintances", pgx.RowTo[string], schema.SelectAcquainted, viewer, ids)
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool, len(list))
	for _, id := range list {
		known[id] = true
	}
	return known, nil
}

// List returns the profiles of the ids, in their order, as the viewer may see
// them. For who does not exist, was deleted, or may not be seen by the viewer the
// profile is blank, so that it tells none of these.
func (s *Profiles) List(ctx context.Context, viewer string, ids []string) ([]Profile, error) {
	rows, err := s.db.Q(ctx).Query(ctx, schema.SelectProfiles, ids)
	if err != nil {
		return nil, fmt.Errorf("read profiles: %w", err)
	}
	found := make(map[string]Profile, len(ids))
	var hidden []string
	for rows.Next() {
		var p Profile
		var open bool
		if err := rows.Scan(&p.ID, &p.Kind, &p.Name, &p.Avatar, &p.Ext, &open); err != nil {
			rows.Close()
			return nil, fmt.Errorf("read profiles: %w", err)
		}
		found[p.ID] = p
		if !open && p.ID != viewer {
			hidden = append(hidden, p.ID)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read profiles: %w", err)
	}
	if len(hidden) > 0 {
		known, err := s.acquainted(ctx, viewer, hidden)
		if err != nil {
			return nil, err
		}
		for _, id := range hidden {
			if !known[id] {
				delete(found, id)
			}
		}
	}
	list := make([]Profile, 0, len(ids))
	for _, id := range ids {
		p, ok := found[id]
		if !ok {
			p = Profile{ID: id, Kind: "user"}
		}
		if string(p.Ext) == "{}" {
			p.Ext = nil
		}
		list = append(list, p)
	}
	return list, nil
}

// Find returns the profile of who lets strangers find them by that key: by is
// "id", ProviderPhone or ProviderMail. It returns chat.CodeNotFound for everybody
// else, whether they exist or not.
func (s *Profiles) Find(ctx context.Context, viewer, by, key string) (*Profile, error) {
	if err := s.searches.Allow(viewer); err != nil {
		return nil, err
	}
	query := schema.FindByID
	if by != "id" {
		var err error
		if key, err = normalizeTarget(by, key); err != nil {
			return nil, err
		}
		query = schema.FindByPhone
		if by == ProviderMail {
			query = schema.FindByMail
		}
	}
	var p Profile
	err := s.db.Q(ctx).QueryRow(ctx, query, key).Scan(&p.ID, &p.Kind, &p.Name, &p.Avatar, &p.Ext)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, errNoProfile
	}
	if err != nil {
		return nil, fmt.Errorf("find: %w", err)
	}
	return &p, nil
}
