package people

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/mail"
	"regexp"
	"strings"
	"unicode/utf8"

	"mynah/chat"
	"mynah/people/displaytext"
)

// The providers of identities. OpenID Connect's are oidc:<name>.
const (
	ProviderPassword = "password"
	ProviderPhone    = "phone"
	ProviderMail     = "mail"
	ProviderWeChat   = "wechat"
	providerOIDC     = "oidc:"
)

// Proof is an identity that somebody has shown to be theirs.
type Proof struct {
	Provider string
	Subject  string
	Alias    string // WeChat's unionid, or ""
	Name     string // what the provider calls the person; the name of a new account

	hash string // ProviderPassword: what the password was compared with

	// consume is called in the transaction that uses the proof. It returns an
	// error if the proof was used before.
	consume func(context.Context) error
}

// errWrongProof is the one answer to every proof that does not hold, whatever the reason.
var errWrongProof = chat.Refuse(chat.CodeUnauthenticated, "That does not fit. Check it and try again; a code fits for five minutes and five tries.")

// randomToken returns 256 random bits as text.
func randomToken() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// hashToken returns what is stored of a random token. SHA-256 without salt is
// enough for 256 random bits.
func hashToken(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

var (
	phonePattern     = regexp.MustCompile(`^\+[1-9][0-9]{6,14}$`) // E.164
	phonePunctuation = strings.NewReplacer(" ", "", "-", "", "(", "", ")", "", ".", "")
)

// normalizePhone brings a phone number into the form +E.164.
func normalizePhone(s string) (string, error) {
	s = phonePunctuation.Replace(s)
	if rest, ok := strings.CutPrefix(s, "00"); ok {
		s = "+" + rest
	}
	if !phonePattern.MatchString(s) {
		return "", chat.Refuse(chat.CodeInvalid, "A phone number begins with + and the country's code, for example +8613800138000.")
	}
	return s, nil
}

// normalizeMail checks a mail address and brings it into lower case. RFC 5321 lets
// a server tell apart upper and lower case before the @; none does, and two
// accounts for one person would be worse.
func normalizeMail(s string) (string, error) {
	refused := chat.Refuse(chat.CodeInvalid, "That is not a mail address, for example anna@example.com.")
	if len(s) > 254 || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", refused
	}
	a, err := mail.ParseAddress(s)
	if err != nil || a.Address != s || a.Name != "" || !strings.Contains(s[strings.LastIndexByte(s, '@'):], ".") {
		return "", refused
	}
	return strings.ToLower(s), nil
}

func normalizeTarget(channel, to string) (string, error) {
	if channel == ProviderPhone {
		return normalizePhone(to)
	}
	return normalizeMail(to)
}

// cleanName makes a provider's name for a person into one that a profile may
// have, or "".
func cleanName(s string) string { return displaytext.CleanName(s, MaxName) }

// maxSubject is the longest subject of an identity, in bytes.
const maxSubject = 320

// validSubject reports whether a provider's name for an identity can be stored.
func validSubject(s string) bool {
	return len(s) <= maxSubject && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}
