package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"mynah/authhook"
	"mynah/people"
)

// keysFile has the API's public keys for a broker that starts while the database is
// away, below the data directory.
const keysFile = "signing-keys.json"

// keysRetryPause is between two attempts of a broker to read the API's keys.
const keysRetryPause = 2 * time.Second

// newKeys returns the API's own signing keys, which the secret seals in the database.
// The public ones are kept in the file, if one is named.
func (s *server) newKeys(secret Secret, file string, takeover bool) *people.Keys {
	return people.NewKeys(s.pool, people.KeysConfig{
		Secret: []byte(secret.Reveal()), Issuer: s.cfg.PublicURL, File: file, ReplaceSealed: takeover, Log: s.log.With("part", "keys"),
	})
}

// startKeys reads the signing keys, making one at the first start. With ours the
// database is this process's alone: a key that was sealed with another secret is
// replaced, since nobody else can do that.
func (s *server) startKeys(ctx context.Context, secret Secret, ours bool) error {
	s.keys = s.newKeys(secret, "", ours)
	if err := s.keys.Start(ctx); err != nil {
		if errors.Is(err, people.ErrKeySecret) {
			return refuse("jwt-secret", "%w", err)
		}
		return fmt.Errorf("read the signing keys: %w", err)
	}
	s.shutdown.push("signing keys", s.keys.Stop)
	return nil
}

// followKeys reads the API's signing keys for a broker, which goes on without the
// database: it tries until it has them. Until then it verifies with the public keys that
// it has kept from the last time.
func (s *server) followKeys(ctx context.Context, secret Secret) error {
	file := filepath.Join(s.cfg.DataDir, keysFile)
	s.keys = s.newKeys(secret, file, false)
	s.shutdown.push("signing keys", s.keys.Stop)
	err := s.keys.Start(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, people.ErrKeySecret):
		return refuse("jwt-secret", "%w", err)
	}
	kept, unread := s.keys.LoadFile()
	if unread != nil {
		s.log.Warn("the kept signing keys are of no use", "err", unread)
	}
	if kept > 0 {
		s.log.Warn("the database does not answer; tokens of the API are verified with the keys kept from the last time until it does",
			"keys", kept, "file", file, "err", err)
	} else {
		s.log.Warn("tokens of the API are refused until the database answers", "err", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		told := false
		for {
			err := s.keys.Start(ctx)
			if err == nil {
				break
			}
			if errors.Is(err, people.ErrKeySecret) && !told {
				// With the database there this is refused at start.
				s.log.Error("--jwt-secret: the next start will be refused", "err", err)
				told = true
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(keysRetryPause):
			}
		}
		s.log.Info("tokens of the API are accepted; its keys have been read from the database")
	}()
	s.shutdown.push("wait for signing keys", func(context.Context) error { cancel(); <-done; return nil })
	return nil
}

// openVerifier makes the verifier, which accepts tokens of the secret, of the
// configured key sets, and of the API's own keys if there are any.
func (s *server) openVerifier(secret Secret) error {
	cfg := authhook.VerifierConfig{
		Secret: []byte(secret.Reveal()), JWKS: s.cfg.JWKS, Issuer: s.cfg.Issuer, Audience: s.cfg.Audience,
		Claims: authhook.ClaimNames(s.cfg.JWTClaim), Log: s.log.With("part", "tokens"),
		Leeway: zeroIsNone(s.cfg.JWTLeeway), RefreshInterval: s.cfg.JWKSRefresh, RefreshGap: s.cfg.JWKSRefreshGap,
	}
	if s.keys != nil {
		cfg.LocalKeys = s.keys
	}
	verifier, err := authhook.NewVerifier(cfg)
	if err != nil {
		return refuse("jwks", "%w", err)
	}
	s.shutdown.push("verifier", func(context.Context) error { verifier.Close(); return nil })
	s.verifier = verifier
	return nil
}

// ownTokenTTL is how long a token lives that a part of ours signs for itself. At
// its end the broker closes the connection and the part comes back with a new one.
const ownTokenTTL = 24 * time.Hour

// ownToken returns the token source of a part of ours.
func (s *server) ownToken(secret Secret, subject string, role authhook.Role) func(context.Context) (string, error) {
	return selfSigned(secret, authhook.TokenClaims{
		Subject: subject, Role: role, TTL: ownTokenTTL, Issuer: s.cfg.Issuer, Audience: s.cfg.Audience,
	})
}
