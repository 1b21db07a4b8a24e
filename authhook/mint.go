package authhook

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// MinSecretLen is the shortest secret for HS256, in bytes: the length of the
// hash (RFC 7518 section 3.2).
const MinSecretLen = 32

// DefaultTTL is how long a minted token is valid if nothing else is said.
const DefaultTTL = 24 * time.Hour

// ErrShortSecret is returned for a secret of fewer than MinSecretLen bytes.
var ErrShortSecret = fmt.Errorf("the secret for HS256 must have at least %d bytes", MinSecretLen)

// TokenClaims is what a new token is to say.
type TokenClaims struct {
	Subject  string        // required: the id
	Role     Role          // default RoleUser
	Groups   []string      // member of these without any database
	Pub      []string      // acl.pub
	Sub      []string      // acl.sub
	TTL      time.Duration // default DefaultTTL; see Expiry
	TokenID  string        // default random
	Session  string        // sid, or "" for none
	Issuer   string        // iss, or "" for none
	Audience string        // aud, or "" for none
	IssuedAt time.Time     // default now
}

// Mint returns a token signed with the secret (HS256). It refuses with
// ErrShortSecret or ErrClaims what a Verifier would not accept.
func Mint(secret []byte, claims TokenClaims) (string, error) {
	if len(secret) < MinSecretLen {
		return "", ErrShortSecret
	}
	return mint(jwt.SigningMethodHS256, secret, "", claims)
}

// MintEd25519 returns a token signed with the key (EdDSA, RFC 8037), which a
// Verifier finds under kid.
func MintEd25519(key ed25519.PrivateKey, kid string, claims TokenClaims) (string, error) {
	if len(key) != ed25519.PrivateKeySize {
		return "", errors.New("not an Ed25519 private key")
	}
	if kid == "" || len(kid) > maxKIDLen {
		return "", fmt.Errorf("the key's id must have 1 to %d bytes", maxKIDLen)
	}
	return mint(jwt.SigningMethodEdDSA, key, kid, claims)
}

func mint(method jwt.SigningMethod, key any, kid string, claims TokenClaims) (string, error) {
	wire, err := claims.wire()
	if err != nil {
		return "", err
	}
	token := jwt.NewWithClaims(method, wire)
	if kid != "" {
		token.Header["kid"] = kid
	}
	signed, err := token.SignedString(key)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	if len(signed) > MaxTokenLen {
		return "", fmt.Errorf("%w: %d bytes, at most %d", ErrTokenTooLong, len(signed), MaxTokenLen)
	}
	return signed, nil
}

// shortTTL is the duration below which a second more or less matters to the holder.
const shortTTL = time.Minute

// Expiry returns the exp of a token that is issued at the time for the duration. It is
// a whole second, since libraries of other languages refuse fractions: the one before,
// so that no token is valid for longer than asked, or for short durations the one after,
// so that a token for half a second is not born expired.
func Expiry(issued time.Time, ttl time.Duration) time.Time {
	if ttl < shortTTL {
		return issued.Add(ttl + time.Second - 1).Truncate(time.Second)
	}
	return issued.Add(ttl).Truncate(time.Second)
}

// wire checks the claims and brings them into the form of PROTOCOL.md.
func (c TokenClaims) wire() (jwt.MapClaims, error) {
	id := Identity{Subject: c.Subject, Role: c.Role, Groups: c.Groups, Pub: c.Pub, Sub: c.Sub}
	if id.Role == "" {
		id.Role = RoleUser
	}
	if err := id.check(); err != nil {
		return nil, err
	}
	if len(c.TokenID) > maxNameLen || len(c.Session) > maxNameLen {
		return nil, fmt.Errorf("%w: jti and sid have at most %d bytes", ErrClaims, maxNameLen)
	}
	if c.TTL < 0 {
		return nil, fmt.Errorf("%w: the time to live must be positive", ErrClaims)
	}
	ttl, issued, tokenID := c.TTL, c.IssuedAt, c.TokenID
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if issued.IsZero() {
		issued = time.Now()
	}
	if tokenID == "" {
		tokenID = rand.Text() // so that every token can be revoked by itself
	}
	wire := jwt.MapClaims{
		"sub": id.Subject,
		"iat": issued.Unix(),
		"exp": Expiry(issued, ttl).Unix(),
		"jti": tokenID,
	}
	optional := func(name, value string) {
		if value != "" {
			wire[name] = value
		}
	}
	optional("sid", c.Session)
	optional("iss", c.Issuer)
	optional("aud", c.Audience)
	if id.Role != RoleUser {
		wire["role"] = string(id.Role)
	}
	if len(c.Groups) > 0 {
		wire["groups"] = c.Groups
	}
	acl := map[string][]string{}
	if len(c.Pub) > 0 {
		acl["pub"] = c.Pub
	}
	if len(c.Sub) > 0 {
		acl["sub"] = c.Sub
	}
	if len(acl) > 0 {
		wire["acl"] = acl
	}
	return wire, nil
}
