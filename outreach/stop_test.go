package outreach_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"mynah/internal/pgtest"
	"mynah/internal/waitfor"
	"mynah/outreach"
)

// Stop returns when its context ends and says what it gave up on. Another Stop waits again.
func TestStopObeysItsContext(t *testing.T) {
	t.Parallel()
	asked, hang := make(chan struct{}, 100), make(chan struct{})
	r, err := outreach.New(outreach.Config{
		DatabaseURL: pgtest.New(t), BrokerURL: "tcp://127.0.0.1:1",
		Token: func(context.Context) (string, error) {
			asked <- struct{}{}
			<-hang
			return "", errors.New("no token")
		},
	})
	must(t, err)
	must(t, r.Start(t.Context()))
	<-asked
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- r.Stop(ctx) }()
		select {
		case err := <-done:
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "gave up on waiting for a notice") {
				t.Errorf("Stop: %v, want that it gave up on a notice", err)
			}
		case <-time.After(waitfor.Timeout):
			t.Fatal("Stop waits without its context")
		}
	}
	close(hang)
	must(t, r.Stop(t.Context()))
}
