package authhook

import (
	"errors"

	"mynah/chat"
)

// The reasons for which a token is refused. Each is the head of an error chain
// that says more and fits on one log line; none ever holds the token.
var (
	// ErrNoToken is returned when the client brought no token at all.
	ErrNoToken = errors.New("no token")
	// ErrTokenTooLong is returned for a token of more than MaxTokenLen bytes.
	ErrTokenTooLong = errors.New("token too long")
	// ErrMalformed is returned for what is not a JSON Web Token (RFC 7519), or
	// one that demands an extension we do not know (RFC 7515 section 4.1.11).
	ErrMalformed = errors.New("malformed token")
	// ErrAlgorithm is returned when no configured key stands for the
	// algorithm in the token's header; "none" is one of those.
	ErrAlgorithm = errors.New("algorithm not accepted")
	// ErrUnknownKey is returned when no configured source has the key that
	// the token names.
	ErrUnknownKey = errors.New("unknown key")
	// ErrKeysUnavailable is returned instead of ErrUnknownKey while a JWKS
	// could not be fetched even once: the key may be there, try again.
	ErrKeysUnavailable = errors.New("keys not loaded yet")
	// ErrSignature is returned when the key did not make the signature.
	ErrSignature = errors.New("bad signature")
	// ErrExpired is returned at and after the token's exp.
	ErrExpired = errors.New("token expired")
	// ErrNotYetValid is returned before the token's nbf, less the leeway.
	ErrNotYetValid = errors.New("token not yet valid")
	// ErrIssuer is returned when iss is not the configured issuer.
	ErrIssuer = errors.New("wrong issuer")
	// ErrAudience is returned when aud does not name the configured audience.
	ErrAudience = errors.New("wrong audience")
	// ErrClaims is returned when a claim is missing, of the wrong kind or
	// holds what PROTOCOL.md does not allow.
	ErrClaims = errors.New("bad claims")
	// ErrOtherHolder is returned when a connection is to be renewed with a
	// token of another subject or role.
	ErrOtherHolder = errors.New("token of another holder")
	// ErrNotConnected is returned when a client has no identity: it never
	// connected or is gone.
	ErrNotConnected = errors.New("not connected")
	// ErrThrottled is returned when an address had too many failed attempts.
	ErrThrottled = errors.New("too many failed attempts from this address")
)

// TokenError is the error of Verify: a reason (see the Err… variables, to be
// asked for with errors.Is) and, once the signature has been verified, whose
// token it was.
type TokenError struct {
	Subject string // the subject, or "" while the signature is not verified
	Err     error
}

// Error returns the reason. It does not hold the token.
func (e *TokenError) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e *TokenError) Unwrap() error { return e.Err }

// What clients learn. Anything more would help whoever tries tokens.
var (
	refusedExpired = chat.Refuse(chat.CodeNotAllowed, "token expired")
	refusedToken   = chat.Refuse(chat.CodeNotAllowed, "not authorised")
	refusedLater   = chat.Refuse(chat.CodeUnavailable, "cannot check tokens right now; try again")
	refusedRate    = chat.Refuse(chat.CodeRateLimited, "too many failed attempts; try again later")
)

// ClientError returns what a client may be told about a refused token or
// connection: that it expired, that it is to try again, or nothing but "not
// authorised". A *chat.Error in the chain was written for clients and is
// returned as it is.
func ClientError(err error) *chat.Error {
	if refusal, ok := errors.AsType[*chat.Error](err); ok {
		return refusal
	}
	switch {
	case errors.Is(err, ErrExpired):
		return refusedExpired
	case errors.Is(err, ErrKeysUnavailable):
		return refusedLater
	case errors.Is(err, ErrThrottled):
		return refusedRate
	}
	return refusedToken
}
