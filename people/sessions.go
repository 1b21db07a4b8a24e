package people

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/authhook"
	"mynah/internal/ratelimit"
	"mynah/people/seal"
	"mynah/schema"
)

// A refresh token is rt_ and, in base64url, 32 bytes that stay the same for the
// life of the session (the family) and 32 that are new after each use (the
// token). The database has a SHA-256 of each. The right family with a token that
// is not the newest is a token that was used before: then either the person or a
// thief has the newer one, nobody can tell which, and the session ends. A family
// that is unknown is a guess and ends nothing.
//
// There is one mercy. An answer can be lost on the way, and two tabs of a browser
// may refresh at once. For refreshGrace after a use, the same token is given the
// same new one again. What is kept for that is encrypted with the old token, which
// the database does not have. A thief gains nothing by it but those seconds.
const (
	refreshPrefix = "rt_"
	secretLen     = 32
	refreshGrace  = 30 * time.Second
	// SessionTTL is how long a session lasts without being used.
	SessionTTL = 60 * 24 * time.Hour
)

// Sessions are the devices on which people are signed in.
type Sessions struct {
	*store
	keys   *Keys
	places *places
}

// Tokens are what a signed-in device gets.
type Tokens struct {
	Account   string
	Session   string
	Access    string        // JWT (PROTOCOL.md), for HTTP and MQTT
	AccessTTL time.Duration // how long it is valid
	Refresh   string        // for the next ones; used once
	Device    string        // what the device shows at its next sign-in; only after one
}

// Client is where a request comes from.
type Client struct {
	Address netip.Addr
	Device  string // what the person calls the device, or ""

	DeviceToken string // what an earlier sign-in on the device answered, or ""
	Session     string // of a caller who is signed in, or ""
}

// key is what limits count a client as.
func (c Client) key() string { return ratelimit.AddressKey(c.Address) }

// maxSessions is how many sessions an account may have at once. The one that
// was used the longest ago ends for a new one.
const maxSessions = 100

// open begins a session.
func (s *Sessions) open(ctx context.Context, account, method string, from Client) (*Tokens, error) {
	family, token := randomSecret(), randomSecret()
	id := rand.Text()
	q := s.db.Q(ctx)
	if _, err := q.Exec(ctx, schema.InsertSession, id, account, method, cleanName(from.Device), from.Address.String(),
		hashSecret(family), hashSecret(token), SessionTTL); err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	if _, err := q.Exec(ctx, schema.DeleteOldestSessions, account, maxSessions); err != nil {
		return nil, fmt.Errorf("bound sessions: %w", err)
	}
	device, err := s.places.remember(ctx, account, from)
	if err != nil {
		return nil, err
	}
	tokens, err := s.tokens(account, id, family, token)
	if err == nil {
		tokens.Device = device
	}
	return tokens, err
}

func (s *Sessions) tokens(account, session string, family, token []byte) (*Tokens, error) {
	access, _, err := s.keys.Sign(authhook.TokenClaims{Subject: account, Session: session, TTL: AccessTTL})
	if err != nil {
		return nil, err
	}
	return &Tokens{
		Account: account, Session: session, Access: access, AccessTTL: AccessTTL,
		Refresh: refreshPrefix + base64.RawURLEncoding.EncodeToString(append(family[:secretLen:secretLen], token...)),
	}, nil
}

// Refresh uses a refresh token and returns new tokens. It returns
// chat.CodeUnauthenticated for a token that is unknown, expired or was used
// before; in the last case the session ends.
func (s *Sessions) Refresh(ctx context.Context, refresh string, from Client) (*Tokens, error) {
	family, token, ok := splitRefresh(refresh)
	if !ok {
		return nil, errTokenRefused
	}
	var (
		tokens *Tokens
		reused string
	)
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		q := s.db.Q(ctx)
		var (
			id, account        string
			current            []byte
			last, sealed       []byte
			inGrace, forbidden bool
		)
		// The row is locked: two uses at once come one after the other.
		err := q.QueryRow(ctx, schema.SelectSessionByFamily, hashSecret(family), refreshGrace).
			Scan(&id, &account, &current, &last, &sealed, &inGrace, &forbidden)
		if errors.Is(err, pgx.ErrNoRows) {
			return errTokenRefused
		}
		if err != nil {
			return fmt.Errorf("read session: %w", err)
		}
		if forbidden {
			return errTokenRefused
		}
		hash := hashSecret(token)
		next := randomSecret()
		switch {
		case subtle.ConstantTimeCompare(hash, current) == 1:
			answer, err := seal.Seal(token, sealPurposeRefresh, next)
			if err != nil {
				return fmt.Errorf("seal answer: %w", err)
			}
			if _, err := q.Exec(ctx, schema.RotateSession, id, hashSecret(next), hash, answer, from.Address.String(), SessionTTL); err != nil {
				return fmt.Errorf("rotate session: %w", err)
			}
			if err := s.places.rememberAll(ctx, account, s.places.atAddress(account, from)); err != nil {
				return err
			}
		case inGrace && subtle.ConstantTimeCompare(hash, last) == 1:
			if next, err = seal.Open(token, sealPurposeRefresh, sealed); err != nil {
				return fmt.Errorf("open answer: %w", err)
			}
		default:
			// Committed, although the caller gets an error.
			reused = id
			if _, err := q.Exec(ctx, schema.DeleteSession, account, id); err != nil {
				return fmt.Errorf("end session: %w", err)
			}
			return nil
		}
		tokens, err = s.tokens(account, id, family, next)
		return err
	})
	if err != nil {
		return nil, err
	}
	if reused != "" {
		s.log.LogAttrs(ctx, slog.LevelWarn, "a refresh token was used twice; its session has been ended",
			slog.String("session", reused), slog.String("address", from.Address.String()))
		return nil, errTokenRefused
	}
	return tokens, nil
}

func splitRefresh(refresh string) (family, token []byte, ok bool) {
	text, ok := strings.CutPrefix(refresh, refreshPrefix)
	if !ok {
		return nil, nil, false
	}
	both, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(both) != 2*secretLen {
		return nil, nil, false
	}
	return both[:secretLen:secretLen], both[secretLen:], true
}

func randomSecret() []byte {
	b := make([]byte, secretLen)
	_, _ = rand.Read(b) // never fails
	return b
}

func hashSecret(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

// sealPurposeRefresh is the purpose for which an answer is sealed with the token before.
const sealPurposeRefresh = "mynah refresh"

// Session is a signed-in device.
type Session struct {
	ID      string    `json:"id"`
	Device  string    `json:"device,omitempty" doc:"What it was called at sign-in"`
	Method  string    `json:"method" doc:"How the person signed in"`
	Address string    `json:"address,omitempty" doc:"Where it was last used"`
	Created time.Time `json:"created" doc:"When the person signed in"`
	Used    time.Time `json:"used" doc:"When it last took new tokens"`
	Expires time.Time `json:"expires" doc:"When it ends unless it is used"`
	Current bool      `json:"current" doc:"Whether it is the one that asks"`
}

// SessionKey is the place of a session in the list: newest first.
type SessionKey struct {
	Created time.Time `json:"c"`
	ID      string    `json:"i"`
}

// List returns at most limit sessions of the account after the key, newest
// first.
func (s *Sessions) List(ctx context.Context, account string, after *SessionKey, limit int) ([]Session, error) {
	from := SessionKey{Created: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
	if after != nil {
		from = *after
	}
	rows, err := s.db.Q(ctx).Query(ctx, schema.SelectSessions, account, from.Created, from.ID, limit)
	if err != nil {
		return nil, fmt.Errorf("read sessions: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v Session, err error) {
		err = row.Scan(&v.ID, &v.Device, &v.Method, &v.Address, &v.Created, &v.Used, &v.Expires)
		return v, err
	})
	if err != nil {
		return nil, fmt.Errorf("read sessions: %w", err)
	}
	return list, nil
}

// End ends a session of the account; its tokens are refused at once, here
// and on MQTT. It reports whether there was one.
func (s *Sessions) End(ctx context.Context, account, id string) (bool, error) {
	ended, err := s.db.Q(ctx).Exec(ctx, schema.DeleteSession, account, id)
	if err != nil {
		return false, fmt.Errorf("end session: %w", err)
	}
	return ended.RowsAffected() > 0, nil
}

// EndOthers ends all sessions of the account but keep.
func (s *Sessions) EndOthers(ctx context.Context, account, keep string) error {
	if _, err := s.db.Q(ctx).Exec(ctx, schema.DeleteSessions, account, keep); err != nil {
		return fmt.Errorf("end sessions: %w", err)
	}
	return nil
}
