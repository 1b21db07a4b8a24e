package broker_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"mynah/authhook"
	"mynah/broker"
	"mynah/broker/msglog"
	"mynah/internal/mqttest"
	"mynah/internal/waitfor"
)

// A disk whose fsync hangs while a message is being stored: Stop returns when its context
// ends and says what it gave up on, the message is not acknowledged, and when the disk works
// again the rest is done.
func TestStopWhileFsyncHangs(t *testing.T) {
	t.Parallel()
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	var hangs atomic.Bool
	syncing, disk := make(chan struct{}, 1), make(chan struct{})
	fs := errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
			if hangs.Load() {
				select {
				case syncing <- struct{}{}:
				default:
				}
				<-disk
			}
		default:
		}
		return nil
	}))
	cfg := broker.Config{
		DataDir: t.TempDir(), MQTTAddr: "127.0.0.1:0", Verifier: verifier,
		Logger: slog.New(slog.DiscardHandler), Log: msglog.Options{FS: fs},
	}
	b, err := broker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	alice := mqttest.Dial(t, b.MQTTAddr().String(), user(t, "alice", "phone"))
	alice.PublishAcked("user/bob", 1, "before")
	hangs.Store(true)
	alice.Publish("user/bob", 1, "while it hangs")
	select {
	case <-syncing:
	case <-time.After(waitfor.Timeout):
		t.Fatal("nothing is synced")
	}

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- b.Stop(ctx) }()
	select {
	case err = <-done:
	case <-time.After(waitfor.Timeout):
		close(disk)
		t.Fatal("Stop waits for the disk")
	}
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "to store and acknowledge what has arrived") {
		t.Errorf("Stop: %v, want that it gave up on storing what has arrived", err)
	}
	for {
		pk, err := alice.Read(waitfor.Timeout)
		if err != nil {
			break // the connection has ended
		}
		t.Errorf("%v came, and nothing could be stored", pk.FixedHeader)
	}
	hangs.Store(false)
	close(disk)
	waitfor.MustSucceed(t, "the log is closed and can be opened again", func() error {
		again, err := broker.New(cfg)
		if err != nil {
			return err
		}
		return again.Stop(t.Context())
	})
}
