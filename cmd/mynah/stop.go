package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// How long a graceful stop may take. A part that is not done by then drops what it
// holds, which was never acknowledged. Each part has its own time-out, so that one that
// waits for a PostgreSQL or a mail server leaves time to the others: clients must get
// DISCONNECT, and the log must be closed.
const (
	stopTimeout    = 20 * time.Second // in all
	partTimeout    = 5 * time.Second  // of one part
	minPartTimeout = time.Second      // of one part, however long those before it took
)

// shutdownStack is what has been started, to be stopped in the opposite order.
type shutdownStack struct {
	log   *slog.Logger
	parts []shutdownStep
}

type shutdownStep struct {
	name    string
	timeout time.Duration
	stop    func(context.Context) error
}

// push records that a part has been started. Its stop must be harmless to
// repeat.
func (s *shutdownStack) push(name string, stop func(context.Context) error) {
	s.pushSlow(name, partTimeout, stop)
}

// pushSlow is push for a part that may take longer.
func (s *shutdownStack) pushSlow(name string, timeout time.Duration, stop func(context.Context) error) {
	s.parts = append(s.parts, shutdownStep{name, timeout, stop})
}

// all stops everything. The caller's context has ended, so each part gets a new
// one. The error of a part is returned, and the others are stopped
// nevertheless.
func (s *shutdownStack) all(ctx context.Context) error {
	end := time.Now().Add(stopTimeout)
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

// end stops the part within its time-out and the rest of stopTimeout.
func (p *shutdownStep) end(ctx context.Context, end time.Time) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(min(p.timeout, time.Until(end)), minPartTimeout))
	defer cancel()
	return p.stop(ctx)
}
