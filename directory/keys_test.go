package directory_test

import (
	"context"
	"log/slog"
	"testing"

	"mynah/authhook"
	"mynah/internal/pgtest"
	"mynah/people"
)

// Guards against a thief's connection that outlives the distrust of the stolen key: its
// token may be valid for years. Who is connected by another key stays, and so do those of
// keys that are only retired.
func TestDistrustedKeysEndConnections(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	url := pgtest.New(t)
	d := startDirectory(t, url)
	keys := people.NewKeys(mustPool(t, url), people.KeysConfig{Log: slog.New(slog.DiscardHandler)})
	must(t, keys.Start(ctx))
	t.Cleanup(func() { must(t, keys.Stop(ctx)) })
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: secret, LocalKeys: keys})
	must(t, err)
	t.Cleanup(verifier.Close)
	signed := func(subject string) *authhook.Identity {
		t.Helper()
		token, _, err := keys.Sign(authhook.TokenClaims{Subject: subject, TTL: people.AccessTTL})
		must(t, err)
		id, err := verifier.Verify(ctx, token)
		must(t, err)
		must(t, d.MayConnect(ctx, id))
		return id
	}
	// What a broker does with everybody who is connected when all may have changed.
	asked := make(chan struct{}, 100)
	unwatch := d.Watch(func(c authhook.Change) {
		if c.Kind == authhook.ChangeAll {
			asked <- struct{}{}
		}
	})
	defer unwatch()

	first := signed("anna")
	_, err = keys.Rotate(ctx, false)
	must(t, err)
	second := signed("bob")
	must(t, d.MayConnect(ctx, first)) // its key is retired only

	_, err = keys.Rotate(ctx, true)
	must(t, err)
	<-asked
	for _, stolen := range []*authhook.Identity{first, second} {
		if err := d.MayConnect(ctx, stolen); err == nil {
			t.Errorf("%s stays connected with a token of a key that is distrusted", stolen.Subject)
		}
	}
	signed("carl")
	must(t, d.MayConnect(ctx, &authhook.Identity{Subject: "dora"})) // another issuer's
}
