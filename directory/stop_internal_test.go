package directory

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"mynah/internal/waitfor"
)

// Stop returns when its context ends and says what it gave up on. Another Stop waits again.
func TestStopObeysItsContext(t *testing.T) {
	t.Parallel()
	d, err := New(Config{DatabaseURL: "postgres://127.0.0.1:1/none", CacheFile: t.TempDir() + "/rights"})
	if err != nil {
		t.Fatal(err)
	}
	hang := make(chan struct{})
	d.cancel = func() {}
	d.tasks.Go(func() { <-hang })
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- d.Stop(ctx) }()
		select {
		case err := <-done:
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "gave up on ending its work") || !strings.Contains(err.Error(), d.cfg.CacheFile) {
				t.Errorf("Stop: %v, want that it gave up on ending its work and on writing %s", err, d.cfg.CacheFile)
			}
		case <-time.After(waitfor.Timeout):
			t.Fatal("Stop waits without its context")
		}
	}
	close(hang)
	if err := d.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}
