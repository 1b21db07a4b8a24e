package people

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/mail"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"mynah/authhook"
	"mynah/chat"
	"mynah/people/displaytext"
	"mynah/schema"
	"mynah/schema/pgtx"
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

// errProof is the one answer to every proof that does not hold, whyever.
var errProof = chat.Refuse(chat.CodeUnauthenticated, "That does not fit. Check it and try again; a code fits for five minutes and five tries.")

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
	phonePattern = regexp.MustCompile(`^\+[1-9][0-9]{6,14}$`) // E.164
	phoneNoise   = strings.NewReplacer(" ", "", "-", "", "(", "", ")", "", ".", "")
)

// normalPhone brings a phone number into the form +E.164.
func normalPhone(s string) (string, error) {
	s = phoneNoise.Replace(s)
	if rest, ok := strings.CutPrefix(s, "00"); ok {
		s = "+" + rest
	}
	if !phonePattern.MatchString(s) {
		return "", chat.Refuse(chat.CodeInvalid, "A phone number begins with + and the country's code, for example +8613800138000.")
	}
	return s, nil
}

// normalMail checks a mail address and brings it into lower case. RFC 5321 lets
// a server tell apart upper and lower case before the @; none does, and two
// accounts for one person would be worse.
func normalMail(s string) (string, error) {
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

func normalTarget(channel, to string) (string, error) {
	if channel == ProviderPhone {
		return normalPhone(to)
	}
	return normalMail(to)
}

// cleanName makes a provider's name for a person into one that a profile may
// have, or "".
func cleanName(s string) string { return displaytext.CleanName(s, MaxName) }

// validSubject reports whether a provider's name for an identity can be stored.
func validSubject(s string) bool {
	return len(s) <= maxSubject && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}

// account returns the account of the identity, or "" if it has none, and whether
// that account is disabled.
func (s *Service) account(ctx context.Context, p Proof) (id string, disabled bool, err error) {
	err = s.db.Q(ctx).QueryRow(ctx, schema.SelectIdentity, p.Provider, p.Subject, orNull(p.Alias)).Scan(&id, &disabled)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("look up identity: %w", err)
	}
	return id, disabled, nil
}

var (
	errClosed   = chat.Refuse(chat.CodeNotAllowed, "Registration is closed on this server. Ask its operator for an account.")
	errDisabled = chat.Refuse(chat.CodeNotAllowed, "This account has been disabled. Ask the server's operator.")
	errTaken    = chat.Refuse(chat.CodeConflict, "This identity belongs to another account. Unlink it there first.")
	errNoID     = chat.Refuse(chat.CodeConflict, "This id cannot be had. Choose another.")
)

// orNull makes an absent text NULL.
func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// SignIn opens a session for the account that the identity belongs to. If it
// belongs to none and registration is open, it makes an account; created then is
// true.
func (s *Service) SignIn(ctx context.Context, p Proof, from Client) (tokens *Tokens, created bool, err error) {
	// A second round if two first sign-ins with one identity meet: the later
	// one finds the account that the other has made.
	for range 2 {
		err = s.db.Tx(ctx, func(ctx context.Context) error {
			tokens, created, err = s.signIn(ctx, p, from)
			return err
		})
		if !pgtx.Violates(err, "identities_pkey") && !pgtx.Violates(err, "identities_alias") {
			break
		}
	}
	return tokens, created, err
}

func (s *Service) signIn(ctx context.Context, p Proof, from Client) (tokens *Tokens, created bool, err error) {
	if p.consume != nil {
		if err := p.consume(ctx); err != nil {
			return nil, false, err
		}
	}
	id, disabled, err := s.account(ctx, p)
	switch {
	case err != nil:
		return nil, false, err
	case disabled:
		return nil, false, errDisabled
	case id == "" && p.Provider == ProviderPassword:
		return nil, false, errProof // deleted since the password was checked
	case id == "" && s.cfg.Registration == RegisterClosed:
		return nil, false, errClosed
	case id == "":
		created = true
		if id, err = s.insertAccount(ctx, "", p.Name); err != nil {
			return nil, false, err
		}
		if err := s.insertIdentity(ctx, id, p, ""); err != nil {
			return nil, false, err
		}
	default:
		if err := s.stillHolds(ctx, id, p); err != nil {
			return nil, false, err
		}
	}
	if !created && p.Alias != "" {
		// The mini-program may have been bound to an open platform since, or
		// the person comes from a second one.
		if _, err := s.db.Q(ctx).Exec(ctx, schema.UpdateIdentityAlias, p.Provider, id, p.Alias); err != nil {
			return nil, false, fmt.Errorf("note alias: %w", err)
		}
	}
	tokens, err = s.open(ctx, id, p.Provider, from)
	return tokens, created, err
}

// stillHolds locks the account and returns nil if the proof is one of it. The password
// may have been changed, or the identity unlinked, since the proof was checked: who
// changes a password because another knows it is told that all others are signed out.
func (s *Service) stillHolds(ctx context.Context, account string, p Proof) error {
	switch err := s.lock(ctx, account); {
	case errors.Is(err, errRefused):
		return errProof
	case err != nil:
		return err
	}
	if p.Provider == ProviderPassword {
		var hash string
		err := s.db.Q(ctx).QueryRow(ctx, schema.SelectPassword, p.Subject).Scan(&hash)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return errProof
		case err != nil:
			return fmt.Errorf("read password: %w", err)
		case hash != p.hash:
			return errProof
		}
		return nil
	}
	owner, _, err := s.account(ctx, p)
	if err == nil && owner != account {
		err = errProof
	}
	return err
}

// Register makes an account with an id and a password and signs it in. An empty
// id is chosen by the server. It refuses with chat.CodeConflict an id that is
// taken, was deleted or is reserved.
func (s *Service) Register(ctx context.Context, id, password, name string, from Client) (*Tokens, error) {
	switch {
	case s.cfg.Registration == RegisterClosed:
		return nil, errClosed
	case s.cfg.Registration == RegisterAssigned && id != "":
		return nil, chat.Refuse(chat.CodeInvalid, "On this server ids are assigned: leave the id out.")
	case id != "" && !chat.ValidID(id):
		return nil, errID
	}
	name, wrong := displaytext.Name("A name", name)
	if err := errors.Join(checkPassword(password, id), wrong); err != nil {
		return nil, err
	}
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return nil, err
	}
	var tokens *Tokens
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		id, err := s.insertAccount(ctx, id, name)
		if err != nil {
			return err
		}
		if err := s.insertIdentity(ctx, id, Proof{Provider: ProviderPassword, Subject: id}, hash); err != nil {
			return err
		}
		tokens, err = s.open(ctx, id, ProviderPassword, from)
		return err
	})
	return tokens, err
}

var errID = chat.Refuse(chat.CodeInvalid, "An id is 1–64 characters of A-Z a-z 0-9 _ . ~ -")

func (s *Service) insertAccount(ctx context.Context, id, name string) (string, error) {
	if id == "" {
		id = newID("u")
	}
	return id, s.takeID(ctx, id, "user", cleanName(name))
}

// takeID makes an account with the id, as part of the context's transaction, unless
// the id, in whatever case, is or was in use.
func (s *Service) takeID(ctx context.Context, id, kind, name string) error {
	if isReserved(id) {
		return errNoID
	}
	q := s.db.Q(ctx)
	if _, err := q.Exec(ctx, schema.LockID, id); err != nil {
		return fmt.Errorf("lock id: %w", err)
	}
	inserted, err := q.Exec(ctx, schema.InsertAccount, id, kind, name)
	if err != nil {
		return fmt.Errorf("make account: %w", err)
	}
	if inserted.RowsAffected() == 0 {
		return errNoID
	}
	return nil
}

// lock keeps the account from being deleted until the context's transaction ends, and
// refuses if it has been: a request that was let in before must not leave a password or
// a phone number behind.
func (s *Service) lock(ctx context.Context, account string) error {
	err := s.db.Q(ctx).QueryRow(ctx, schema.LockAccount, account).Scan(&account)
	if errors.Is(err, pgx.ErrNoRows) {
		return errRefused
	}
	if err != nil {
		return fmt.Errorf("lock account: %w", err)
	}
	return nil
}

// newID returns an id of 80 random bits after the kind's letter.
func newID(kind string) string { return kind + strings.ToLower(rand.Text()[:16]) }

func isReserved(id string) bool {
	if id == "." || id == ".." { // clients take them out of addresses: RFC 3986 section 5.2.4
		return true
	}
	if authhook.Escaped(id) { // stands for somebody of a foreign issuer
		return true
	}
	for _, r := range reserved {
		if strings.EqualFold(id, r) {
			return true
		}
	}
	return false
}

func (s *Service) insertIdentity(ctx context.Context, account string, p Proof, secret string) error {
	_, err := s.db.Q(ctx).Exec(ctx, schema.InsertIdentity, p.Provider, p.Subject, orNull(p.Alias), account, orNull(secret))
	if err != nil {
		return fmt.Errorf("link identity: %w", err)
	}
	return nil
}

// CheckPassword proves an account by its id and password. The work is the same
// whether the account exists or not.
func (s *Service) CheckPassword(ctx context.Context, id, password string, from Client) (Proof, error) {
	settle, err := s.count(ctx, id, from)
	if err != nil {
		return Proof{}, err
	}
	wrong := false
	defer func() { settle(wrong) }()
	hash := ""
	err = s.db.Q(ctx).QueryRow(ctx, schema.SelectPassword, id).Scan(&hash)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return Proof{}, fmt.Errorf("read password: %w", err)
	}
	if len(password) > maxPasswordBytes {
		password = "" // fits nothing; hashed all the same
	}
	ok, err := s.hasher.fits(ctx, password, hash)
	if err != nil {
		return Proof{}, err
	}
	if !ok {
		wrong = true
		return Proof{}, errProof
	}
	return Proof{Provider: ProviderPassword, Subject: id, hash: hash}, nil
}

// Identity is a way in which a person signs in.
type Identity struct {
	Provider string    `json:"provider" doc:"password, phone, mail, wechat or oidc:<name>" example:"phone"`
	Subject  string    `json:"subject,omitempty" doc:"The phone number or mail address; for other providers left out"`
	Created  time.Time `json:"created"`
}

// Identities returns the account's identities.
func (s *Service) Identities(ctx context.Context, account string) ([]Identity, error) {
	rows, err := s.db.Q(ctx).Query(ctx, schema.SelectIdentities, account)
	if err != nil {
		return nil, fmt.Errorf("read identities: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (i Identity, err error) {
		err = row.Scan(&i.Provider, &i.Subject, &i.Created)
		if i.Provider != ProviderPhone && i.Provider != ProviderMail {
			i.Subject = "" // an openid is no use to people
		}
		return i, err
	})
	if err != nil {
		return nil, fmt.Errorf("read identities: %w", err)
	}
	return list, nil
}

// Link adds an identity to the account, in place of the one of the same provider
// if there is one. It refuses with chat.CodeConflict what belongs to another
// account.
func (s *Service) Link(ctx context.Context, account string, p Proof) error {
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		if p.consume != nil {
			if err := p.consume(ctx); err != nil {
				return err
			}
		}
		if err := s.lock(ctx, account); err != nil {
			return err
		}
		owner, _, err := s.account(ctx, p)
		switch {
		case err != nil:
			return err
		case owner != "" && owner != account:
			return errTaken
		}
		if _, err := s.db.Q(ctx).Exec(ctx, schema.DeleteIdentity, account, p.Provider); err != nil {
			return fmt.Errorf("replace identity: %w", err)
		}
		return s.insertIdentity(ctx, account, p, "")
	})
	if pgtx.Violates(err, "identities_pkey") || pgtx.Violates(err, "identities_alias") {
		return errTaken // by somebody who was faster
	}
	return err
}

// Unlink removes the account's identity at the provider. The last one stays: the
// person could not sign in any more.
func (s *Service) Unlink(ctx context.Context, account, provider string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		// Two removals at once must not remove the last two.
		if err := s.lock(ctx, account); err != nil {
			return err
		}
		var all, this int
		if err := s.db.Q(ctx).QueryRow(ctx, schema.CountIdentities, account, provider).Scan(&all, &this); err != nil {
			return fmt.Errorf("count identities: %w", err)
		}
		switch {
		case this == 0:
			return chat.Refuse(chat.CodeNotFound, "The account has no such identity.")
		case all == 1:
			return chat.Refuse(chat.CodeConflict, "This is the only way to sign in to the account. Link another first, or delete the account.")
		}
		if _, err := s.db.Q(ctx).Exec(ctx, schema.DeleteIdentity, account, provider); err != nil {
			return fmt.Errorf("unlink identity: %w", err)
		}
		return nil
	})
}

// SetPassword gives the account a password and ends its sessions but keep.
func (s *Service) SetPassword(ctx context.Context, account, password, keep string) error {
	if err := checkPassword(password, account); err != nil {
		return err
	}
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	return s.db.Tx(ctx, func(ctx context.Context) error {
		return s.setPassword(ctx, account, hash, keep)
	})
}

func (s *Service) setPassword(ctx context.Context, account, hash, keep string) error {
	if err := s.lock(ctx, account); err != nil {
		return err
	}
	q := s.db.Q(ctx)
	if _, err := q.Exec(ctx, schema.UpsertHash, account, hash); err != nil {
		return fmt.Errorf("set password: %w", err)
	}
	if _, err := q.Exec(ctx, schema.DeleteSessions, account, keep); err != nil {
		return fmt.Errorf("end sessions: %w", err)
	}
	return nil
}

// HasPassword reports whether the account has a password.
func (s *Service) HasPassword(ctx context.Context, account string) (bool, error) {
	var hash string
	err := s.db.Q(ctx).QueryRow(ctx, schema.SelectPassword, account).Scan(&hash)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read password: %w", err)
	}
	return true, nil
}
