package api

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/authhook"
	"mynah/internal/waitfor"
	"mynah/people"
)

// Stop returns when its context ends and says what it gave up on. Another Stop waits again.
func TestStopObeysItsContext(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), "postgres://127.0.0.1:1/none") // connects when it is used: never
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: []byte("a secret for tests, 32 bytes or more")})
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	a, err := New(Config{
		DB: pool, Verifier: verifier, Keys: people.NewKeys(pool, people.KeysConfig{}),
		Log: slog.New(slog.DiscardHandler), Protocol: []byte("protocol"),
	})
	if err != nil {
		t.Fatal(err)
	}
	hang := make(chan struct{})
	a.stop, a.done = func() {}, hang
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- a.Stop(ctx) }()
		select {
		case err := <-done:
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "gave up on waiting until what has expired is deleted") {
				t.Errorf("Stop: %v, want that it gave up on what has expired", err)
			}
		case <-time.After(waitfor.Timeout):
			t.Fatal("Stop waits without its context")
		}
	}
	close(hang)
	if err := a.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}
