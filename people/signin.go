package people

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/people/displaytext"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// SignIn opens a session for the account that the identity belongs to. If it
// belongs to none and registration is open, it makes an account; created then is
// true.
func (s *Service) SignIn(ctx context.Context, p Proof, from Client) (tokens *Tokens, created bool, err error) {
	// A second round if two first sign-ins with one identity meet: the later
	// one finds the account that the other has made.
	for range 2 {
		err = s.db.Tx(ctx, func(ctx context.Context) error {
			tokens, created, err = s.signIn(ctx, p, from)
			return err
		})
		if !pgtx.Violates(err, "identities_pkey") && !pgtx.Violates(err, "identities_alias") {
			break
		}
	}
	return tokens, created, err
}

func (s *Service) signIn(ctx context.Context, p Proof, from Client) (tokens *Tokens, created bool, err error) {
	if p.consume != nil {
		if err := p.consume(ctx); err != nil {
			return nil, false, err
		}
	}
	id, disabled, err := s.accountOf(ctx, p)
	switch {
	case err != nil:
		return nil, false, err
	case disabled:
		return nil, false, errDisabled
	case id == "" && p.Provider == ProviderPassword:
		return nil, false, errWrongProof // deleted since the password was checked
	case id == "" && s.cfg.Registration == RegisterClosed:
		return nil, false, errRegistrationClosed
	case id == "":
		created = true
		if id, err = s.insertPerson(ctx, "", p.Name); err != nil {
			return nil, false, err
		}
		if err := s.insertIdentity(ctx, id, p, ""); err != nil {
			return nil, false, err
		}
	default:
		if err := s.recheckProof(ctx, id, p); err != nil {
			return nil, false, err
		}
	}
	if !created && p.Alias != "" {
		// The mini-program may have been bound to an open platform since, or
		// the person comes from a second one.
		if _, err := s.db.Q(ctx).Exec(ctx, schema.UpdateIdentityAlias, p.Provider, id, p.Alias); err != nil {
			return nil, false, fmt.Errorf("note alias: %w", err)
		}
	}
	tokens, err = s.Sessions.open(ctx, id, p.Provider, from)
	return tokens, created, err
}

// recheckProof locks the account and returns nil if the proof is one of it. The password
// may have been changed, or the identity unlinked, since the proof was checked: who
// changes a password because another knows it relies on all others being signed out.
func (s *Service) recheckProof(ctx context.Context, account string, p Proof) error {
	switch err := s.lock(ctx, account); {
	case errors.Is(err, errTokenRefused):
		return errWrongProof
	case err != nil:
		return err
	}
	if p.Provider == ProviderPassword {
		var hash string
		err := s.db.Q(ctx).QueryRow(ctx, schema.SelectPassword, p.Subject).Scan(&hash)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return errWrongProof
		case err != nil:
			return fmt.Errorf("read password: %w", err)
		case hash != p.hash:
			return errWrongProof
		}
		return nil
	}
	owner, _, err := s.accountOf(ctx, p)
	if err == nil && owner != account {
		err = errWrongProof
	}
	return err
}

// Register makes an account with an id and a password and signs it in. An empty
// id is chosen by the server. It refuses with chat.CodeConflict an id that is
// taken, was deleted or is reserved.
func (s *Service) Register(ctx context.Context, id, password, name string, from Client) (*Tokens, error) {
	switch {
	case s.cfg.Registration == RegisterClosed:
		return nil, errRegistrationClosed
	case s.cfg.Registration == RegisterAssigned && id != "":
		return nil, chat.Refuse(chat.CodeInvalid, "On this server ids are assigned: leave the id out.")
	case id != "" && !chat.ValidID(id):
		return nil, errInvalidID
	}
	name, wrong := displaytext.Name("A name", name)
	if err := errors.Join(checkPassword(password, id), wrong); err != nil {
		return nil, err
	}
	hash, err := s.Passwords.hasher.hash(ctx, password)
	if err != nil {
		return nil, err
	}
	var tokens *Tokens
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		id, err := s.insertPerson(ctx, id, name)
		if err != nil {
			return err
		}
		if err := s.insertIdentity(ctx, id, Proof{Provider: ProviderPassword, Subject: id}, hash); err != nil {
			return err
		}
		tokens, err = s.Sessions.open(ctx, id, ProviderPassword, from)
		return err
	})
	return tokens, err
}

var (
	errRegistrationClosed = chat.Refuse(chat.CodeNotAllowed, "Registration is closed on this server. Ask its operator for an account.")
	errDisabled           = chat.Refuse(chat.CodeNotAllowed, "This account has been disabled. Ask the server's operator.")
	errIdentityTaken      = chat.Refuse(chat.CodeConflict, "This identity belongs to another account. Unlink it there first.")
	errIDTaken            = chat.Refuse(chat.CodeConflict, "This id cannot be had. Choose another.")
)
