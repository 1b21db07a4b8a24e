package people

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/authhook"
	"mynah/chat"
	"mynah/people/displaytext"
	"mynah/schema"
)

// Bounds of a device's token.
const (
	DefaultDeviceTTL = 365 * 24 * time.Hour
	MaxDeviceTTL     = 10 * 365 * 24 * time.Hour
	maxDeviceGroups  = 100
)

// Devices are accounts with credentials instead of a person.
type Devices struct {
	*store
	keys *Keys
}

// Device is a device or service: an account with credentials instead of a person.
type Device struct {
	ID       string     `json:"id"`
	Role     string     `json:"role" enum:"device,service"`
	Name     string     `json:"name"`
	Group    string     `json:"group,omitempty" doc:"The group whose owner made it; absent if an admin did"`
	Groups   []string   `json:"groups" nullable:"false" doc:"Groups that it is a member of by its token"`
	Pub      []string   `json:"acl_pub,omitempty" doc:"MQTT topic filters that it may publish to besides the chat"`
	Sub      []string   `json:"acl_sub,omitempty" doc:"… subscribe to"`
	Creator  string     `json:"created_by"`
	Created  time.Time  `json:"created"`
	Seen     *time.Time `json:"seen,omitempty" doc:"When a token or key of it was last used, to the minute"`
	Disabled *time.Time `json:"disabled,omitempty"`
}

// DeviceSpec is what a new device is to be.
type DeviceSpec struct {
	ID       string // "" for one of the server's choice
	Role     authhook.Role
	Name     string
	Group    string // "" if an admin makes it
	Groups   []string
	Pub, Sub []string
	TTL      time.Duration   // of the token; 0 for DefaultDeviceTTL
	Key      json.RawMessage // public JWK, or nil for a token
}

// Credential is how a device proves itself. Exactly one of Token and KeyID is set.
type Credential struct {
	Token   string     // a JWT, shown once
	Expires *time.Time // of the token
	KeyID   string     // the kid that the device's own JWTs must name
}

// Create makes a device. Who may do that has been decided by the caller.
func (s *Devices) Create(ctx context.Context, creator string, spec DeviceSpec) (*Device, *Credential, error) {
	if err := spec.check(); err != nil {
		return nil, nil, err
	}
	if spec.ID == "" {
		spec.ID = newID(string(spec.Role[0]))
	}
	var device *Device
	var credential *Credential
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		q := s.db.Q(ctx)
		if err := s.insertAccount(ctx, spec.ID, string(spec.Role), spec.Name); err != nil {
			return err
		}
		if _, err := q.Exec(ctx, schema.InsertDevice, spec.ID, nullIfEmpty(spec.Group), spec.Groups, spec.Pub, spec.Sub, creator); err != nil {
			return fmt.Errorf("make device: %w", err)
		}
		var err error
		if device, err = s.Get(ctx, spec.ID); err != nil {
			return err
		}
		credential, err = s.issueCredential(ctx, device, spec.TTL, spec.Key)
		return err
	})
	return device, credential, err
}

// check returns nil if the device can be made so, and cuts its name (displaytext.Name).
func (d *DeviceSpec) check() (err error) {
	switch {
	case d.Role != authhook.RoleDevice && d.Role != authhook.RoleService:
		return chat.Refuse(chat.CodeInvalid, "The role is device or service.")
	case d.ID != "" && !chat.ValidID(d.ID):
		return errInvalidID
	case len(d.Groups) > maxDeviceGroups:
		return chat.Refuse(chat.CodeInvalid, fmt.Sprintf("A device has at most %d groups by its token.", maxDeviceGroups))
	case d.TTL < 0 || d.TTL > MaxDeviceTTL:
		return chat.Refuse(chat.CodeInvalid, "A token is valid for at most ten years.")
	}
	if i := slices.IndexFunc(d.Groups, func(g string) bool { return !chat.ValidID(g) }); i >= 0 {
		return errInvalidID
	}
	d.Name, err = displaytext.Name("A name", d.Name)
	return err
}

// issueCredential gives the device a token, or takes its key. Those it had before are
// revoked: a device has one way to prove itself.
func (s *Devices) issueCredential(ctx context.Context, d *Device, ttl time.Duration, key json.RawMessage) (*Credential, error) {
	q := s.db.Q(ctx)
	if _, err := q.Exec(ctx, schema.RevokeDeviceAccess, d.ID); err != nil {
		return nil, fmt.Errorf("revoke credentials: %w", err)
	}
	claims := authhook.TokenClaims{Subject: d.ID, Role: authhook.Role(d.Role), Groups: d.Groups, Pub: d.Pub, Sub: d.Sub, TTL: ttl}
	if key != nil {
		if _, err := parseDeviceJWK(key); err != nil {
			return nil, err
		}
		// Its tokens will be given these claims: they must be such as a
		// verifier takes.
		if _, _, err := s.keys.Sign(claims); err != nil {
			return nil, refusedClaims(err)
		}
		kid := deviceKIDPrefix + rand.Text()
		if _, err := q.Exec(ctx, schema.InsertDeviceAccess, kid, d.ID, nil, string(key), nil); err != nil {
			return nil, fmt.Errorf("store device's key: %w", err)
		}
		return &Credential{KeyID: kid}, nil
	}
	if ttl == 0 {
		ttl = DefaultDeviceTTL
	}
	jti := rand.Text()
	claims.IssuedAt = s.now()
	expires := authhook.Expiry(claims.IssuedAt, ttl) // as the token says it
	// sid as well: what is connected with the token ends by it like a session.
	claims.TTL, claims.TokenID, claims.Session = ttl, jti, jti
	token, kid, err := s.signLongLived(ctx, claims)
	if err != nil {
		return nil, refusedClaims(err)
	}
	if _, err := q.Exec(ctx, schema.InsertDeviceAccess, jti, d.ID, kid, nil, expires); err != nil {
		return nil, fmt.Errorf("note device's token: %w", err)
	}
	return &Credential{Token: token, Expires: &expires}, nil
}

// refusedClaims says what of a device's claims cannot be signed.
func refusedClaims(err error) error {
	if errors.Is(err, authhook.ErrClaims) || errors.Is(err, authhook.ErrTokenTooLong) {
		return chat.Refuse(chat.CodeInvalid, "acl_pub and acl_sub hold MQTT topic filters, at most 100 each and 16 KiB in all.")
	}
	return fmt.Errorf("sign device's token: %w", err)
}

// signLongLived signs a token that will outlive rotations of the key: a key that is
// retired verifies until the last token that is noted with it has expired, so the
// key must not be retired between the signing and the note. Another process may
// just have done that; then the new key signs.
func (s *Devices) signLongLived(ctx context.Context, claims authhook.TokenClaims) (token, kid string, err error) {
	for range 2 {
		if token, kid, err = s.keys.Sign(claims); err != nil {
			return "", "", err
		}
		err = s.db.Q(ctx).QueryRow(ctx, schema.SelectSigningKey, kid).Scan(&kid)
		if !errors.Is(err, pgx.ErrNoRows) {
			return token, kid, err
		}
		if err := s.keys.load(ctx); err != nil {
			return "", "", err
		}
	}
	return "", "", errBusy
}

// Renew gives the device a new token, or takes its new key. What it had
// before is refused at once.
func (s *Devices) Renew(ctx context.Context, id string, ttl time.Duration, key json.RawMessage) (c *Credential, err error) {
	if ttl < 0 || ttl > MaxDeviceTTL {
		return nil, chat.Refuse(chat.CodeInvalid, "A token is valid for at most ten years.")
	}
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		d, err := s.Get(ctx, id)
		if err != nil {
			return err
		}
		c, err = s.issueCredential(ctx, d, ttl, key)
		return err
	})
	return c, err
}

var errNoDevice = chat.Refuse(chat.CodeNotFound, "There is no such device.")

// Get returns a device.
func (s *Devices) Get(ctx context.Context, id string) (*Device, error) {
	rows, err := s.db.Q(ctx).Query(ctx, schema.SelectDevice, id)
	if err != nil {
		return nil, fmt.Errorf("read device: %w", err)
	}
	d, err := pgx.CollectExactlyOneRow(rows, scanDevice)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, errNoDevice
	}
	if err != nil {
		return nil, fmt.Errorf("read device: %w", err)
	}
	return &d, nil
}

func scanDevice(row pgx.CollectableRow) (d Device, err error) {
	var group *string
	err = row.Scan(&d.ID, &d.Role, &d.Name, &group, &d.Groups, &d.Pub, &d.Sub, &d.Creator, &d.Created, &d.Seen, &d.Disabled)
	if group != nil {
		d.Group = *group
	}
	return d, err
}

// List returns at most limit devices after the id, in the order of ids: those
// of the group, or all if group is empty.
func (s *Devices) List(ctx context.Context, group, after string, limit int) ([]Device, error) {
	query, args := schema.SelectDevices, []any{after, limit}
	if group != "" {
		query, args = schema.SelectGroupDevices, []any{after, limit, group}
	}
	rows, err := s.db.Q(ctx).Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read devices: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanDevice)
	if err != nil {
		return nil, fmt.Errorf("read devices: %w", err)
	}
	return list, nil
}

// Rename changes what the device is called.
func (s *Devices) Rename(ctx context.Context, id, name string) error {
	name, err := displaytext.Name("A name", name)
	if err != nil {
		return err
	}
	if _, err := s.db.Q(ctx).Exec(ctx, schema.UpdateName, id, name); err != nil {
		return fmt.Errorf("rename device: %w", err)
	}
	return nil
}
