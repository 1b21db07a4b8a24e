package people

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/authhook"
	"mynah/chat"
	"mynah/schema"
)

// Accounts are whom the server knows: who may come in, and who may not any more.
type Accounts struct {
	*store
	// OnDelete is called in the transaction that deletes an account, or is nil.
	OnDelete func(ctx context.Context, account string) error
}

var errNotStarted = chat.Refuse(chat.CodeUnavailable, "The server is not ready yet. Try again.")

var errTokenRefused = chat.Refuse(chat.CodeUnauthenticated, "The token is not accepted. Sign in again or renew it.")

// Admit returns nil if the holder of a verified token may come in: the account
// is neither disabled nor deleted and the token not revoked. It returns when the
// person signed in, or the zero time if the token is not from a session of ours.
// The subject of another issuer's token gets an account when it first comes.
func (a *Accounts) Admit(ctx context.Context, id *authhook.Identity) (signedIn time.Time, err error) {
	q := a.db.Q(ctx)
	tokens := slices.DeleteFunc([]string{id.Session, id.TokenID}, func(t string) bool { return t == "" })
	for range 2 {
		var (
			refused, revoked, due bool
			began                 *time.Time
		)
		err = q.QueryRow(ctx, schema.SelectAdmission, id.Subject, tokens, id.Session).Scan(&refused, &revoked, &began, &due)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			if _, err := q.Exec(ctx, schema.InsertKnownAccount, id.Subject, KindOf(id.Role)); err != nil {
				return time.Time{}, fmt.Errorf("make account for a known token: %w", err)
			}
			continue
		case err != nil:
			return time.Time{}, fmt.Errorf("read account of token: %w", err)
		case refused, revoked:
			return time.Time{}, errTokenRefused
		}
		if due {
			if _, err := q.Exec(ctx, schema.UpdateSeen, id.Subject); err != nil {
				return time.Time{}, fmt.Errorf("note last seen: %w", err)
			}
		}
		if began != nil {
			return *began, nil
		}
		return time.Time{}, nil
	}
	return time.Time{}, err
}

// KindOf returns the kind of account that a token's role stands for.
func KindOf(role authhook.Role) string {
	switch role {
	case authhook.RoleDevice:
		return "device"
	case authhook.RoleService, authhook.RoleArchiver:
		return "service"
	}
	return "user"
}

// Delete deletes the account: its name, identities, devices' credentials and
// sessions. Its messages stay, with its id, which nobody gets again. OnDelete runs in
// the same transaction. What else is under way for the account either comes before it
// or finds it gone (lock).
func (a *Accounts) Delete(ctx context.Context, id string) error {
	return a.db.Tx(ctx, func(ctx context.Context) error {
		q := a.db.Q(ctx)
		deleted, err := q.Exec(ctx, schema.DeleteAccount, id)
		if err != nil {
			return fmt.Errorf("delete account: %w", err)
		}
		if deleted.RowsAffected() == 0 {
			return errNoProfile
		}
		for _, statement := range []string{schema.DeleteIdentities, schema.DeleteAllSessions, schema.RevokeDeviceAccess, schema.ForgetPlaces} {
			if _, err := q.Exec(ctx, statement, id); err != nil {
				return fmt.Errorf("delete account: %w", err)
			}
		}
		if a.OnDelete != nil {
			return a.OnDelete(ctx, id)
		}
		return nil
	})
}

// DisableUnknown disables an account also if there is none yet: somebody can be refused
// before they come for the first time with a token that others signed. Their id is taken
// from then on.
func (a *Accounts) DisableUnknown(ctx context.Context, id string) error {
	return a.db.Tx(ctx, func(ctx context.Context) error {
		if id != authhook.SubjectArchiver && id != authhook.SubjectSystem { // which SetDisabled refuses
			if _, err := a.db.Q(ctx).Exec(ctx, schema.InsertKnownAccount, id, "user"); err != nil {
				return fmt.Errorf("make account to disable: %w", err)
			}
		}
		return a.SetDisabled(ctx, id, true, false)
	})
}

// SetDisabled disables or enables an account. A disabled one cannot sign in, its
// tokens are refused and what it has connected ends. The server's own parts cannot be
// disabled. byOwner says that it is the owner of a device's group who does it: they do not
// enable what an operator has disabled.
func (a *Accounts) SetDisabled(ctx context.Context, id string, disabled, byOwner bool) error {
	if id == authhook.SubjectArchiver || id == authhook.SubjectSystem {
		return chat.Refuse(chat.CodeNotAllowed, "This is a part of the server itself.")
	}
	return a.db.Tx(ctx, func(ctx context.Context) error {
		changed, err := a.db.Q(ctx).Exec(ctx, schema.UpdateDisabled, id, disabled, byOwner)
		if err != nil {
			return fmt.Errorf("disable account: %w", err)
		}
		switch {
		case changed.RowsAffected() > 0:
			return nil
		case byOwner:
			return chat.Refuse(chat.CodeNotAllowed, "An operator of the server has disabled it.")
		}
		return chat.Refuse(chat.CodeNotFound, "There is no such account.")
	})
}
