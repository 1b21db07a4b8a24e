package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// How long a graceful stop may take. Parts that are not done by then give up what they
// hold, which is nothing that was acknowledged. Each has a time of its own, so that one
// that waits for a PostgreSQL or a mail server that does not answer leaves the others
// theirs: clients are to be told, and the log to be closed.
const (
	stopPatience  = 20 * time.Second // in all
	partPatience  = 5 * time.Second  // of one part
	leastPatience = time.Second      // of one part, however long those before it took
)

// stops is what has been started, to be stopped in the opposite order.
type stops struct {
	log   *slog.Logger
	parts []part
}

type part struct {
	name     string
	patience time.Duration
	stop     func(context.Context) error
}

// push notes that a part has been started. Its stop must be harmless to repeat.
func (s *stops) push(name string, stop func(context.Context) error) {
	s.pushSlow(name, partPatience, stop)
}

// pushSlow is push for a part that may take longer.
func (s *stops) pushSlow(name string, patience time.Duration, stop func(context.Context) error) {
	s.parts = append(s.parts, part{name, patience, stop})
}

// all stops everything. The context that asked for the stop has ended, so it
// brings one of its own. A part that does not stop well is told, and the others
// are stopped nevertheless.
func (s *stops) all(ctx context.Context) error {
	end := time.Now().Add(stopPatience)
	var errs []error
	for len(s.parts) > 0 {
		last := s.parts[len(s.parts)-1]
		s.parts = s.parts[:len(s.parts)-1]
		began := time.Now()
		if err := last.end(ctx, end); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", last.name, err))
			continue
		}
		s.log.DebugContext(ctx, "stopped", "part", last.name, "took", time.Since(began).Round(time.Millisecond))
	}
	return errors.Join(errs...)
}

// end stops the part within its patience and what is left of the whole.
func (p *part) end(ctx context.Context, end time.Time) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(min(p.patience, time.Until(end)), leastPatience))
	defer cancel()
	return p.stop(ctx)
}
