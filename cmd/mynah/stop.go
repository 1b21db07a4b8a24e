package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// stopPatience is how long a graceful stop may take in all. Parts that are not
// done by then give up what they hold, which is nothing that was acknowledged.
const stopPatience = 20 * time.Second

// stops is what has been started, to be stopped in the opposite order.
type stops struct {
	log   *slog.Logger
	parts []part
}

type part struct {
	name string
	stop func(context.Context) error
}

// push notes that a part has been started. Its stop must be harmless to repeat.
func (s *stops) push(name string, stop func(context.Context) error) {
	s.parts = append(s.parts, part{name, stop})
}

// all stops everything. The context that asked for the stop has ended, so it
// brings one of its own. A part that does not stop well is told, and the others
// are stopped nevertheless.
func (s *stops) all(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	var errs []error
	for len(s.parts) > 0 {
		last := s.parts[len(s.parts)-1]
		s.parts = s.parts[:len(s.parts)-1]
		began := time.Now()
		if err := last.stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", last.name, err))
			continue
		}
		s.log.DebugContext(ctx, "stopped", "part", last.name, "took", time.Since(began).Round(time.Millisecond))
	}
	return errors.Join(errs...)
}
