package people

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"mynah/internal/ratelimit"
	"mynah/schema"
)

// A place is an address or a device from which somebody has signed in. Tries at their
// password from there are counted apart from those of strangers, who else could keep a
// person out by guessing. A device shows a token that its last sign-in answered; an
// address is known by itself. What is stored is a keyed hash.

// maxPlaces is how many places are remembered of an account.
const maxPlaces = 50

const (
	deviceTokenPrefix = "dt_"
	maxDeviceToken    = 64
)

// places remembers places, and counts the tries at passwords by them.
type places struct {
	*store
	secret []byte                 // of the server
	key    atomic.Pointer[[]byte] // of what is stored; see readKey
	limits struct {
		here  *ratelimit.Limiter // tries at one account's password from one address, device or session
		known *ratelimit.Limiter // … from all addresses where it has signed in before
		all   *ratelimit.Limiter // … from all others
	}
}

func newPlaces(st *store, secret []byte) *places {
	p := &places{store: st, secret: secret}
	p.limits.here = ratelimit.New(10, 15*time.Minute, st.now)
	p.limits.known = ratelimit.New(100, time.Hour, st.now)
	p.limits.all = ratelimit.New(100, time.Hour, st.now)
	return p
}

// readKey makes the key for places of the server's secret and of what is this
// database's own: without a secret, a copy of the database has all that it takes to try
// addresses. With another secret the places are forgotten and learned again.
func (p *places) readKey(ctx context.Context) error {
	var salt string
	if err := p.db.Pool().QueryRow(ctx, schema.SelectPlaceSalt).Scan(&salt); err != nil {
		return fmt.Errorf("read the database's identity: %w", err)
	}
	mac := hmac.New(sha256.New, p.secret)
	mac.Write([]byte("mynah known places\n" + salt))
	key := mac.Sum(nil)
	p.key.Store(&key)
	return nil
}

// hash returns what is stored of a place of the account.
func (p *places) hash(account, kind, value string) []byte {
	key := p.key.Load()
	if key == nil {
		return nil // not started; NULL is equal to nothing
	}
	mac := hmac.New(sha256.New, *key)
	mac.Write([]byte(account + "\n" + kind + "\n" + value)) // an id has no line's end
	return mac.Sum(nil)
}

func (p *places) atAddress(account string, from Client) []byte {
	return p.hash(account, "address", ratelimit.AddressKey(from.Address))
}

func (p *places) onDevice(account, token string) []byte {
	if !strings.HasPrefix(token, deviceTokenPrefix) || len(token) > maxDeviceToken {
		return nil
	}
	return p.hash(account, "device", token)
}

// seenBefore reports whether the account has signed in at the client's address, and on its
// device.
func (p *places) seenBefore(ctx context.Context, account string, from Client) (address, device bool, err error) {
	err = p.db.Q(ctx).QueryRow(ctx, schema.KnowsPlaces, account, p.atAddress(account, from),
		p.onDevice(account, from.DeviceToken), from.Address.String()).Scan(&address, &device)
	if err != nil {
		return false, false, fmt.Errorf("look up places: %w", err)
	}
	return address, device, nil
}

// remember notes that the account has signed in from the client, as part of the context's
// transaction, and returns the token of the device.
func (p *places) remember(ctx context.Context, account string, from Client) (deviceToken string, err error) {
	deviceToken = from.DeviceToken
	if _, known, err := p.seenBefore(ctx, account, from); err != nil {
		return "", err
	} else if !known {
		deviceToken = deviceTokenPrefix + randomToken()
	}
	return deviceToken, p.rememberAll(ctx, account, p.atAddress(account, from), p.onDevice(account, deviceToken))
}

// rememberAll stores places of the account.
func (p *places) rememberAll(ctx context.Context, account string, places ...[]byte) error {
	q := p.db.Q(ctx)
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
	if _, err := q.Exec(ctx, schema.ForgetOldestPlaces, account, maxPlaces); err != nil {
		return fmt.Errorf("bound places: %w", err)
	}
	return nil
}

// countTry counts a try at the account's password. settle is called with whether it was a
// wrong one; others do not count, nor those that could not be looked at: people would be
// shut out after an outage, when all sign in again.
func (p *places) countTry(ctx context.Context, id string, from Client) (settle func(wrong bool), err error) {
	type bucket struct {
		limiter *ratelimit.Limiter
		key     string
	}
	var buckets []bucket
	here := bucket{p.limits.here, from.key() + " " + id}
	switch address, device, err := p.seenBefore(ctx, id, from); {
	case err != nil:
		return nil, err
	case from.Session != "":
		buckets = []bucket{{p.limits.here, "session " + from.Session + " " + id}}
	case device:
		buckets = []bucket{{p.limits.here, "device " + from.DeviceToken + " " + id}}
	case address:
		buckets = []bucket{here, {p.limits.known, id}}
	default:
		// By target from one address, so that one attacker does not use up what all have;
		// and from everywhere, so that many addresses together do not get far.
		buckets = []bucket{here, {p.limits.all, id}}
	}
	for i, b := range buckets {
		if err := b.limiter.Allow(b.key); err != nil {
			for _, before := range buckets[:i] {
				before.limiter.Refund(before.key) // it was not tried
			}
			return nil, err
		}
	}
	return func(wrong bool) {
		if wrong {
			return
		}
		for _, b := range buckets {
			b.limiter.Refund(b.key)
		}
	}, nil
}
