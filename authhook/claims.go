package authhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"

	"mynah/chat"
)

// Limits for the content of a token.
const (
	// MaxTokenLen is the longest token that is looked at, in bytes.
	MaxTokenLen = 16 << 10
	// MaxGroups is the largest number of ids in the claim groups.
	MaxGroups = 1000
	// MaxFilters is the largest number of filters in each of acl.pub and acl.sub.
	MaxFilters = 100

	maxNameLen = 256          // of jti and sid, in bytes
	maxDate    = 253402300799 // 9999-12-31T23:59:59Z: what PostgreSQL, JSON and people agree on
)

// rawClaims are a token's claims by their exact names. encoding/json would fill
// a struct's field from "Role" and "ROLE" as well; an issuer that lets people
// add claims of their own must not hand out roles by that.
type rawClaims map[string]json.RawMessage

// rawClaims is a jwt.Claims for the parser's sake. The claims are checked by
// identity, not by the library, so that each check can name its reason.
var _ jwt.Claims = (*rawClaims)(nil)

var errNotUsed = errors.New("claims are checked elsewhere")

func (*rawClaims) GetExpirationTime() (*jwt.NumericDate, error) { return nil, errNotUsed }
func (*rawClaims) GetIssuedAt() (*jwt.NumericDate, error)       { return nil, errNotUsed }
func (*rawClaims) GetNotBefore() (*jwt.NumericDate, error)      { return nil, errNotUsed }
func (*rawClaims) GetIssuer() (string, error)                   { return "", errNotUsed }
func (*rawClaims) GetSubject() (string, error)                  { return "", errNotUsed }
func (*rawClaims) GetAudience() (jwt.ClaimStrings, error)       { return nil, errNotUsed }

// read decodes the claim into v and reports whether it was there. null is as
// good as absent.
func (c rawClaims) read(name string, v any) (bool, error) {
	raw, ok := c[name]
	if !ok || bytes.Equal(raw, []byte("null")) {
		return false, nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, fmt.Errorf("%w: %s is of the wrong kind", ErrClaims, name)
	}
	return true, nil
}

// date reads a NumericDate (RFC 7519 section 2): seconds since 1970, fractions
// allowed.
func (c rawClaims) date(name string) (time.Time, error) {
	var seconds float64
	ok, err := c.read(name, &seconds)
	if err != nil || !ok {
		return time.Time{}, err
	}
	if seconds < 0 || seconds > maxDate {
		return time.Time{}, fmt.Errorf("%w: %s is no date", ErrClaims, name)
	}
	whole, fraction := math.Modf(seconds)
	return time.Unix(int64(whole), int64(fraction*1e9)), nil
}

// name reads a string claim of at most maxNameLen bytes.
func (c rawClaims) name(claim string) (string, error) {
	var s string
	if _, err := c.read(claim, &s); err != nil {
		return "", err
	}
	if len(s) > maxNameLen {
		return "", fmt.Errorf("%w: %s is longer than %d bytes", ErrClaims, claim, maxNameLen)
	}
	return s, nil
}

// audience reads aud, which is a string or several (RFC 7519 section 4.1.3).
func (c rawClaims) audience() ([]string, error) {
	var many []string
	if ok, err := c.read("aud", &many); err == nil {
		if !ok {
			return nil, nil
		}
		return many, nil
	}
	var one string
	if _, err := c.read("aud", &one); err != nil {
		return nil, err
	}
	return []string{one}, nil
}

// identity checks the claims of PROTOCOL.md that do not depend on the time or
// on the configuration.
func (c rawClaims) identity() (*Identity, error) {
	id := &Identity{Role: RoleUser}
	if ok, err := c.read("sub", &id.Subject); err != nil {
		return nil, err
	} else if !ok {
		return nil, fmt.Errorf("%w: no sub", ErrClaims)
	}
	if _, err := c.read("role", &id.Role); err != nil {
		return nil, err
	}
	if _, err := c.read("groups", &id.Groups); err != nil {
		return nil, err
	}
	var acl struct {
		Pub []string `json:"pub"`
		Sub []string `json:"sub"`
	}
	if _, err := c.read("acl", &acl); err != nil {
		return nil, err
	}
	id.Pub, id.Sub = acl.Pub, acl.Sub

	var err error
	if id.TokenID, err = c.name("jti"); err != nil {
		return nil, err
	}
	if id.Session, err = c.name("sid"); err != nil {
		return nil, err
	}
	if id.Issued, err = c.date("iat"); err != nil {
		return nil, err
	}
	if id.Expires, err = c.date("exp"); err != nil {
		return nil, err
	}
	if id.Expires.IsZero() {
		return nil, fmt.Errorf("%w: no exp", ErrClaims)
	}
	if err := id.check(); err != nil {
		return nil, err
	}
	slices.Sort(id.Groups)
	id.Groups = slices.Compact(id.Groups)
	return id, nil
}

// check returns an error if the identity breaks a rule for tokens, whoever
// signs or reads the token.
func (id *Identity) check() error {
	if !chat.ValidID(id.Subject) {
		return fmt.Errorf("%w: sub %s is not an id (1 to %d of A-Z a-z 0-9 _ . ~ -)", ErrClaims, quoteForLog(id.Subject), chat.MaxIDLen)
	}
	if rightsOf(id.Role) == nil {
		return fmt.Errorf("%w: role %s is none of user, device, service, archiver, admin", ErrClaims, quoteForLog(string(id.Role)))
	}
	if roles, own := ownRoles[id.Subject]; own && !slices.Contains(roles, id.Role) {
		return fmt.Errorf("%w: sub %s is the server's own and goes with role %s, not %s", ErrClaims, quoteForLog(id.Subject), roles[0], id.Role)
	}
	if len(id.Groups) > MaxGroups {
		return fmt.Errorf("%w: %d groups are too many: at most %d", ErrClaims, len(id.Groups), MaxGroups)
	}
	for _, g := range id.Groups {
		if !chat.ValidID(g) {
			return fmt.Errorf("%w: group %s is not an id", ErrClaims, quoteForLog(g))
		}
	}
	if err := checkFilters("acl.pub", id.Pub); err != nil {
		return err
	}
	return checkFilters("acl.sub", id.Sub)
}

func checkFilters(claim string, filters []string) error {
	if len(filters) > MaxFilters {
		return fmt.Errorf("%w: %d filters in %s are too many: at most %d", ErrClaims, len(filters), claim, MaxFilters)
	}
	for _, f := range filters {
		if !validFilter(f) {
			return fmt.Errorf("%w: %s in %s is not a topic filter", ErrClaims, quoteForLog(f), claim)
		}
	}
	return nil
}

// truncateForLog shortens a client's text to the length for a log line.
func truncateForLog(s string) string {
	const limit = 80
	if len(s) <= limit {
		return s
	}
	cut := limit
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// quoteForLog is truncateForLog in quotes, with control characters escaped.
func quoteForLog(s string) string { return strconv.Quote(truncateForLog(s)) }
