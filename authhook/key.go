package authhook

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/MicahParks/jwkset"
)

// The algorithms of PROTOCOL.md (RFC 7518 section 3.1, RFC 8037).
const (
	algHS256 = "HS256"
	algRS256 = "RS256"
	algPS256 = "PS256"
	algES256 = "ES256"
	algEdDSA = "EdDSA"
)

// Limits of a key and of a key set.
const (
	minRSABits = 2048 // RFC 7518 section 3.3
	maxRSABits = 8192 // a bigger one would make every CONNECT expensive
	maxSetKeys = 64   // keys in one JWKS
	maxSetSize = 1 << 20
	maxKIDLen  = 256
)

// KeySource looks up public keys by their id. The API's own signing keys come
// to a Verifier this way.
type KeySource interface {
	// PublicKey returns the key with the id. It is asked on every CONNECT
	// whose token names a key and answers from memory. Types other than
	// ed25519.PublicKey, *ecdsa.PublicKey on P-256 and *rsa.PublicKey of at
	// least 2048 bits are refused.
	PublicKey(ctx context.Context, kid string) (crypto.PublicKey, bool)
}

// KeyBinder is a KeySource some of whose keys are not the server's own but a
// single holder's: a device that signs its own tokens.
type KeyBinder interface {
	KeySource
	// Bind is called when the key kid of this source has signed a token that
	// says id. It returns an error if the key may not sign for that subject,
	// and replaces what the holder must not say of itself: its role, groups
	// and filters. Verify refuses the token if the subject is another one
	// afterwards or the rest breaks a rule for claims.
	Bind(ctx context.Context, kid string, id *Identity) error
}

// verifyKey is a public key together with the algorithms that it stands for.
type verifyKey struct {
	kid  string
	algs []string
	key  crypto.PublicKey
}

// newVerifyKey binds a public key to its algorithms. An RSA key without a
// stated alg stands for RS256 and PS256; every other kind has exactly one.
func newVerifyKey(kid, alg string, key crypto.PublicKey) (*verifyKey, error) {
	var algs []string
	switch k := key.(type) {
	case *rsa.PublicKey:
		bits := k.N.BitLen()
		switch {
		case bits < minRSABits:
			return nil, fmt.Errorf("RSA key of %d bits is too short: at least %d", bits, minRSABits)
		case bits > maxRSABits:
			return nil, fmt.Errorf("RSA key of %d bits is too long: at most %d", bits, maxRSABits)
		case k.E < 3 || k.E&1 == 0:
			return nil, errors.New("RSA key with an exponent that is no exponent")
		}
		algs = []string{algRS256, algPS256}
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return nil, errors.New("EC key on a curve other than P-256")
		}
		algs = []string{algES256}
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return nil, errors.New("Ed25519 key of the wrong length")
		}
		algs = []string{algEdDSA}
	default:
		return nil, fmt.Errorf("key of type %T is not for signatures", key)
	}
	if alg != "" {
		if !slices.Contains(algs, alg) {
			return nil, fmt.Errorf("alg %s does not fit this key", quoteForLog(alg))
		}
		algs = []string{alg}
	}
	return &verifyKey{kid: kid, algs: algs, key: key}, nil
}

// errNotForSignatures marks a JWK that is rightly in the set and not for us:
// identity providers publish encryption keys beside the others.
var errNotForSignatures = errors.New("not a key for verifying signatures")

// parseJWK reads one JSON Web Key (RFC 7517). Symmetric keys are refused, since
// a published secret is none, and so are private ones.
func parseJWK(raw json.RawMessage) (*verifyKey, error) {
	var m jwkset.JWKMarshal
	if err := json.Unmarshal(raw, &m); err != nil {
		// The decoder's own text may quote the key.
		return nil, errors.New("not a JSON Web Key")
	}
	switch {
	case m.USE != "" && m.USE != jwkset.UseSig,
		len(m.KEYOPS) > 0 && !slices.Contains(m.KEYOPS, jwkset.KeyOpsVerify):
		return nil, errNotForSignatures
	case m.KTY == jwkset.KtyOct || m.K != "":
		return nil, errors.New("symmetric keys (kty oct) are not accepted from a JWKS")
	case m.D != "" || m.P != "" || m.Q != "":
		return nil, errors.New("holds a private key: publish the public part only")
	case len(m.KID) > maxKIDLen:
		return nil, fmt.Errorf("kid of %d bytes is too long: at most %d", len(m.KID), maxKIDLen)
	}
	jwk, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	return newVerifyKey(m.KID, string(m.ALG), jwk.Key())
}

// keySet is the usable part of a JWKS. It is not changed after it was made.
type keySet struct {
	byKID map[string][]*verifyKey // "" holds those without an id
	all   []*verifyKey
}

// refusedKey says why a key of a set is not used.
type refusedKey struct {
	kid string
	err error
}

// parseKeySet reads a JWK Set (RFC 7517 section 5). A key that cannot be used is
// left out and reported, as the RFC wants it, so that one odd key does not cost
// the rest.
func parseKeySet(raw []byte) (*keySet, []refusedKey, error) {
	var doc struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, nil, fmt.Errorf("not a JWK Set: %w", err)
	}
	if doc.Keys == nil {
		return nil, nil, errors.New(`not a JWK Set: it has no "keys"`)
	}
	if n := len(*doc.Keys); n > maxSetKeys {
		return nil, nil, fmt.Errorf("%d keys are too many: at most %d", n, maxSetKeys)
	}
	set := &keySet{byKID: make(map[string][]*verifyKey)}
	var refused []refusedKey
	for _, raw := range *doc.Keys {
		key, err := parseJWK(raw)
		if err != nil {
			var named struct {
				KID string `json:"kid"`
			}
			_ = json.Unmarshal(raw, &named) // only for the log line
			refused = append(refused, refusedKey{kid: truncateForLog(named.KID), err: err})
			continue
		}
		set.byKID[key.kid] = append(set.byKID[key.kid], key)
		set.all = append(set.all, key)
	}
	return set, refused, nil
}
