package people

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"mynah/internal/waitfor"
)

// hungSender is a Sender that does not return until the channel is closed.
type hungSender struct{ begun, hang chan struct{} }

func (s hungSender) Send(context.Context, Code) error {
	s.begun <- struct{}{}
	<-s.hang
	return nil
}

// Stop returns when its context ends and says what it gave up on, each time, as long as that
// hangs; then it returns nil.
func TestStopObeysItsContext(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	keys := &Keys{stop: func() {}, done: hang}

	sender := hungSender{make(chan struct{}, 1), hang}
	codes := newCodeQueue(slog.New(slog.DiscardHandler))
	codes.start(t.Context())
	if !codes.enqueue(queuedCode{sender: sender, code: Code{Expires: time.Now().Add(time.Hour)}}) {
		t.Fatal("no room")
	}
	<-sender.begun

	for _, tc := range []struct {
		stop func(context.Context) error
		want string
	}{
		{keys.Stop, "gave up on waiting until signing keys are read"},
		{codes.stop, "gave up on sending the codes"},
	} {
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- tc.stop(ctx) }()
			select {
			case err := <-done:
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, want that it %s", err, tc.want)
				}
			case <-time.After(waitfor.Timeout):
				t.Fatalf("waits without its context, want that it %s", tc.want)
			}
		}
	}
	close(hang)
	if err := errors.Join(keys.Stop(t.Context()), codes.stop(t.Context())); err != nil {
		t.Errorf("when nothing hangs any more: %v", err)
	}
}
