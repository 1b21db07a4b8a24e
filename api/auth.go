package api

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"mynah/authhook"
	"mynah/chat"
)

// Verifier tells who a token's holder is. It is what the broker uses for MQTT,
// so that HTTP and MQTT take the same tokens: an *authhook.Verifier.
type Verifier interface {
	Verify(ctx context.Context, token string) (*authhook.Identity, error)
}

// Caller is who makes a request.
type Caller struct {
	*authhook.Identity
	SignedIn time.Time // when the person proved who they are; zero if the token is not from a sign-in here
}

type callerKey struct{}

// callerOf returns who makes the request. It panics in handlers of public
// routes, where nobody has been asked.
func callerOf(ctx context.Context) *Caller {
	c, ok := ctx.Value(callerKey{}).(*Caller)
	if !ok {
		panic("api: callerOf on a route that asks for no token")
	}
	return c
}

// freshSignInFor is how long a sign-in counts as fresh for what must not be done with
// a stolen access token alone: linking identities, a first password, deletion.
const freshSignInFor = 10 * time.Minute

// requireFreshSignIn returns nil if the caller has signed in within the last minutes.
func requireFreshSignIn(c *Caller, now time.Time) error {
	if c.SignedIn.IsZero() || now.Sub(c.SignedIn) > freshSignInFor {
		return chat.Refuse(chat.CodeStaleSignIn, "This takes a sign-in of the last 10 minutes. Sign in again and repeat it.")
	}
	return nil
}

// logRefusedToken logs why a token was refused, in the words in which MQTT's listeners do,
// and at most as often.
func (a *API) logRefusedToken(ctx context.Context, req *request, err error) {
	leftOut, ok := a.refusedTokens.Refusal(req.address.String())
	if !ok {
		return
	}
	attrs := []slog.Attr{slog.String("request", req.id), slog.String("address", req.address.String()), slog.Any("reason", err)}
	if te, ok := errors.AsType[*authhook.TokenError](err); ok && te.Subject != "" {
		attrs = append(attrs, slog.String("subject", te.Subject))
	}
	if leftOut > 0 {
		attrs = append(attrs, slog.Int64("left_out", leftOut)) // refusals that were not logged
	}
	a.log.LogAttrs(ctx, slog.LevelWarn, "token refused", attrs...)
}

func (a *API) authenticate(ctx context.Context, req *request) (*Caller, error) {
	if req.token == "" {
		return nil, chat.Refuse(chat.CodeUnauthenticated, "This needs a token: Authorization: Bearer …")
	}
	id, err := a.cfg.Verifier.Verify(ctx, req.token)
	if err != nil {
		a.logRefusedToken(ctx, req, err)
		refusal := authhook.ClientError(err)
		if refusal.Code == chat.CodeUnavailable {
			return nil, refusal
		}
		// MQTT calls it not_allowed; HTTP has a status of its own for it.
		return nil, chat.Refuse(chat.CodeUnauthenticated, "The token is not accepted. Sign in again or renew it.")
	}
	req.subject = id.Subject
	signedIn, err := a.people.Accounts.Admit(ctx, id)
	if err != nil {
		return nil, err
	}
	return &Caller{Identity: id, SignedIn: signedIn}, nil
}
