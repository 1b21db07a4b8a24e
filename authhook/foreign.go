package authhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"mynah/chat"
)

// Tokens that a key of a JWKS has signed are foreign: their issuer serves others too,
// and did not write their claims for us. Tokens of the shared secret and of the API's own
// keys are ours, with the claims of PROTOCOL.md.
//
// Of a foreign token the subject is taken, made an id if it is none (SubjectID). Rights,
// which are its groups, role and acl, are taken from the claims that ClaimNames names,
// and from none otherwise: a claim that is called groups there was not meant for us.

// ClaimNames says in which claims of foreign tokens things stand. Each is a claim's
// place:
//
//   - with a / at its beginning a JSON Pointer (RFC 6901), which can name every place,
//   - with a / further on the name of one claim: https://example.com/roles,
//   - otherwise names from the outside in, with dots between: realm_access.roles.
type ClaimNames struct {
	Subject string // default sub
	Groups  string // default none: a foreign token makes nobody a member
	Role    string // default none: a foreign token's holder is a user
	ACL     string // default none
}

// ErrClaimName is returned for the name of a claim that cannot be one.
var ErrClaimName = errors.New("not the name of a claim; write the claim's name, names with dots between for one inside another, or a JSON Pointer")

// Validate returns ErrClaimName for a name that cannot be one.
func (n ClaimNames) Validate() error {
	for _, name := range []string{n.Subject, n.Groups, n.Role, n.ACL} {
		if name == "" {
			continue
		}
		if place := claimPlace(name); slices.Contains(place, "") || !utf8.ValidString(name) {
			return fmt.Errorf("%s: %w", quoteForLog(name), ErrClaimName)
		}
	}
	return nil
}

// claimPlace returns the names from the outside in.
func claimPlace(name string) []string {
	if pointer, ok := strings.CutPrefix(name, "/"); ok {
		parts := strings.Split(pointer, "/")
		for i, part := range parts {
			parts[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(part)
		}
		return parts
	}
	if strings.Contains(name, "/") {
		return []string{name}
	}
	return strings.Split(name, ".")
}

// at returns the claim at a place, nil if there is none. Names are exact.
func (c rawClaims) at(name string) json.RawMessage {
	object := c
	place := claimPlace(name)
	for i, part := range place {
		raw, ok := object[part]
		if !ok || string(raw) == "null" {
			return nil
		}
		if i == len(place)-1 {
			return raw
		}
		object = rawClaims{}
		if json.Unmarshal(raw, &object) != nil {
			return nil
		}
	}
	return nil
}

// foreign rewrites the claims of a foreign token into those of PROTOCOL.md. It returns
// what of the groups was left out, since it is no id.
func (c rawClaims) foreign(names ClaimNames) (own rawClaims, noIDs []string, err error) {
	own = rawClaims{}
	for _, name := range []string{"exp", "nbf", "iat", "jti", "sid", "iss", "aud"} {
		if raw, ok := c[name]; ok {
			own[name] = raw
		}
	}
	put := func(name string, value any) {
		raw, marshal := json.Marshal(value)
		own[name], err = raw, errors.Join(err, marshal)
	}

	subject := names.Subject
	if subject == "" {
		subject = "sub"
	}
	raw := c.at(subject)
	var sub string
	switch {
	case raw == nil:
		return nil, nil, fmt.Errorf("%w: no %s", ErrClaims, quoteForLog(subject))
	case json.Unmarshal(raw, &sub) != nil:
		return nil, nil, fmt.Errorf("%w: %s is of the wrong kind", ErrClaims, quoteForLog(subject))
	}
	id, err := SubjectID(sub)
	if err != nil {
		return nil, nil, err
	}
	put("sub", id)

	if names.Role != "" {
		put("role", foreignRole(texts(c.at(names.Role))))
	}
	if names.Groups != "" {
		var groups []string
		for _, group := range texts(c.at(names.Groups)) {
			if chat.ValidID(group) {
				groups = append(groups, group)
			} else {
				noIDs = append(noIDs, group)
			}
		}
		put("groups", groups)
	}
	if names.ACL != "" {
		if raw := c.at(names.ACL); raw != nil {
			own["acl"] = raw
		}
	}
	return own, noIDs, err
}

// texts returns the texts of a claim that is one, or a list that holds some.
func texts(raw json.RawMessage) []string {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}
	}
	var items []json.RawMessage
	if json.Unmarshal(raw, &items) != nil {
		return nil
	}
	var all []string
	for _, item := range items {
		if json.Unmarshal(item, &one) == nil && string(item) != "null" {
			all = append(all, one)
		}
	}
	return all
}

// foreignRole returns the role among the texts that may do the most, RoleUser if there
// is none: an issuer's manager or offline_access is no role here.
func foreignRole(texts []string) Role {
	for _, role := range []Role{RoleAdmin, RoleService, RoleArchiver, RoleDevice} {
		if slices.Contains(texts, string(role)) {
			return role
		}
	}
	return RoleUser
}

// SubjectID returns the id of a foreign subject, which can be any text. A subject that
// is an id is its own, except that it looks like an escaped one, which has ~ and two of
// 0-9 A-F. In all others every byte that is none of A-Z a-z 0-9 _ . - is written as ~ and
// its two hexadecimal digits: auth0|5f is auth0~7C5f. So no two subjects have one id,
// and the subject can be read from it. It returns ErrClaims for what would
// be longer than an id.
func SubjectID(subject string) (string, error) {
	if chat.ValidID(subject) && !Escaped(subject) {
		return subject, nil
	}
	// The replacement character is what the decoder makes of bytes that are no text:
	// two subjects might become one.
	if subject == "" || strings.ContainsRune(subject, utf8.RuneError) {
		return "", fmt.Errorf("%w: sub %s is no text that could become an id", ErrClaims, quoteForLog(subject))
	}
	const digits = "0123456789ABCDEF"
	var id strings.Builder
	for i := range len(subject) {
		if c := subject[i]; c != escape && chat.ValidID(subject[i:i+1]) {
			id.WriteByte(c)
		} else {
			id.Write([]byte{escape, digits[c>>4], digits[c&15]})
		}
	}
	if id.Len() > chat.MaxIDLen {
		return "", fmt.Errorf("%w: sub %s has %d characters as an id, at most %d; name a shorter claim with --jwt-claim sub=…", ErrClaims, quoteForLog(subject), id.Len(), chat.MaxIDLen)
	}
	return id.String(), nil
}

const escape = '~'

// Escaped reports whether the id looks like one that stands for a foreign subject which
// is no id. Nobody registers such an id.
func Escaped(id string) bool {
	for i := range len(id) {
		if _, ok := escaped(id[i:]); ok {
			return true
		}
	}
	return false
}

// escaped returns the byte for which the first three of s stand.
func escaped(s string) (byte, bool) {
	if len(s) < 3 || s[0] != escape {
		return 0, false
	}
	high, ok := hexDigit(s[1])
	low, well := hexDigit(s[2])
	return high<<4 | low, ok && well
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// How often it is logged that groups of a token are no ids: HTTP verifies a token with
// every request.
const (
	invalidGroupsLogInterval = time.Minute
	invalidGroupsLogBurst    = 3
)

func newInvalidGroupsLimiter() *rate.Limiter {
	return rate.NewLimiter(rate.Every(invalidGroupsLogInterval), invalidGroupsLogBurst)
}

// logInvalidGroups logs that groups of a foreign token are not used.
func (v *Verifier) logInvalidGroups(subject string, noIDs []string) {
	if len(noIDs) == 0 || !v.invalidGroupsLog.AllowN(v.cfg.Now(), 1) {
		return
	}
	v.cfg.Log.Warn("groups of a token are no ids and are not used; others like these are not logged for a while",
		slog.String("subject", subject), slog.Int("groups", len(noIDs)), slog.String("first", truncateForLog(noIDs[0])))
}
