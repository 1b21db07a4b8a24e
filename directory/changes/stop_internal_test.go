package changes

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"mynah/internal/waitfor"
)

// Stop returns when its context ends and says what it gave up on; it had no context. Another
// Stop waits again.
func TestStopObeysItsContext(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	b := &Barrier{cancel: func() {}, done: hang}
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- b.Stop(ctx) }()
		select {
		case err := <-done:
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "gave up on closing the connection") {
				t.Errorf("Stop: %v, want that it gave up on closing the connection", err)
			}
		case <-time.After(waitfor.Timeout):
			t.Fatal("Stop waits without its context")
		}
	}
	close(hang)
	if err := b.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}
