package people

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/alexedwards/argon2id"
	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/schema"
)

// Passwords prove accounts by their id and a password.
type Passwords struct {
	*store
	hasher *hasher
	places *places
	codes  *Codes
}

// Check proves an account by its id and password. The work is the same
// whether the account exists or not.
func (p *Passwords) Check(ctx context.Context, id, password string, from Client) (Proof, error) {
	settle, err := p.places.countTry(ctx, id, from)
	if err != nil {
		return Proof{}, err
	}
	wrong := false
	defer func() { settle(wrong) }()
	hash := ""
	err = p.db.Q(ctx).QueryRow(ctx, schema.SelectPassword, id).Scan(&hash)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return Proof{}, fmt.Errorf("read password: %w", err)
	}
	if len(password) > maxPasswordBytes {
		password = "" // fits nothing; hashed all the same
	}
	ok, err := p.hasher.matches(ctx, password, hash)
	if err != nil {
		return Proof{}, err
	}
	if !ok {
		wrong = true
		return Proof{}, errWrongProof
	}
	return Proof{Provider: ProviderPassword, Subject: id, hash: hash}, nil
}

// Set gives the account a password and ends its sessions but keep.
func (p *Passwords) Set(ctx context.Context, account, password, keep string) error {
	if err := checkPassword(password, account); err != nil {
		return err
	}
	hash, err := p.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	return p.db.Tx(ctx, func(ctx context.Context) error {
		return p.setHash(ctx, account, hash, keep)
	})
}

func (p *Passwords) setHash(ctx context.Context, account, hash, keep string) error {
	if err := p.lock(ctx, account); err != nil {
		return err
	}
	q := p.db.Q(ctx)
	if _, err := q.Exec(ctx, schema.UpsertHash, account, hash); err != nil {
		return fmt.Errorf("set password: %w", err)
	}
	if _, err := q.Exec(ctx, schema.DeleteSessions, account, keep); err != nil {
		return fmt.Errorf("end sessions: %w", err)
	}
	return nil
}

// Has reports whether the account has a password.
func (p *Passwords) Has(ctx context.Context, account string) (bool, error) {
	var hash string
	err := p.db.Q(ctx).QueryRow(ctx, schema.SelectPassword, account).Scan(&hash)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read password: %w", err)
	}
	return true, nil
}

// Reset gives a new password to the account that the proven phone number
// or mail address belongs to, and ends all its sessions.
func (p *Passwords) Reset(ctx context.Context, challenge, digits, password string) error {
	// Whatever the outcome, the work is the same: rules, hash, code.
	if err := checkPassword(password, ""); err != nil {
		return err
	}
	proof, err := p.codes.Check(ctx, challenge, digits, PurposeReset)
	if err != nil {
		return err
	}
	hash, err := p.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	return p.db.Tx(ctx, func(ctx context.Context) error {
		if err := proof.consume(ctx); err != nil {
			return err
		}
		id, _, err := p.accountOf(ctx, proof)
		if err != nil {
			return err
		}
		if id == "" {
			return errWrongProof // unlinked since the code was sent
		}
		return p.setHash(ctx, id, hash, "")
	})
}

// passwordParams cost some 40 ms of one core and 19 MiB: OWASP's second choice
// for argon2id, which leaves room for a few hashes a second on two cores beside
// the broker. A stored hash carries its own parameters, so they can be raised.
var passwordParams = &argon2id.Params{Memory: 19 << 10, Iterations: 2, Parallelism: 1, SaltLength: 16, KeyLength: 32}

// How many hashes wait, and how long.
const (
	maxQueuedHashes = 64
	hashTimeout     = 5 * time.Second
	maxCoolDown     = 200 * time.Millisecond // see slot
)

// maxHashesAtOnce returns how many passwords are hashed at once on that many cores: half of
// them, so that the others are left to the chat, which shares the process or the machine.
// Each takes 19 MiB.
func maxHashesAtOnce(cores int) int { return max(cores/2, 1) }

// hasher hashes passwords, a few at a time: a flood of sign-ins must not take the
// memory and the cores from the chat.
type hasher struct {
	queue     chan struct{} // waiting or running
	slots     chan struct{} // running, or resting
	coolsDown bool          // a slot rests after each hash for as long as it took
	dummy     string        // a hash that no password fits
}

func newHasher() (*hasher, error) {
	atOnce := maxHashesAtOnce(runtime.GOMAXPROCS(0))
	// The dummy is made with a random password, so that nobody knows it.
	dummy, err := argon2id.CreateHash(randomToken(), passwordParams)
	if err != nil {
		return nil, fmt.Errorf("make dummy hash: %w", err)
	}
	return &hasher{
		queue:     make(chan struct{}, maxQueuedHashes+atOnce),
		slots:     make(chan struct{}, atOnce),
		coolsDown: atOnce == 1,
		dummy:     dummy,
	}, nil
}

var errBusy = chat.Refuse(chat.CodeUnavailable, "Too many people are signing in right now. Try again.")

// acquire waits for its turn. The caller must call release if err is nil.
func (h *hasher) acquire(ctx context.Context) (release func(), err error) {
	select {
	case h.queue <- struct{}{}:
	default:
		return nil, errBusy
	}
	timeout := time.NewTimer(hashTimeout)
	defer timeout.Stop()
	select {
	case h.slots <- struct{}{}:
		began := time.Now()
		return func() {
			<-h.queue
			// On few cores the others are not left to the chat alone: PostgreSQL and
			// the system need them, too. So a core rests from hashing as well.
			if h.coolsDown {
				time.AfterFunc(min(time.Since(began), maxCoolDown), func() { <-h.slots })
			} else {
				<-h.slots
			}
		}, nil
	case <-timeout.C:
		err = errBusy
	case <-ctx.Done():
		err = ctx.Err()
	}
	<-h.queue
	return nil, err
}

// hash returns the hash of a password.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	release, err := h.acquire(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	hash, err := argon2id.CreateHash(password, passwordParams)
	if err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	return hash, nil
}

// matches reports whether the password has the hash. With an empty hash it does the
// same work and reports false: the time that it takes must not show that there is no such account.
func (h *hasher) matches(ctx context.Context, password, hash string) (bool, error) {
	release, err := h.acquire(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	known := hash != ""
	if !known {
		hash = h.dummy
	}
	ok, err := argon2id.ComparePasswordAndHash(password, hash)
	if err != nil {
		return false, fmt.Errorf("compare password: %w", err)
	}
	return ok && known, nil
}

// Bounds of a password. The upper one keeps hashing cheap to refuse; 256 bytes
// are room for a sentence in any script.
const (
	minPasswordRunes = 8
	maxPasswordBytes = 256
)

// commonPasswords are the passwords that attackers try first and that are long enough.
var commonPasswords = strings.Fields(`12345678 123456789 1234567890 87654321 11111111 88888888 00000000 66666666
	12341234 11223344 147258369 789456123 123123123 password password1 password123 passw0rd p@ssw0rd
	qwertyui qwerty123 qwertyuiop 1q2w3e4r 1qaz2wsx 1q2w3e4r5t zaq12wsx abcd1234 abc12345 a1234567
	a12345678 aa123456 asdfghjk asdf1234 iloveyou sunshine princess football baseball welcome1
	admin123 administrator letmein1 woaini1314 5201314520 qq123456 asd123456 changeme trustno1`)

// checkPassword returns nil if the password may be set for the account.
func checkPassword(password, account string) error {
	switch {
	case utf8.RuneCountInString(password) < minPasswordRunes:
		return chat.Refuse(chat.CodeInvalid, fmt.Sprintf("A password has at least %d characters.", minPasswordRunes))
	case len(password) > maxPasswordBytes:
		return chat.Refuse(chat.CodeInvalid, fmt.Sprintf("A password has at most %d bytes.", maxPasswordBytes))
	}
	lower := strings.ToLower(password)
	if slices.Contains(commonPasswords, lower) {
		return errWeakPassword
	}
	if account != "" && strings.Contains(lower, strings.ToLower(account)) && len(password) < len(account)+minPasswordRunes {
		return errWeakPassword
	}
	if strings.Count(password, password[:1]) == len(password) {
		return errWeakPassword
	}
	return nil
}

var errWeakPassword = chat.Refuse(chat.CodeInvalid, "This password is among the first that would be guessed. Choose another.")
