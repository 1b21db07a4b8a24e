// Package people knows people, devices and services: how they prove who they
// are, what they are called, and which tokens they hold. It speaks to PostgreSQL
// and to the services that vouch for people (WeChat, OpenID Connect, mail, SMS),
// and knows nothing of HTTP requests, which package api turns into calls.
//
// What it guarantees:
//
//   - Proofs (password, code, ticket) are checked with the same work and refused
//     with the same words whether the account exists or not.
//   - Secrets are kept as hashes: passwords by argon2id, refresh tokens, codes and
//     tickets by SHA-256 of at least 128 random bits.
//   - A refresh token works once. To use it again ends its session, except within
//     seconds of its first use, when the first answer is given again (refresh.go).
//   - An id is never given to anybody else, not even after its account is deleted.
//
// Errors for clients are *chat.Error.
package people

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/authhook"
	"mynah/chat"
	"mynah/internal/ratelimit"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// Service is the accounts of one database. Make it with New.
type Service struct {
	// Acquainted tells whose profile a viewer may see besides those that
	// anybody may; nil: nobody's.
	Acquainted Acquainted
	// OnDelete is called in the transaction that deletes an account, or is nil.
	OnDelete func(ctx context.Context, account string) error

	cfg    Config
	db     *pgtx.DB
	keys   *Keys
	log    *slog.Logger
	now    func() time.Time
	http   *http.Client
	hasher *hasher
	post   *post
	oidc   map[string]*oidcProvider
	// placeKey is the key of what is stored of places; see readPlaceKey.
	placeKey atomic.Pointer[[]byte]
	limits   struct {
		passwordHere  *ratelimit.Limiter // tries at one account's password from one address, device or session
		passwordKnown *ratelimit.Limiter // … from all addresses where it has signed in before
		passwordAll   *ratelimit.Limiter // … from all others
		find          *ratelimit.Limiter // searches by one person
	}
}

// New returns a Service. cfg must have been validated.
func New(db *pgtx.DB, keys *Keys, cfg Config, log *slog.Logger, now func() time.Time) (*Service, error) {
	hasher, err := newHasher()
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, db: db, keys: keys, log: log, now: now, http: direct(cfg.HTTP),
		hasher: hasher, post: newPost(log), oidc: map[string]*oidcProvider{},
	}
	for _, p := range cfg.OIDC {
		s.oidc[p.Name] = &oidcProvider{cfg: p}
	}
	s.limits.passwordHere = ratelimit.New(10, 15*time.Minute, now)
	s.limits.passwordKnown = ratelimit.New(100, time.Hour, now)
	s.limits.passwordAll = ratelimit.New(100, time.Hour, now)
	s.limits.find = ratelimit.New(60, time.Hour, now)
	return s, nil
}

// Start reads the keys and starts sending codes. To start what is started does
// nothing.
func (s *Service) Start(ctx context.Context) error {
	if err := s.keys.Start(ctx); err != nil {
		return err
	}
	if err := s.readPlaceKey(ctx); err != nil {
		return err
	}
	s.post.start(ctx)
	return nil
}

// Stop sends the codes that wait to be sent, at most until ctx ends. The keys go
// on: others use them as well.
func (s *Service) Stop(ctx context.Context) error {
	s.http.CloseIdleConnections()
	return s.post.stop(ctx)
}

// JWKS returns the public signing keys as a JWK Set.
func (s *Service) JWKS() []byte { return s.keys.JWKS() }

var errNotStarted = chat.Refuse(chat.CodeUnavailable, "The server is not ready yet. Try again.")

var errRefused = chat.Refuse(chat.CodeUnauthenticated, "The token is not accepted. Sign in again or renew it.")

// reserved are ids that parts of the server use themselves or that would be taken
// for one of them. A token of the first two is refused whoever signs it.
var reserved = []string{authhook.SubjectArchiver, authhook.SubjectSystem, "admin", "api", "broker", "mynah", "root", "service"}

// Admit returns nil if the holder of a verified token may come in: the account
// is neither disabled nor deleted and the token not revoked. It returns when the
// person signed in, or the zero time if the token is not from a session of ours.
// The subject of another issuer's token gets an account when it first comes.
func (s *Service) Admit(ctx context.Context, id *authhook.Identity) (signedIn time.Time, err error) {
	q := s.db.Q(ctx)
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
			return time.Time{}, errRefused
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
