package changes_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/directory/changes"
)

func newBarrier(tb testing.TB, db *pgxpool.Pool) *changes.Barrier {
	tb.Helper()
	b := changes.NewBarrier(db, slog.New(slog.DiscardHandler))
	b.Start(tb.Context())
	b.Start(tb.Context()) // harmless
	tb.Cleanup(func() {
		if err := b.Stop(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	return b
}

// follower follows the feed on a connection of its own.
func follower(tb testing.TB, db *pgxpool.Pool) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.ConnectConfig(tb.Context(), db.Config().ConnConfig)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	if err := changes.RegisterFollower(tb.Context(), conn); err != nil {
		tb.Fatal(err)
	}
	return conn
}

// asked returns the nonce that the follower is notified of.
func asked(tb testing.TB, conn *pgx.Conn) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	n, err := conn.WaitForNotification(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	nonce, ok := changes.ParseQuestion(n.Channel, n.Payload)
	if !ok {
		tb.Fatalf("notified of %+v", n)
	}
	return nonce
}

// Who waits goes on when all followers have answered, and not before; followers of
// another database do not count.
func TestBarrierWaitsForAll(t *testing.T) {
	t.Parallel()
	db := connect(t)
	b := newBarrier(t, db)
	follower(t, connect(t))
	if err := b.Wait(t.Context(), nil); err != nil {
		t.Fatalf("nobody follows: %v", err)
	}
	one, two := follower(t, db), follower(t, db)
	done := make(chan error, 1)
	go func() { done <- b.Wait(t.Context(), nil) }()
	nonce := asked(t, one)
	if got := asked(t, two); got != nonce {
		t.Errorf("asked for %q and %q", nonce, got)
	}
	if err := changes.Answer(t.Context(), one, []string{nonce}); err != nil {
		t.Fatal(err)
	}
	if err := changes.Answer(t.Context(), one, []string{nonce, "another"}); err != nil { // one does not count for two
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatalf("went on before all had answered: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := changes.Answer(t.Context(), two, []string{nonce}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil && !errors.Is(err, changes.ErrNotApplied) { // which it is after the limit
		t.Error(err)
	}
}

// A follower that does not answer holds nobody up for longer than the limit, and one that
// is gone not at all.
func TestBarrierIsBounded(t *testing.T) {
	t.Parallel()
	db := connect(t)
	b := newBarrier(t, db)
	conn := follower(t, db)
	if err := b.Wait(t.Context(), nil); !errors.Is(err, changes.ErrNotApplied) {
		t.Errorf("with a follower that does not answer: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- b.Wait(t.Context(), nil) }()
	asked(t, conn) // the first time
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil && !errors.Is(err, changes.ErrNotApplied) {
		t.Error(err)
	}
	if err := b.Wait(t.Context(), nil); err != nil {
		t.Errorf("with a follower that is gone: %v", err)
	}
	for range 2 { // the second is harmless
		if err := b.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := b.Wait(t.Context(), nil); !errors.Is(err, changes.ErrNotApplied) {
		t.Errorf("stopped: %v", err)
	}
}

// What happens after the change, for example the removal of a dissolved group's members,
// is waited for and then asked about.
func TestBarrierWaitsUntilCleared(t *testing.T) {
	t.Parallel()
	db := connect(t)
	b := newBarrier(t, db)
	conn := follower(t, db)
	answers := make(chan int, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		n := 0
		defer func() { answers <- n }()
		for {
			got, err := conn.WaitForNotification(ctx)
			if err != nil {
				return
			}
			if nonce, ok := changes.ParseQuestion(got.Channel, got.Payload); ok {
				// The one who waits may have the answer, and end ctx, before this returns.
				if changes.Answer(context.WithoutCancel(ctx), conn, []string{nonce}) != nil {
					return
				}
				n++
			}
		}
	}()
	looked := 0
	err := b.Wait(t.Context(), func(context.Context) (bool, error) { looked++; return looked == 3, nil })
	stop()
	if n := <-answers; err != nil || looked != 3 || n != 2 {
		t.Errorf("%v: looked %d times, %d answers; want 3 and 2", err, looked, n)
	}
}
