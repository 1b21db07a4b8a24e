package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"mynah/authhook"
	"mynah/schema"
)

type tokenCmd struct {
	Storage
	JWTSecret Secret `name:"jwt-secret" placeholder:"SECRET" help:"The secret to sign with; by default the one that serve --dev made in the data directory."`
	Issuer    string `name:"jwt-issuer" placeholder:"ISS" help:"The token's iss."`
	Audience  string `name:"jwt-audience" placeholder:"AUD" help:"The token's aud."`

	Sub    string        `required:"" placeholder:"ID" help:"Whose token it is."`
	Role   string        `enum:"user,device,service,archiver,admin" default:"user" help:"user, device, service, archiver or admin."`
	Group  []string      `placeholder:"ID" help:"Groups that the holder is a member of without any database. May be repeated."`
	ACLPub []string      `name:"acl-pub" placeholder:"FILTER" help:"Topics that the holder may publish to besides the chat. May be repeated."`
	ACLSub []string      `name:"acl-sub" placeholder:"FILTER" help:"Topics that the holder may subscribe to besides the chat. May be repeated."`
	TTL    time.Duration `name:"ttl" default:"24h" placeholder:"DURATION" help:"How long it is valid."`
}

// Run prints a token.
func (c *tokenCmd) Run(p *process) error {
	identity := Identity{JWTSecret: c.JWTSecret}
	if err := identity.validate(); err != nil {
		return err
	}
	if c.TTL <= 0 {
		return refuse("ttl", "must be above zero, such as 24h")
	}
	secret := c.JWTSecret
	if secret == "" {
		var err error
		if secret, err = c.devSecret(); err != nil {
			return err
		}
	}
	token, err := authhook.Mint([]byte(secret.Reveal()), authhook.TokenClaims{
		Subject: c.Sub, Role: authhook.Role(c.Role), Groups: c.Group, Pub: c.ACLPub, Sub: c.ACLSub,
		TTL: c.TTL, Issuer: c.Issuer, Audience: c.Audience,
	})
	if err != nil {
		return fmt.Errorf("make a token: %w", err)
	}
	fmt.Fprintln(p.stdout, token)
	return nil
}

// devSecret reads the secret that `serve --dev` made.
func (s *Storage) devSecret() (Secret, error) {
	raw, err := os.ReadFile(s.secretFile())
	if errors.Is(err, fs.ErrNotExist) {
		return "", refuse("jwt-secret", "is not set and there is none in %s; %w", s.DataDir, errNoDevSecret)
	}
	if err != nil {
		return "", refuse("data-dir", "read the secret in it: %w", err)
	}
	secret := Secret(strings.TrimSpace(string(raw)))
	if len(secret) < authhook.MinSecretLen {
		return "", refuse("data-dir", "%s is damaged; remove it, and serve --dev makes a new one", s.secretFile())
	}
	return secret, nil
}

// errNoDevSecret is in the error of devSecret where there is no secret.
var errNoDevSecret = errors.New("give the server's secret, or name the --data-dir of a server that was started with serve --dev")

// makeDevSecret returns the secret in the data directory and makes one first if
// there is none. Only `serve --dev` does this: a server that others rely on must
// not begin with a secret that nobody chose.
func (s *Storage) makeDevSecret() (Secret, error) {
	if _, err := os.Stat(s.secretFile()); err == nil {
		return s.devSecret()
	}
	if err := os.MkdirAll(s.DataDir, 0o750); err != nil {
		return "", refuse("data-dir", "cannot be made: %w", err)
	}
	raw := make([]byte, 48)
	_, _ = rand.Read(raw) // it never fails, see its documentation
	secret := Secret(base64.RawURLEncoding.EncodeToString(raw))
	// Whole or not at all: a half-written secret would be refused for ever.
	temporary := s.secretFile() + ".new"
	if err := os.WriteFile(temporary, []byte(secret.Reveal()+"\n"), 0o600); err != nil {
		return "", refuse("data-dir", "write a secret into it: %w", err)
	}
	if err := os.Rename(temporary, s.secretFile()); err != nil {
		return "", refuse("data-dir", "write a secret into it: %w", err)
	}
	return secret, nil
}

// selfSigned returns a source of short-lived tokens for a part of ours that is a
// client of the broker. Every call signs a new one, so a connection that ends at
// a token's expiry comes back with the next.
func selfSigned(secret Secret, claims authhook.TokenClaims) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		return authhook.Mint([]byte(secret.Reveal()), claims)
	}
}

// fromFile returns a source of tokens that reads the file anew every time, so
// that whatever renews the file need not tell us.
func fromFile(path string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		raw, err := os.ReadFile(path) //nolint:gosec // the operator names it
		if err != nil {
			return "", refuse("token-file", "cannot be read: %w", err)
		}
		return strings.TrimSpace(string(raw)), nil
	}
}

type migrateCmd struct {
	Logging
	Database
}

// Run migrates the database.
func (c *migrateCmd) Run(ctx context.Context, p *process) error {
	if c.DatabaseURL == "" {
		return errNoDatabase
	}
	if err := c.validate(); err != nil {
		return err
	}
	waiting := func(holder string) {
		fmt.Fprintf(p.stderr, "mynah: waiting for another migration of the database to end: %s\n", holder)
	}
	if err := schema.Migrate(ctx, c.DatabaseURL.Reveal(), waiting); err != nil {
		return databaseError(c.DatabaseURL, err)
	}
	fmt.Fprintf(p.stdout, "%s is at version %d\n", c.DatabaseURL, schema.Version())
	return nil
}

// databaseError says which flag's database it was and what to do about it. What
// the driver says may quote the address, so its password is taken out.
func databaseError(url SecretURL, err error) error {
	if errors.Is(err, schema.ErrNewer) || errors.Is(err, schema.ErrEncoding) {
		return refuse("database-url", "%s: %w", url, err)
	}
	// pgx tells every address that it tried on a line of its own, often the same.
	var reasons []string
	for line := range strings.SplitSeq(redactText(err.Error()), "\n") {
		if line = strings.TrimSpace(line); !slices.Contains(reasons, line) {
			reasons = append(reasons, line)
		}
	}
	return refuse("database-url", "%s cannot be used; see that PostgreSQL runs there, that the address is right and that its user may create tables (%s)", url, strings.Join(reasons, " "))
}
