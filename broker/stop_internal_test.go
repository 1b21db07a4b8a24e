package broker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"mynah/authhook"
	"mynah/broker/msglog"
	"mynah/broker/state"
	"mynah/internal/waitfor"
)

// hung is a store on a disk that hangs, until the channel is closed, when it is to store
// who is online.
type hung struct {
	state.Store
	disk chan struct{}
}

func (h hung) Apply(ops []state.Op, sync bool) error {
	if len(ops) > 0 && strings.HasPrefix(ops[0].Key, "presence/") {
		<-h.disk
	}
	return h.Store.Apply(ops, sync)
}

// On a disk that hangs, Stop returns when its context ends and says what it gave up on; when
// the disk works again, the rest is done in its order. It waited for the disk for ever.
func TestStopOnAHungDisk(t *testing.T) {
	t.Parallel()
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: []byte("a secret for tests, 32 bytes or more")})
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	dir := t.TempDir()
	disk := make(chan struct{})
	cfg := Config{
		DataDir: dir, MQTTAddr: "127.0.0.1:0", Verifier: verifier,
		OpenLog: func(dir string, opts msglog.Options) (msglog.Log, state.Store, error) {
			l, s, err := openLocal(dir, opts)
			return l, hung{s, disk}, err
		},
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.presence.Connected("ann") // is to be stored
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- b.Stop(ctx) }()
	select {
	case err = <-done:
	case <-time.After(waitfor.Timeout):
		t.Fatal("Stop waits for the disk")
	}
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "who was online") {
		t.Errorf("Stop: %v, want that it gave up on storing who was online", err)
	}
	close(disk)
	waitfor.MustSucceed(t, "the log is closed and can be opened again", func() error {
		again, err := New(cfg)
		if err != nil {
			return err
		}
		return again.Stop(t.Context())
	})
}
