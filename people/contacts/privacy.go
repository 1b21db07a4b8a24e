package contacts

import (
	"context"
	"fmt"

	"mynah/schema"
)

// Privacy is what a person lets others do; "" is the server's default.
type Privacy struct {
	Write    string `json:"write" enum:"anyone,contacts," doc:"Who may write to you; empty for the server's default"`
	Presence string `json:"presence" enum:"anyone,acquainted,nobody," doc:"Who may see whether you are online: acquainted are contacts and members of a common group; empty for the default, which is that"`
}

// Privacy returns the person's settings.
func (s *Service) Privacy(ctx context.Context, me string) (p Privacy, err error) {
	if err = s.db.Q(ctx).QueryRow(ctx, schema.SelectPrivacy, me).Scan(&p.Write, &p.Presence); err != nil {
		return p, fmt.Errorf("read privacy: %w", err)
	}
	return p, nil
}

// SetPrivacy changes the person's settings; what is nil stays.
func (s *Service) SetPrivacy(ctx context.Context, me string, write, presence *string) (Privacy, error) {
	if _, err := s.db.Exec(ctx, "set privacy", schema.UpdatePrivacy, me, write, presence); err != nil {
		return Privacy{}, err
	}
	return s.Privacy(ctx, me)
}
