package people

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/schema"
)

// Codes prove phone numbers and mail addresses: six digits that were sent there.
type Codes struct {
	*store
	queue *codeQueue
}

// Purposes of a code.
const (
	PurposeSignIn = "signin"
	PurposeLink   = "link"
	PurposeReset  = "reset"
)

// The rules of codes.
const (
	CodeTTL   = 5 * time.Minute
	codeTries = 5
	// A target is sent at most so many codes in an hour. With the tries that
	// makes 25 guesses in an hour at a million possibilities.
	codesPerHour = 5
)

// Ask sends a code to a phone number or mail address (channel is
// ProviderPhone or ProviderMail) and returns the challenge that must be shown
// with it. If there is nobody whom the code could serve, nothing is sent and
// everything else is the same: the answer, the work, the limits.
func (c *Codes) Ask(ctx context.Context, channel, to, purpose string) (challenge string, err error) {
	sender := c.cfg.Mail
	if channel == ProviderPhone {
		sender = c.cfg.SMS
	}
	if sender == nil {
		return "", chat.Refuse(chat.CodeInvalid, "This server sends no codes by "+channel+". Sign in another way.")
	}
	to, err = normalizeTarget(channel, to)
	if err != nil {
		return "", err
	}
	n, err := rand.Int(rand.Reader, big.NewInt(1_000_000))
	if err != nil {
		return "", fmt.Errorf("make code: %w", err)
	}
	digits := fmt.Sprintf("%06d", n)
	challenge = randomToken()
	var useful bool
	err = c.db.Tx(ctx, func(ctx context.Context) error {
		owner, _, err := c.accountOf(ctx, Proof{Provider: channel, Subject: to})
		if err != nil {
			return err
		}
		switch purpose {
		case PurposeSignIn:
			useful = owner != "" || c.cfg.Registration != RegisterClosed
		case PurposeReset:
			useful = owner != ""
		default:
			useful = true
		}
		inserted, err := c.db.Q(ctx).Exec(ctx, schema.InsertCode, hashToken(challenge), channel, to, purpose,
			hashCode(challenge, digits), useful, CodeTTL, codesPerHour)
		if err != nil {
			return fmt.Errorf("store code: %w", err)
		}
		if inserted.RowsAffected() == 0 {
			return errTooManyCodes
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	code := Code{To: to, Purpose: purpose, Digits: digits, Expires: c.now().Add(CodeTTL)}
	if !c.queue.enqueue(queuedCode{sender: sender, code: code, dummy: !useful}) {
		return "", chat.Refuse(chat.CodeUnavailable, "Too many codes are waiting to be sent. Try again.")
	}
	return challenge, nil
}

// tooManyCodes is a refusal that ends within the hour.
type tooManyCodes struct{}

var (
	errTooManyCodes     = tooManyCodes{}
	refusalTooManyCodes = chat.Refuse(chat.CodeRateLimited, "This number or address has been sent too many codes. Wait before the next.")
	codesPerHourWindow  = time.Hour
)

// Error returns the refusal's text.
func (tooManyCodes) Error() string { return refusalTooManyCodes.Error() }

// Unwrap returns the refusal.
func (tooManyCodes) Unwrap() error { return refusalTooManyCodes }

// RetryAfter returns how long to wait at most.
func (tooManyCodes) RetryAfter() time.Duration { return codesPerHourWindow / codesPerHour }

// hashCode returns what is stored of a code. The challenge makes it infeasible
// to find the six digits from the hash.
func hashCode(challenge, digits string) []byte {
	sum := sha256.Sum256([]byte("code\n" + challenge + "\n" + digits))
	return sum[:]
}

// Check proves a phone number or mail address by a code. Each call counts as
// a try, also if the transaction that it is made in fails. The code is used up
// when the proof is.
func (c *Codes) Check(ctx context.Context, challenge, digits string, purpose string) (Proof, error) {
	var (
		stored          []byte
		channel, target string
		sent            bool
	)
	id := hashToken(challenge)
	err := c.db.Pool().QueryRow(ctx, schema.TryCode, id, purpose, codeTries).Scan(&stored, &channel, &target, &sent)
	if errors.Is(err, pgx.ErrNoRows) {
		return Proof{}, errWrongProof
	}
	if err != nil {
		return Proof{}, fmt.Errorf("read code: %w", err)
	}
	if subtle.ConstantTimeCompare(stored, hashCode(challenge, digits)) == 0 || !sent {
		return Proof{}, errWrongProof
	}
	return Proof{Provider: channel, Subject: target, consume: func(ctx context.Context) error {
		used, err := c.db.Q(ctx).Exec(ctx, schema.UseCode, id)
		if err != nil {
			return fmt.Errorf("use code: %w", err)
		}
		if used.RowsAffected() == 0 {
			return errWrongProof // somebody else was faster with it
		}
		return nil
	}}, nil
}
