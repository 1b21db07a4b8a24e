package people

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// Identities are the ways in which people sign in.
type Identities struct{ *store }

// Identity is a way in which a person signs in.
type Identity struct {
	Provider string    `json:"provider" doc:"password, phone, mail, wechat or oidc:<name>" example:"phone"`
	Subject  string    `json:"subject,omitempty" doc:"The phone number or mail address; for other providers left out"`
	Created  time.Time `json:"created"`
}

// List returns the account's identities.
func (i *Identities) List(ctx context.Context, account string) ([]Identity, error) {
	rows, err := i.db.Q(ctx).Query(ctx, schema.SelectIdentities, account)
	if err != nil {
		return nil, fmt.Errorf("read identities: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (one Identity, err error) {
		err = row.Scan(&one.Provider, &one.Subject, &one.Created)
		if one.Provider != ProviderPhone && one.Provider != ProviderMail {
			one.Subject = "" // an openid is no use to people
		}
		return one, err
	})
	if err != nil {
		return nil, fmt.Errorf("read identities: %w", err)
	}
	return list, nil
}

// Link adds an identity to the account, in place of the one of the same provider
// if there is one. It refuses with chat.CodeConflict what belongs to another
// account.
func (i *Identities) Link(ctx context.Context, account string, p Proof) error {
	err := i.db.Tx(ctx, func(ctx context.Context) error {
		if p.consume != nil {
			if err := p.consume(ctx); err != nil {
				return err
			}
		}
		if err := i.lock(ctx, account); err != nil {
			return err
		}
		owner, _, err := i.accountOf(ctx, p)
		switch {
		case err != nil:
			return err
		case owner != "" && owner != account:
			return errIdentityTaken
		}
		if _, err := i.db.Q(ctx).Exec(ctx, schema.DeleteIdentity, account, p.Provider); err != nil {
			return fmt.Errorf("replace identity: %w", err)
		}
		return i.insertIdentity(ctx, account, p, "")
	})
	if pgtx.Violates(err, "identities_pkey") || pgtx.Violates(err, "identities_alias") {
		return errIdentityTaken // by somebody who was faster
	}
	return err
}

// Unlink removes the account's identity at the provider. The last one stays: the
// person could not sign in any more.
func (i *Identities) Unlink(ctx context.Context, account, provider string) error {
	return i.db.Tx(ctx, func(ctx context.Context) error {
		// Two removals at once must not remove the last two.
		if err := i.lock(ctx, account); err != nil {
			return err
		}
		var all, this int
		if err := i.db.Q(ctx).QueryRow(ctx, schema.CountIdentities, account, provider).Scan(&all, &this); err != nil {
			return fmt.Errorf("count identities: %w", err)
		}
		switch {
		case this == 0:
			return chat.Refuse(chat.CodeNotFound, "The account has no such identity.")
		case all == 1:
			return chat.Refuse(chat.CodeConflict, "This is the only way to sign in to the account. Link another first, or delete the account.")
		}
		if _, err := i.db.Q(ctx).Exec(ctx, schema.DeleteIdentity, account, provider); err != nil {
			return fmt.Errorf("unlink identity: %w", err)
		}
		return nil
	})
}
