package people

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/authhook"
	"mynah/chat"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// store is what the parts of a Service share: accounts and their identities in the
// database, and the rules about ids.
type store struct {
	cfg Config
	db  *pgtx.DB
	log *slog.Logger
	now func() time.Time
}

// reserved are ids that parts of the server use themselves or that would be taken
// for one of them. A token of the first two is refused whoever signs it.
var reserved = []string{authhook.SubjectArchiver, authhook.SubjectSystem, "admin", "api", "broker", "mynah", "root", "service"}

func isReserved(id string) bool {
	if id == "." || id == ".." { // clients take them out of addresses: RFC 3986 section 5.2.4
		return true
	}
	if authhook.Escaped(id) { // stands for somebody of a foreign issuer
		return true
	}
	for _, r := range reserved {
		if strings.EqualFold(id, r) {
			return true
		}
	}
	return false
}

// newID returns an id of 80 random bits after the kind's letter.
func newID(kind string) string { return kind + strings.ToLower(rand.Text()[:16]) }

var errInvalidID = chat.Refuse(chat.CodeInvalid, "An id is 1–64 characters of A-Z a-z 0-9 _ . ~ -")

// accountOf returns the account of the identity, or "" if it has none, and whether
// that account is disabled.
func (s *store) accountOf(ctx context.Context, p Proof) (id string, disabled bool, err error) {
	err = s.db.Q(ctx).QueryRow(ctx, schema.SelectIdentity, p.Provider, p.Subject, nullIfEmpty(p.Alias)).Scan(&id, &disabled)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("look up identity: %w", err)
	}
	return id, disabled, nil
}

func (s *store) insertPerson(ctx context.Context, id, name string) (string, error) {
	if id == "" {
		id = newID("u")
	}
	return id, s.insertAccount(ctx, id, "user", cleanName(name))
}

// insertAccount makes an account with the id, as part of the context's transaction, unless
// the id, in whatever case, is or was in use.
func (s *store) insertAccount(ctx context.Context, id, kind, name string) error {
	if isReserved(id) {
		return errIDTaken
	}
	q := s.db.Q(ctx)
	if _, err := q.Exec(ctx, schema.LockID, id); err != nil {
		return fmt.Errorf("lock id: %w", err)
	}
	inserted, err := q.Exec(ctx, schema.InsertAccount, id, kind, name)
	if err != nil {
		return fmt.Errorf("make account: %w", err)
	}
	if inserted.RowsAffected() == 0 {
		return errIDTaken
	}
	return nil
}

// lock keeps the account from being deleted until the context's transaction ends, and
// refuses if it has been: a request that was let in before must not leave a password or
// a phone number behind.
func (s *store) lock(ctx context.Context, account string) error {
	err := s.db.Q(ctx).QueryRow(ctx, schema.LockAccount, account).Scan(&account)
	if errors.Is(err, pgx.ErrNoRows) {
		return errTokenRefused
	}
	if err != nil {
		return fmt.Errorf("lock account: %w", err)
	}
	return nil
}

func (s *store) insertIdentity(ctx context.Context, account string, p Proof, secret string) error {
	_, err := s.db.Q(ctx).Exec(ctx, schema.InsertIdentity, p.Provider, p.Subject, nullIfEmpty(p.Alias), account, nullIfEmpty(secret))
	if err != nil {
		return fmt.Errorf("link identity: %w", err)
	}
	return nil
}

// nullIfEmpty makes an absent text NULL.
func nullIfEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
