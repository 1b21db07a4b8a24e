// Package people is the domain of people, devices and services: how they prove who they
// are, what they are called, and which tokens they hold. It speaks to PostgreSQL and to the
// services that vouch for people (WeChat, OpenID Connect, mail, SMS), and knows nothing of
// HTTP requests, which package api turns into calls. DESIGN.md beside it says why it is as
// it is.
//
// What it guarantees:
//
//   - Proofs (password, code, ticket) are checked with the same work and refused
//     with the same words whether the account exists or not.
//   - Secrets are kept as hashes: passwords by argon2id, refresh tokens, codes and
//     tickets by SHA-256 of at least 128 random bits.
//   - A refresh token works once. To use it again ends its session, except within
//     seconds of its first use, when the first answer is given again (sessions.go).
//   - An id is never given to anybody else, not even after its account is deleted.
//
// # Map
//
// Every way of signing in ends in a Proof, which Service.SignIn and Identities.Link take.
//
//	service.go     Service: New, Start, Stop
//	signin.go      … SignIn and Register
//	proof.go       Proof: what somebody has shown to be theirs
//	password.go    Passwords: proofs by id and password; hashing
//	places.go      where somebody has signed in before; limits of tries
//	codes.go       Codes: proofs by a code that was sent; sender.go, smtp.go, webhook.go send
//	wechat.go      WeChatLogin, and oidc.go OIDCLogin: proofs by others' word
//	identities.go  Identities: linking and unlinking
//	sessions.go    Sessions: signed-in devices and their tokens
//	accounts.go    Accounts: who may come in; disabling and deleting
//	profile.go     Profiles: names, pictures, settings, and who may see them
//	devices.go     Devices: accounts of things and programs
//	keys.go        Keys: what signs tokens; devicekeys.go, keyfile.go
//	store.go       what they share: accounts and ids in the database
//	person.go      what other packages of the domain need of a person
//
// Errors for clients are *chat.Error.
package people

import (
	"context"
	"log/slog"
	"time"

	"mynah/internal/ratelimit"
	"mynah/schema/pgtx"
)

// Service is the people, devices and services of one database, by what can be done with
// them. Make it with New. It is safe for concurrent use.
type Service struct {
	*store
	Accounts   *Accounts
	Profiles   *Profiles
	Passwords  *Passwords
	Codes      *Codes
	WeChat     *WeChatLogin
	OIDC       *OIDCLogin
	Identities *Identities
	Sessions   *Sessions
	Devices    *Devices

	keys *Keys
}

// New returns a Service. cfg must have been validated.
func New(db *pgtx.DB, keys *Keys, cfg Config, log *slog.Logger, now func() time.Time) (*Service, error) {
	hasher, err := newHasher()
	if err != nil {
		return nil, err
	}
	st := &store{cfg: cfg, db: db, log: log, now: now}
	client := withoutRedirects(cfg.HTTP)
	places := newPlaces(st, keys.cfg.Secret)
	codes := &Codes{store: st, queue: newCodeQueue(log)}
	return &Service{
		store: st, keys: keys,
		Accounts:   &Accounts{store: st},
		Profiles:   &Profiles{store: st, searches: ratelimit.New(60, time.Hour, now)},
		Passwords:  &Passwords{store: st, hasher: hasher, places: places, codes: codes},
		Codes:      codes,
		WeChat:     &WeChatLogin{store: st, http: client},
		OIDC:       newOIDCLogin(st, client),
		Identities: &Identities{store: st},
		Sessions:   &Sessions{store: st, keys: keys, places: places},
		Devices:    &Devices{store: st, keys: keys},
	}, nil
}

// Start reads the keys and starts sending codes. To start what is started does
// nothing.
func (s *Service) Start(ctx context.Context) error {
	if err := s.keys.Start(ctx); err != nil {
		return err
	}
	if err := s.Sessions.places.readKey(ctx); err != nil {
		return err
	}
	s.Codes.queue.start(ctx)
	return nil
}

// Stop sends the codes that wait to be sent, at most until ctx ends. The keys go
// on: others use them as well.
func (s *Service) Stop(ctx context.Context) error {
	s.WeChat.http.CloseIdleConnections() // which OIDC uses as well
	return s.Codes.queue.stop(ctx)
}

// JWKS returns the public signing keys as a JWK Set.
func (s *Service) JWKS() []byte { return s.keys.JWKS() }
