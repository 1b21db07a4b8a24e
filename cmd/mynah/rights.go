package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"mynah/authhook"
	"mynah/directory"
	"mynah/groups"
	"mynah/outreach"
)

// directoryFile is where the broker keeps the rights that it knows, below the data
// directory.
const directoryFile = "directory"

// Rights says who may write to whom and how large groups may be.
type Rights struct {
	WritePolicy     string        `enum:"anyone,contacts" default:"anyone" help:"Who may write to people who have not set it: anyone, or contacts only."`
	MaxGroupMembers int           `default:"${max_group_members}" placeholder:"N" help:"Most members of a group."`
	MaxGroups       int           `default:"${max_groups}" placeholder:"N" help:"Most groups that somebody is in."`
	InvitationTTL   time.Duration `name:"invitation-ttl" default:"${invitation_ttl}" placeholder:"DURATION" help:"How long an invitation to a group is valid."`
}

// validate checks the limits.
func (r *Rights) validate() error {
	if *r == (Rights{}) { // the command has no groups
		return nil
	}
	return errors.Join(
		within("max-group-members", r.MaxGroupMembers, 1, 10_000_000),
		within("max-groups", r.MaxGroups, 1, 100_000),
		within("invitation-ttl", r.InvitationTTL, time.Minute, 10*365*24*time.Hour),
	)
}

// groupLimits returns the limits as the API and the directory want them.
func (r *Rights) groupLimits() groups.Config {
	return groups.Config{MaxMembers: r.MaxGroupMembers, MaxGroups: r.MaxGroups, InvitationTTL: r.InvitationTTL}
}

// startDirectory has the broker know groups, contacts and blocks. It goes on
// without PostgreSQL with what it has kept.
func (s *server) startDirectory(ctx context.Context) error {
	d, err := directory.New(directory.Config{
		DatabaseURL:  s.cfg.DatabaseURL.Reveal(),
		CacheFile:    filepath.Join(s.cfg.DataDir, directoryFile),
		ContactsOnly: s.cfg.WritePolicy == "contacts",
		Groups:       s.cfg.groupLimits(),
		Logger:       s.log.With("part", "directory"),
	})
	if err != nil {
		return err
	}
	if err := d.Start(ctx); err != nil {
		return fmt.Errorf("start the directory: %w", err)
	}
	s.shutdown.push("directory", d.Stop)
	s.directory = d
	return nil
}

// startNotices has the notices of the API published. Neither the broker nor the
// database need be there yet.
func (s *server) startNotices(ctx context.Context, brokerURL string, token func(context.Context) (string, error)) error {
	trust, err := s.cfg.brokerTLS()
	if err != nil {
		return err
	}
	r, err := outreach.New(outreach.Config{
		DatabaseURL: s.cfg.DatabaseURL.Reveal(), BrokerURL: brokerURL, TLS: trust, Token: token, Logger: s.log.With("part", "notices"),
	})
	if err != nil {
		return err
	}
	if err := r.Start(ctx); err != nil {
		return err
	}
	s.shutdown.push("notices", r.Stop)
	return nil
}

// noticesToken returns where the API alone has the token for its notices from.
func (s *server) noticesToken() (func(context.Context) (string, error), error) {
	switch {
	case s.cfg.TokenFile != "":
		return fromFile(s.cfg.TokenFile), nil
	case s.cfg.JWTSecret != "":
		return s.ownToken(s.cfg.JWTSecret, outreach.Subject, authhook.RoleService), nil
	}
	return nil, refuse("token-file", "is not set, nor is --jwt-secret; notices are published with a token of role service whose sub is %s: give one of them", outreach.Subject)
}
