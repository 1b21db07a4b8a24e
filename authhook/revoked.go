package authhook

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// MaxRevocations is how many revocations a Revoked holds at once. Each is about
// 150 bytes.
const MaxRevocations = 200_000

// ErrRevokedFull is returned when MaxRevocations are held and none has run out.
// None is dropped for a new one, since that would let its token in again.
var ErrRevokedFull = errors.New("too many revocations are held")

// Revocation takes tokens back before they expire. Exactly one of TokenID,
// Session and Subject is set.
type Revocation struct {
	TokenID string // the one token with this jti
	Session string // all tokens with this sid
	Subject string // all tokens with this sub
	// Before, if not zero, spares the tokens that were issued (iat) at that
	// time or later, so that a subject whose tokens were all taken back can
	// sign in anew. A token without iat is never spared.
	Before time.Time
	// Until is when the last of these tokens expires and the revocation can
	// be forgotten. Required.
	Until time.Time
}

// Matches reports whether the revocation takes back the identity's token.
func (r Revocation) Matches(id *Identity) bool {
	if !r.Before.IsZero() && !id.Issued.Before(r.Before) {
		return false
	}
	switch {
	case r.TokenID != "":
		return r.TokenID == id.TokenID
	case r.Session != "":
		return r.Session == id.Session
	}
	return r.Subject != "" && r.Subject == id.Subject
}

func (r Revocation) key() revokedKey {
	return revokedKey{token: r.TokenID, session: r.Session, subject: r.Subject}
}

type revokedKey struct{ token, session, subject string }

// Revoked is the set of revocations of this process. It knows no database and
// keeps nothing across a restart: what must outlive one belongs into
// Directory.MayConnect. It is safe for concurrent use; a nil *Revoked is empty.
type Revoked struct {
	now func() time.Time

	mu       sync.RWMutex // guards what follows; not held while watchers run
	held     map[revokedKey]Revocation
	sweepAt  int // number of entries at which expired ones are looked for
	watchers map[int]func(Revocation)
	nextID   int
}

// firstSweep is the number of entries from which on expired ones are dropped.
const firstSweep = 64

// NewRevoked returns an empty set that takes the time from now, or from
// time.Now if it is nil.
func NewRevoked(now func() time.Time) *Revoked {
	if now == nil {
		now = time.Now
	}
	return &Revoked{
		now:      now,
		held:     make(map[revokedKey]Revocation),
		sweepAt:  firstSweep,
		watchers: make(map[int]func(Revocation)),
	}
}

// Revoke adds a revocation and tells all watchers before it returns. Two of the
// same thing become one that takes back what either does. It returns
// ErrRevokedFull, or an error for a revocation that names nothing or everything.
func (r *Revoked) Revoke(v Revocation) error {
	named := 0
	for _, s := range []string{v.TokenID, v.Session, v.Subject} {
		if s != "" {
			named++
		}
	}
	if named != 1 {
		return errors.New("a revocation names exactly one of token, session and subject")
	}
	if v.Until.IsZero() {
		return errors.New("a revocation needs the time until which it holds")
	}
	watchers, err := r.add(v)
	if err != nil {
		return err
	}
	for _, fn := range watchers {
		fn(v)
	}
	return nil
}

func (r *Revoked) add(v Revocation) ([]func(Revocation), error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if len(r.held) >= r.sweepAt {
		for k, old := range r.held {
			if !now.Before(old.Until) {
				delete(r.held, k)
			}
		}
		r.sweepAt = max(firstSweep, 2*len(r.held))
	}
	old, twice := r.held[v.key()]
	if !twice && len(r.held) >= MaxRevocations {
		return nil, fmt.Errorf("%w: %d", ErrRevokedFull, len(r.held))
	}
	kept := v
	if twice && now.Before(old.Until) {
		if old.Until.After(kept.Until) {
			kept.Until = old.Until
		}
		if old.Before.IsZero() || !kept.Before.IsZero() && old.Before.After(kept.Before) {
			kept.Before = old.Before
		}
	}
	r.held[v.key()] = kept
	watchers := make([]func(Revocation), 0, len(r.watchers))
	for _, fn := range r.watchers {
		watchers = append(watchers, fn)
	}
	return watchers, nil
}

// Has reports whether the identity's token was revoked.
func (r *Revoked) Has(id *Identity) bool {
	if r == nil {
		return false
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.held) == 0 {
		return false
	}
	return id.TokenID != "" && r.hit(revokedKey{token: id.TokenID}, id) ||
		id.Session != "" && r.hit(revokedKey{session: id.Session}, id) ||
		r.hit(revokedKey{subject: id.Subject}, id)
}

func (r *Revoked) hit(key revokedKey, id *Identity) bool {
	v, ok := r.held[key]
	return ok && r.now().Before(v.Until) && v.Matches(id)
}

// Len returns the number of revocations held, expired ones that were not yet
// dropped included.
func (r *Revoked) Len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.held)
}

// Watch calls fn with every revocation after the call until stop is called. fn
// runs on the goroutine of Revoke and may be called by several at once.
func (r *Revoked) Watch(fn func(Revocation)) (stop func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.nextID
	r.nextID++
	r.watchers[id] = fn
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watchers, id)
	}
}
