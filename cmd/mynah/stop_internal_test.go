package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Guards against a part that cannot stop and takes the time of all others: the broker's
// clients were not told any more, and its log was not closed. Time is the bubble's.
func TestStopsHaveTheirOwnTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := shutdownStack{log: slog.New(slog.DiscardHandler)}
		var stopped []string
		var left []time.Duration
		push := func(name string, patience time.Duration, hangs bool) {
			s.pushSlow(name, patience, func(ctx context.Context) error {
				end, _ := ctx.Deadline()
				stopped, left = append(stopped, name), append(left, time.Until(end))
				if hangs {
					<-ctx.Done()
				}
				return ctx.Err()
			})
		}
		push("listener", partTimeout, false)
		push("pool", partTimeout, true)
		push("broker", 10*time.Second, false)
		push("slow", 12*time.Second, true)
		push("archiver", partTimeout, true)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := s.all(ctx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("all: %v, want what hangs", err)
		}
		if want := []string{"archiver", "slow", "broker", "pool", "listener"}; !slices.Equal(stopped, want) {
			t.Errorf("stopped %v, want %v", stopped, want)
		}
		if want := []time.Duration{5 * time.Second, 12 * time.Second, 3 * time.Second, 3 * time.Second, time.Second}; !slices.Equal(left, want) {
			t.Errorf("they had %v, want %v", left, want)
		}
	})
}
