package msglog

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// failure is the state of a log after a write has gone wrong: the first error,
// for good.
type failure struct {
	onFailure func(error)

	mu  sync.Mutex
	err error
}

// set records the first error and returns the one that counts.
func (f *failure) set(err error) error {
	f.mu.Lock()
	if f.err != nil {
		defer f.mu.Unlock()
		return f.err
	}
	f.err = fmt.Errorf("%w: %w", ErrFailed, err)
	err = f.err
	f.mu.Unlock()
	if f.onFailure != nil {
		f.onFailure(err)
	}
	return err
}

func (f *failure) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// fail records that the database cannot be trusted to write any more.
func (d *database) fail(err error) error {
	if d.failure.get() == nil {
		d.log.Error("message log failed: nothing more is stored until it is opened again", "dir", d.dir, "err", err)
	}
	return d.failure.set(err)
}

// guard calls a function that writes to the database. Pebble panics when it
// cannot write its write-ahead log. guard turns the panic into a failed log, so that
// the process lives on to report it.
func (d *database) guard(write func() error) (err error) {
	if err := d.failure.get(); err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			err = d.fail(fmt.Errorf("write: %v", p))
		}
	}()
	if err := write(); err != nil {
		return d.fail(err)
	}
	// Pebble reports some failures to its logger only.
	return d.failure.get()
}

// pebbleLogger is the logger that Pebble gets. Pebble's fatal errors mark the log as
// failed; Pebble's own logger would end the process.
type pebbleLogger struct {
	log  *slog.Logger
	fail func(error) error
}

func (d *database) pebbleLogger() pebble.Logger {
	return pebbleLogger{log: d.log, fail: d.fail}
}

// Infof logs at debug level.
func (p pebbleLogger) Infof(format string, args ...any) {
	p.log.Debug("pebble: " + fmt.Sprintf(format, args...)) //nolint:sloglint // the text is Pebble's
}

// Errorf logs at warning level: errors that matter reach a caller as well.
func (p pebbleLogger) Errorf(format string, args ...any) {
	p.log.Warn("pebble: " + fmt.Sprintf(format, args...)) //nolint:sloglint // the text is Pebble's
}

// Fatalf marks the log as failed.
func (p pebbleLogger) Fatalf(format string, args ...any) {
	_ = p.fail(fmt.Errorf(format, args...))
}

// listener logs the events of Pebble that operators should know.
func (d *database) listener() *pebble.EventListener {
	var (
		damaged sync.Map     // files that have been reported
		warned  atomic.Int64 // when background work was last reported
	)
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			// On a full or damaged disk Pebble retries without a pause, so the log is limited.
			if now, last := time.Now().UnixNano(), warned.Load(); now-last > int64(time.Minute) && warned.CompareAndSwap(last, now) {
				d.log.Warn("message log: background work failed and is tried again", "dir", d.dir, "err", err)
			}
		},
		// Reads report it to their callers; the rest goes on.
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			if _, known := damaged.LoadOrStore(info.Path, true); !known {
				d.log.Error("message log is damaged", "file", info.Path, "err", info.Details)
			}
		},
		WriteStallBegin: func(info pebble.WriteStallBeginInfo) {
			d.log.Warn("message log: writing waits for the disk", "reason", info.Reason)
		},
		WriteStallEnd: func() { d.log.Info("message log: writing goes on") },
	}
}

// wrapOpenError wraps an error of pebble.Open in the error of this package that it means.
func wrapOpenError(err error) error {
	switch {
	case errors.Is(err, syscall.EAGAIN), strings.Contains(err.Error(), "lock held by current process"):
		return fmt.Errorf("%w: stop it or choose another directory (%w)", ErrInUse, err)
	case strings.Contains(err.Error(), "unknown format major version"):
		return fmt.Errorf("%w: use the newer release (%w)", ErrNewer, err)
	case pebble.IsCorruptionError(err):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}
