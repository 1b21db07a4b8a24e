package people

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Sender brings a one-time code to a person.
type Sender interface {
	// Send returns nil once the code was handed over. An error that wraps
	// ErrUndeliverable is final; after any other the code is tried again.
	// Errors hold neither the code nor credentials: they are logged.
	Send(ctx context.Context, code Code) error
}

// ErrUndeliverable is wrapped by a Sender's error that trying again cannot mend:
// the address does not exist, the message is refused.
var ErrUndeliverable = errors.New("cannot be delivered")

// Code is a one-time code on its way to a person.
type Code struct {
	To      string    // phone number (+E.164) or mail address
	Purpose string    // PurposeSignIn, PurposeLink or PurposeReset
	Digits  string    // six
	Expires time.Time // when it fits no more
}

// LogSender writes codes to the log instead of sending them, for development.
// Whoever reads the log can sign in as anybody: never use it in production.
type LogSender struct{ Log *slog.Logger }

// Send logs the code.
func (l LogSender) Send(ctx context.Context, code Code) error {
	l.Log.LogAttrs(ctx, slog.LevelWarn, "code not sent but logged, because this is --dev",
		slog.String("to", code.To), slog.String("purpose", code.Purpose), slog.String("code", code.Digits))
	return nil
}

// How codes are sent.
const (
	maxQueuedCodes  = 1000 // codes waiting; then asking for a code is refused
	sendWorkers     = 4
	sendTimeout     = 15 * time.Second // one attempt
	firstRetryPause = time.Second      // before the second attempt, doubling after each
	maxSends        = 5
)

// queuedCode is a code and how it is sent. A dummy goes through the queue like any
// other and is thrown away at the end: a full queue must not show it either.
type queuedCode struct {
	sender Sender
	code   Code
	dummy  bool
}

// codeQueue sends codes in the background, so that the answer to who asked for one
// takes the same time whether it is sent or not.
type codeQueue struct {
	log   *slog.Logger
	pause time.Duration // firstPause; shorter in tests

	mu      sync.Mutex // guards what follows; held while something is put into the queue
	queue   chan queuedCode
	started bool
	cancel  context.CancelFunc
	workers sync.WaitGroup
	stopped chan struct{} // closed when the workers have ended after a stop; nil before the first
}

func newCodeQueue(log *slog.Logger) *codeQueue {
	return &codeQueue{log: log, pause: firstRetryPause}
}

func (p *codeQueue) start(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.started {
		return
	}
	ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	p.queue = make(chan queuedCode, maxQueuedCodes)
	p.started = true
	queue := p.queue
	for range sendWorkers {
		p.workers.Go(func() {
			for l := range queue {
				p.deliver(ctx, l)
			}
		})
	}
}

// stop sends what is waiting, at most until ctx ends.
func (p *codeQueue) stop(ctx context.Context) error {
	p.mu.Lock()
	if p.started {
		p.started = false
		close(p.queue)
		stopped := make(chan struct{})
		p.stopped = stopped
		go func() { p.workers.Wait(); close(stopped) }()
	}
	stopped, cancel := p.stopped, p.cancel
	p.mu.Unlock()
	if stopped == nil {
		return nil
	}
	select {
	case <-stopped:
		cancel()
		return nil
	default:
	}
	select {
	case <-stopped:
		cancel()
		return nil
	case <-ctx.Done():
	}
	cancel() // ends what is being sent, and the pauses
	select {
	case <-stopped:
	case <-time.After(cancelGrace): // a Sender does not obey its context
	}
	return fmt.Errorf("gave up on sending the codes that wait: %w", ctx.Err())
}

// cancelGrace is how long stop waits at most for those that were told to give up, which
// takes them no time.
const cancelGrace = 100 * time.Millisecond

// enqueue reports whether there was room.
func (p *codeQueue) enqueue(l queuedCode) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.started {
		return false
	}
	select {
	case p.queue <- l:
		return true
	default:
		return false
	}
}

// deliver sends a code, again and again until it is expired.
func (p *codeQueue) deliver(ctx context.Context, l queuedCode) {
	if l.dummy {
		return
	}
	ctx, cancel := context.WithDeadline(ctx, l.code.Expires)
	defer cancel()
	pause := p.pause
	for attempt := 1; ; attempt++ {
		once, done := context.WithTimeout(ctx, sendTimeout)
		err := l.sender.Send(once, l.code)
		done()
		if err == nil {
			return
		}
		final := attempt == maxSends || errors.Is(err, ErrUndeliverable) || ctx.Err() != nil
		p.log.LogAttrs(ctx, slog.LevelWarn, "code not sent", slog.String("purpose", l.code.Purpose),
			slog.Int("attempt", attempt), slog.Bool("given_up", final), slog.Any("error", err))
		if final {
			return
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		pause *= 2
	}
}
