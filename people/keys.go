package people

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/authhook"
	"mynah/people/seal"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// AccessTTL is how long an access token is valid.
const AccessTTL = 15 * time.Minute

// How the keys are kept fresh: other processes rotate them, too.
const (
	readKeysEvery   = 30 * time.Second // between two readings
	readKeysGap     = 2 * time.Second  // between two reads that unknown keys cause
	readKeysTimeout = 3 * time.Second  // one read
)

// KeysConfig is what Keys need.
type KeysConfig struct {
	// Secret seals the private keys in the database (AES-256-GCM, key by
	// HKDF-SHA256), so that a copy of the database cannot sign. Without it
	// they are stored as they are. Any length; --jwt-secret will do.
	Secret []byte
	// ReplaceSealed has Start make a new key if the signing key was sealed with
	// another secret, instead of returning ErrKeySecret. For a database that no other
	// process uses: others could not unseal the new key.
	ReplaceSealed bool
	// Issuer is the iss claim; "" for none.
	Issuer string
	// File keeps the public keys for LoadFile, mode 0600; "" keeps none. Whoever
	// can write to it decides whose tokens are believed while the database is
	// away.
	File string
	// Log has failures to read the keys. Required.
	Log *slog.Logger
	// Now tells the time. Default time.Now.
	Now func() time.Time
}

// Keys are the API's signing keys (Ed25519) and the public keys of devices. They
// live in PostgreSQL and are the same for every process on it; they stay in
// memory while PostgreSQL is away. Exactly one key signs. A retired one verifies
// until the last token that it signed has expired. Keys is an
// authhook.KeySource and safe for concurrent use.
type Keys struct {
	cfg     KeysConfig
	db      *pgtx.DB
	ring    atomic.Pointer[keyring] // nil before Start and LoadFile
	devices *deviceKeys

	reading sync.Mutex // held while the keys are read and kept; guards last and kept
	last    time.Time
	saved   string // what is in the file; "" if that is not known

	mu   sync.Mutex // guards stop and done
	stop context.CancelFunc
	done chan struct{}
}

// keyring is one reading of the keys. It is not changed after it was made.
type keyring struct {
	kid     string
	private ed25519.PrivateKey // nil if it cannot be unsealed
	public  map[string]ed25519.PublicKey
	jwks    []byte
}

// ErrKeySecret is returned when the signing key in the database was sealed with
// another secret than the configured one.
var ErrKeySecret = errors.New("the signing key in the database was sealed with another secret: give that one, or rotate the keys (mynah api --rotate-keys)")

// NewKeys returns the keys kept in the database. Start reads them.
func NewKeys(pool *pgxpool.Pool, cfg KeysConfig) *Keys {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	db := pgtx.New(pool)
	return &Keys{cfg: cfg, db: db, devices: newDeviceKeys(db)}
}

// Start reads the keys, makes the first if there is none, and keeps them fresh
// until Stop. To start what is started does nothing. It returns ErrKeySecret if
// the signing key cannot be unsealed.
func (k *Keys) Start(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stop != nil {
		return nil
	}
	if err := k.load(ctx); err != nil {
		return err
	}
	if k.ring.Load().kid == "" {
		if err := k.insert(ctx); err != nil {
			return err
		}
		if err := k.load(ctx); err != nil {
			return err
		}
	}
	if k.ring.Load().private == nil {
		if !k.cfg.ReplaceSealed {
			return ErrKeySecret
		}
		if _, err := k.Rotate(ctx, false); err != nil {
			return err
		}
		k.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "the secret has changed since the signing key was sealed; a new key signs from now on")
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	k.stop, k.done = stop, make(chan struct{})
	go k.refresh(background, k.done)
	return nil
}

// Stop ends the refreshing of keys and waits for that, at most until ctx ends; those in
// memory stay in use. To stop what is stopped does nothing; after a Stop that gave up,
// another one waits again.
func (k *Keys) Stop(ctx context.Context) error {
	k.mu.Lock()
	if k.stop != nil {
		k.stop()
		k.stop = nil
	}
	done := k.done
	k.mu.Unlock() // not held while Stop waits: another Stop has a context of its own
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop keys: gave up on waiting until signing keys are read: %w", ctx.Err())
	}
}

func (k *Keys) refresh(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	tick := time.NewTicker(readKeysEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := k.load(ctx); err != nil && ctx.Err() == nil {
			k.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "signing keys cannot be read; those read before stay in use", slog.Any("error", err))
		}
	}
}

// load reads the keys.
func (k *Keys) load(ctx context.Context) error {
	k.reading.Lock()
	defer k.reading.Unlock()
	return k.loadLocked(ctx)
}

func (k *Keys) loadLocked(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readKeysTimeout)
	defer cancel()
	rows, err := k.db.Pool().Query(ctx, schema.SelectSigningKeys)
	if err != nil {
		return fmt.Errorf("read signing keys: %w", err)
	}
	defer rows.Close()
	ring := &keyring{public: map[string]ed25519.PublicKey{}}
	var published []publicJWK
	for rows.Next() {
		var (
			kid             string
			public, private []byte
			sealed          bool
		)
		if err := rows.Scan(&kid, &public, &private, &sealed); err != nil {
			return fmt.Errorf("read signing keys: %w", err)
		}
		ring.public[kid] = public
		published = append(published, publicJWK{
			KTY: "OKP", Crv: "Ed25519", Use: "sig", Alg: "EdDSA", KID: kid, X: base64.RawURLEncoding.EncodeToString(public),
		})
		if private == nil {
			continue
		}
		ring.kid = kid
		if seed, err := k.unseal(private, sealed); err == nil {
			key := ed25519.NewKeyFromSeed(seed)
			if bytes.Equal(key.Public().(ed25519.PublicKey), public) {
				ring.private = key
			}
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read signing keys: %w", err)
	}
	if ring.jwks, err = json.Marshal(map[string]any{"keys": published}); err != nil {
		return fmt.Errorf("render JWKS: %w", err)
	}
	k.ring.Store(ring)
	k.last = k.cfg.Now()
	k.saveFile(ctx, ring.jwks)
	return nil
}

// publicJWK is a public Ed25519 key (RFC 8037 section 2).
type publicJWK struct {
	KTY string `json:"kty"`
	Crv string `json:"crv"`
	Use string `json:"use"`
	Alg string `json:"alg"`
	KID string `json:"kid"`
	X   string `json:"x"`
}

// insert makes a new signing key, unless another process was faster.
func (k *Keys) insert(ctx context.Context) error {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return fmt.Errorf("make signing key: %w", err)
	}
	stored, sealed, err := k.seal(private.Seed())
	if err != nil {
		return fmt.Errorf("seal signing key: %w", err)
	}
	if _, err := k.db.Q(ctx).Exec(ctx, schema.InsertSigningKey, rand.Text(), []byte(public), stored, sealed); err != nil {
		return fmt.Errorf("store signing key: %w", err)
	}
	return nil
}

// Rotate makes a new signing key and returns its id. Tokens signed with the old
// one stay valid until they expire; its private part is deleted. With distrust
// they are refused at once instead: for a key that may have been stolen. Other
// processes follow within 30 seconds.
func (k *Keys) Rotate(ctx context.Context, distrust bool) (kid string, err error) {
	err = k.db.Tx(ctx, func(ctx context.Context) error {
		q := k.db.Q(ctx)
		// Minutes beyond the tokens' life: a process that has not read the new
		// key yet goes on signing with the old one for a while.
		if _, err := q.Exec(ctx, schema.RetireSigningKey, AccessTTL+5*time.Minute); err != nil {
			return fmt.Errorf("retire signing key: %w", err)
		}
		if distrust {
			if _, err := q.Exec(ctx, schema.ExpireSigningKeys); err != nil {
				return fmt.Errorf("distrust retired keys: %w", err)
			}
		}
		return k.insert(ctx)
	})
	if err != nil {
		return "", err
	}
	if err := k.load(ctx); err != nil {
		return "", err
	}
	return k.ring.Load().kid, nil
}

// Sign returns a token with the claims, and the id of the key that signed it.
func (k *Keys) Sign(claims authhook.TokenClaims) (token, kid string, err error) {
	ring := k.ring.Load()
	if ring == nil {
		return "", "", errNotStarted
	}
	if ring.private == nil {
		return "", "", ErrKeySecret
	}
	claims.Issuer = k.cfg.Issuer
	if claims.IssuedAt.IsZero() {
		claims.IssuedAt = k.cfg.Now()
	}
	token, err = authhook.MintEd25519(ring.private, ring.kid, claims)
	return token, ring.kid, err
}

// JWKS returns the public keys as a JWK Set (RFC 7517 section 5).
func (k *Keys) JWKS() []byte {
	if ring := k.ring.Load(); ring != nil {
		return ring.jwks
	}
	return []byte(`{"keys":[]}`)
}

// PublicKey returns the key with the id: one of the API's own, or a device's. An
// id that nobody knows costs a reading of the keys, at most one in two seconds:
// another process may have rotated them.
func (k *Keys) PublicKey(ctx context.Context, kid string) (crypto.PublicKey, bool) {
	ring := k.ring.Load()
	if ring == nil {
		return nil, false
	}
	if key, ok := ring.public[kid]; ok {
		return key, true
	}
	if isDeviceKID(kid) {
		key, ok := k.devices.lookUp(ctx, kid)
		if !ok {
			return nil, false
		}
		return key.public, true
	}
	if k.reading.TryLock() {
		defer k.reading.Unlock()
		if k.cfg.Now().Sub(k.last) < readKeysGap {
			return nil, false
		}
		k.last = k.cfg.Now() // although it may fail
		if err := k.loadLocked(ctx); err == nil {
			if key, ok := k.ring.Load().public[kid]; ok {
				return key, true
			}
		}
	}
	return nil, false
}

// sealPurposeKeys is the purpose for which signing keys are sealed.
const sealPurposeKeys = "mynah signing keys"

func (k *Keys) seal(seed []byte) (stored []byte, sealed bool, err error) {
	if len(k.cfg.Secret) == 0 {
		return seed, false, nil
	}
	stored, err = seal.Seal(k.cfg.Secret, sealPurposeKeys, seed)
	return stored, true, err
}

func (k *Keys) unseal(stored []byte, sealed bool) (seed []byte, err error) {
	if sealed {
		if stored, err = seal.Open(k.cfg.Secret, sealPurposeKeys, stored); err != nil {
			return nil, err
		}
	}
	if len(stored) != ed25519.SeedSize {
		return nil, ErrKeySecret
	}
	return stored, nil
}
