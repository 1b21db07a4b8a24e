package archiver_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"mynah/archiver"
	"mynah/internal/waitfor"
)

// Stop returns when its context ends and says what it gave up on, also if the connection to
// the broker does not end: it waited for that without its context. Another Stop waits again,
// and Start makes no second run beside the one that goes on.
func TestStopObeysItsContext(t *testing.T) {
	t.Parallel()
	asked, hang := make(chan struct{}, 100), make(chan struct{})
	a, err := archiver.New(archiver.Config{
		BrokerURL: "tcp://127.0.0.1:1", DatabaseURL: "postgres://127.0.0.1:1/none",
		Token: func(context.Context) (string, error) {
			asked <- struct{}{}
			<-hang
			return "", errors.New("no token")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-asked
	for range 2 {
		done := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		go func() { done <- a.Stop(ctx) }()
		select {
		case err = <-done:
		case <-time.After(waitfor.Timeout):
			t.Fatal("Stop waits without its context")
		}
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "gave up on ending the connection to the broker") {
			t.Errorf("Stop: %v, want that it gave up on ending the connection", err)
		}
		if err := a.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Start beside the last run: %v, want the end of its context", err)
		}
	}
	close(hang)
	if err := a.Stop(t.Context()); err != nil {
		t.Errorf("Stop when nothing hangs any more: %v", err)
	}
}
