package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// lines keeps what is logged from a level on.
type lines struct {
	slog.Handler
	mu  sync.Mutex
	all []slog.Record
}

func newLines() *lines { return &lines{Handler: slog.DiscardHandler} }

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, r)
	return nil
}

// take returns the lines since it was last called.
func (l *lines) take() (messages []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.all {
		line := r.Message
		r.Attrs(func(a slog.Attr) bool {
			line += fmt.Sprintf(" %s=%v", a.Key, a.Value)
			return true
		})
		messages = append(messages, line)
	}
	l.all = nil
	return messages
}

// brokenLog is a log of which topics cannot be read, or sessions not be stored, at times.
type brokenLog struct {
	msglog.Log
	broken atomic.Bool
	failed atomic.Int64
}

func (l *brokenLog) ReadTopic(ctx context.Context, topic string, after, upto uint64, fn func(*msglog.Record) bool) error {
	if l.broken.Load() {
		l.failed.Add(1)
		return errors.New("the disk is gone")
	}
	return l.Log.ReadTopic(ctx, topic, after, upto, fn)
}

// A log that fails is logged when it begins to and when it works again, not for each session
// that it is read or written for: ten thousand that reconnect would fill the disk as well.
func TestFailureIsLoggedOnce(t *testing.T) {
	t.Parallel()
	const sessions = 20
	l, err := msglog.Open(t.TempDir(), msglog.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	clock, logged := &clock{}, newLines()
	clock.set(1_000_000_000_000)
	broken, store := &brokenLog{Log: l}, &stubStore{Store: l.State()}
	r := &rig{tb: t, log: l, cfg: delivery.Config{Log: broken, State: store, Logger: slog.New(logged), Now: clock.now, Recent: 1}}
	r.start()
	t.Cleanup(func() { r.engine.Stop(); _ = l.Close() })
	device := func(i int) delivery.Attachment {
		return delivery.Attachment{Key: key(fmt.Sprint("s", i)), Expiry: time.Hour, Groups: []string{"g"}}
	}
	for i := range sessions {
		r.mute(device(i), session.Subscription{Filter: "group/g", QoS: byte(i % 3)}).offline(time.Hour)
	}
	missed := r.publish(2, "bob", "group/g")
	again := func() {
		t.Helper()
		before := broken.failed.Load()
		for i := range sessions {
			p := r.mute(device(i))
			waitfor.MustHold(t, "the connection is closed", func() bool { <-p.ended; return true })
			p.offline(time.Hour)
		}
		if n := broken.failed.Load() - before; n < sessions {
			t.Fatalf("the log failed %d times", n)
		}
	}
	want := func(beginnings ...string) {
		t.Helper()
		got := logged.take()
		for i, line := range got {
			if i >= len(beginnings) || !contains(line, beginnings[i]) {
				t.Errorf("logged %q, want lines with %q", got, beginnings)
				return
			}
		}
		if len(got) != len(beginnings) {
			t.Errorf("logged %q, want lines with %q", got, beginnings)
		}
	}
	broken.broken.Store(true)
	again()
	want("cannot read")
	clock.ms.Add(1000)
	again()
	want()

	// That it works for one in between is not the end.
	broken.broken.Store(false)
	r.mute(device(1)).wantSeqs(t, missed...)
	broken.broken.Store(true)
	clock.ms.Add(1000)
	again()
	want()
	broken.broken.Store(false)
	clock.ms.Add(10_000)
	failures := broken.failed.Load()
	r.mute(device(1)).wantSeqs(t, missed...)
	want(fmt.Sprintf("works again fault=reading the message log for sessions failures=%d", failures))
	r.mute(device(2)).wantSeqs(t, missed...)
	want()
	broken.broken.Store(true)
	r.mute(device(3))
	waitfor.MustHold(t, "it fails again", func() bool { return broken.failed.Load() > failures })
	r.engine.Sessions("s3")[0].Detach(r.engine.Sessions("s3")[0].Attached(), time.Hour)
	waitfor.MustHold(t, "another beginning", func() bool { return len(logged.take()) == 1 })
}

// The same for what is stored of sessions.
func TestFailureToStoreIsLoggedOnce(t *testing.T) {
	t.Parallel()
	r, store := mustStubRig(t)
	logged := newLines()
	r.cfg = delivery.Config{Log: r.log, State: store, Logger: slog.New(logged)}
	r.restart()
	t.Cleanup(r.engine.Stop)
	var peers []*peer
	for i := range 20 {
		peers = append(peers, r.online(delivery.Attachment{Key: key(fmt.Sprint("s", i)), Expiry: time.Hour},
			session.Subscription{Filter: "user/" + fmt.Sprint("s", i), QoS: 2}))
	}
	store.fail.Store(true)
	for i, p := range peers {
		r.publish(2, "bob", "user/"+fmt.Sprint("s", i))
		waitfor.MustHold(t, "the connection is closed", func() bool { <-p.ended; return true })
		p.offline(time.Hour)
	}
	for _, p := range peers {
		p.session.Detach(nil, 0) // offline as they are, they end
	}
	kinds := map[string]int{}
	for _, line := range logged.take() {
		kinds[line]++
	}
	if len(kinds) != 3 {
		t.Errorf("logged %v, want a line for packet ids, one for positions and one for sessions that ended", kinds)
	}
	for line, n := range kinds {
		if n != 1 {
			t.Errorf("logged %d times: %s", n, line)
		}
	}
}
