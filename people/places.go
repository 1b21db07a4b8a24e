package people

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"strings"

	"mynah/internal/ratelimit"
	"mynah/schema"
)

// A place is an address or a device from which somebody has signed in. Tries at their
// password from there are counted apart from those of strangers, who else could keep a
// person out by guessing. A device shows a token that its last sign-in answered; an
// address is known by itself. What is stored is a keyed hash.

// mostPlaces is how many places are remembered of an account.
const mostPlaces = 50

const (
	deviceTokenPrefix = "dt_"
	maxDeviceToken    = 64
)

// readPlaceKey makes the key for places of the server's secret and of what is this
// database's own: without a secret, a copy of the database has all that it takes to try
// addresses. With another secret the places are forgotten and learned anew.
func (s *Service) readPlaceKey(ctx context.Context) error {
	var salt string
	if err := s.db.Pool().QueryRow(ctx, schema.SelectPlaceSalt).Scan(&salt); err != nil {
		return fmt.Errorf("read the database's identity: %w", err)
	}
	mac := hmac.New(sha256.New, s.keys.cfg.Secret)
	mac.Write([]byte("mynah known places\n" + salt))
	key := mac.Sum(nil)
	s.placeKey.Store(&key)
	return nil
}

// place returns what is stored of a place of the account.
func (s *Service) place(account, kind, value string) []byte {
	key := s.placeKey.Load()
	if key == nil {
		return nil // not started; NULL is equal to nothing
	}
	mac := hmac.New(sha256.New, *key)
	mac.Write([]byte(account + "\n" + kind + "\n" + value)) // an id has no line's end
	return mac.Sum(nil)
}

func (s *Service) addressPlace(account string, from Client) []byte {
	return s.place(account, "address", ratelimit.Address(from.Address))
}

func (s *Service) devicePlace(account, token string) []byte {
	if !strings.HasPrefix(token, deviceTokenPrefix) || len(token) > maxDeviceToken {
		return nil
	}
	return s.place(account, "device", token)
}

// knows reports whether the account has signed in at the client's address, and on its
// device.
func (s *Service) knows(ctx context.Context, account string, from Client) (address, device bool, err error) {
	err = s.db.Q(ctx).QueryRow(ctx, schema.KnowsPlaces, account, s.addressPlace(account, from),
		s.devicePlace(account, from.DeviceToken), from.Address.String()).Scan(&address, &device)
	if err != nil {
		return false, false, fmt.Errorf("look up places: %w", err)
	}
	return address, device, nil
}

// remember notes that the account has signed in from the client, as part of the context's
// transaction, and returns the token of the device.
func (s *Service) remember(ctx context.Context, account string, from Client) (deviceToken string, err error) {
	deviceToken = from.DeviceToken
	if _, known, err := s.knows(ctx, account, from); err != nil {
		return "", err
	} else if !known {
		deviceToken = deviceTokenPrefix + randomToken()
	}
	return deviceToken, s.note(ctx, account, s.addressPlace(account, from), s.devicePlace(account, deviceToken))
}

// note stores places of the account.
func (s *Service) note(ctx context.Context, account string, places ...[]byte) error {
	q := s.db.Q(ctx)
	added := int64(0)
	for _, place := range places {
		if place == nil {
			continue
		}
		tag, err := q.Exec(ctx, schema.RememberPlace, account, place)
		if err != nil {
			return fmt.Errorf("remember place: %w", err)
		}
		added += tag.RowsAffected()
	}
	if added == 0 {
		return nil
	}
	if _, err := q.Exec(ctx, schema.ForgetOldestPlaces, account, mostPlaces); err != nil {
		return fmt.Errorf("bound places: %w", err)
	}
	return nil
}

// count counts a try at the account's password. settle is called with whether it was a
// wrong one; others do not count, nor those that could not be looked at: people would be
// shut out after an outage, when all sign in again.
func (s *Service) count(ctx context.Context, id string, from Client) (settle func(wrong bool), err error) {
	type bucket struct {
		limiter *ratelimit.Limiter
		key     string
	}
	var buckets []bucket
	here := bucket{s.limits.passwordHere, from.key() + " " + id}
	switch address, device, err := s.knows(ctx, id, from); {
	case err != nil:
		return nil, err
	case from.Session != "":
		buckets = []bucket{{s.limits.passwordHere, "session " + from.Session + " " + id}}
	case device:
		buckets = []bucket{{s.limits.passwordHere, "device " + from.DeviceToken + " " + id}}
	case address:
		buckets = []bucket{here, {s.limits.passwordKnown, id}}
	default:
		// By target from one address, so that one attacker does not use up what all have;
		// and from everywhere, so that many addresses together do not get far.
		buckets = []bucket{here, {s.limits.passwordAll, id}}
	}
	for i, b := range buckets {
		if err := b.limiter.Allow(b.key); err != nil {
			for _, before := range buckets[:i] {
				before.limiter.Forgive(before.key) // it was not tried
			}
			return nil, err
		}
	}
	return func(wrong bool) {
		if wrong {
			return
		}
		for _, b := range buckets {
			b.limiter.Forgive(b.key)
		}
	}, nil
}
