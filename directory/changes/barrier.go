package changes

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/schema"
)

// A change of a right is applied when every broker's directory that follows the feed has
// read it and passed it on. Who has made the change and wants to know asks the followers
// through PostgreSQL, which both sides reach wherever they run.
//
//   - A follower listens on askChannel and then takes a shared advisory lock, for as
//     long as its session lasts, both before it first reads the feed (RegisterFollower). So the
//     locks show who follows, and nobody has to clear up after one that is gone.
//   - The asker notifies askChannel with a nonce, after its commit.
//   - A follower that was notified reads the feed once more, which finds all that was
//     committed before, applies it, and notifies appliedChannel with the nonce and its
//     process id (Answer).
//   - The asker waits for those that held the lock when it asked. One that comes later
//     begins with reading everything.
const (
	askChannel     = "mynah_ask"
	appliedChannel = "mynah_applied"

	followerLockClass = 0x6d796e61 // "myna"
	followerLockID    = 1
)

// ApplyLimit is how long Barrier.Wait waits at most. PROTOCOL.md promises it.
const ApplyLimit = 2 * time.Second

const (
	recheckEvery   = 200 * time.Millisecond // whether those that are waited for still follow
	reconnectPause = 500 * time.Millisecond // between attempts to connect
	askTimeout     = time.Second
)

// RegisterFollower makes the session one of a follower. It is called before the first
// reading of the feed.
func RegisterFollower(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "LISTEN "+askChannel); err != nil {
		return fmt.Errorf("listen to who waits for changes: %w", err)
	}
	if _, err := conn.Exec(ctx, schema.FollowerLock, followerLockClass, followerLockID); err != nil {
		return fmt.Errorf("tell that changes are followed: %w", err)
	}
	return nil
}

// ParseQuestion returns the nonce if the notification is one of somebody who waits.
func ParseQuestion(channel, payload string) (nonce string, ok bool) {
	return payload, channel == askChannel
}

// Answer tells who waits that everything is applied which had been committed before they
// asked: the feed was read after the notification with the nonce.
func Answer(ctx context.Context, conn *pgx.Conn, nonces []string) error {
	for _, nonce := range nonces {
		if _, err := conn.Exec(ctx, schema.TellApplied, appliedChannel, nonce); err != nil {
			return fmt.Errorf("tell that changes are applied: %w", err)
		}
	}
	return nil
}

// Barrier waits until changes are applied. Make it with NewBarrier.
type Barrier struct {
	pool *pgxpool.Pool
	log  *slog.Logger

	mu        sync.Mutex // guards what follows
	waiting   map[string]chan int32
	listening chan struct{} // closed while answers are listened to
	cancel    context.CancelFunc
	done      chan struct{}
}

// NewBarrier returns a Barrier for changes that are made through the pool. It does
// nothing yet: Start does.
func NewBarrier(pool *pgxpool.Pool, log *slog.Logger) *Barrier {
	return &Barrier{pool: pool, log: log, waiting: map[string]chan int32{}, listening: make(chan struct{})}
}

// Start listens to answers until Stop, and connects again when the connection is lost. To
// start what is started does nothing.
func (b *Barrier) Start(ctx context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cancel != nil {
		return
	}
	ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	b.done = make(chan struct{})
	go b.run(ctx, b.done)
}

// Stop ends what Start began and waits for that, at most until ctx ends. To stop what is
// stopped does nothing; after a Stop that gave up, another one waits again.
func (b *Barrier) Stop(ctx context.Context) error {
	b.mu.Lock()
	if b.cancel != nil {
		b.cancel()
		b.cancel = nil
	}
	done := b.done
	b.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop waiting for applied changes: gave up on closing the connection to PostgreSQL: %w", ctx.Err())
	}
}

func (b *Barrier) run(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	logged := false
	for ctx.Err() == nil {
		err := b.listen(ctx, func() { logged = false })
		if ctx.Err() != nil {
			return
		}
		if !logged {
			b.log.LogAttrs(ctx, slog.LevelWarn, "cannot be told when brokers have applied changes; calls that make some take up to their limit", slog.Any("error", err))
			logged = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(reconnectPause):
		}
	}
}

// listen passes answers on until the connection fails. onListen is called when it listens.
func (b *Barrier) listen(ctx context.Context, onListen func()) error {
	connecting, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(connecting, b.pool.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		_ = conn.Close(closing) // nothing is pending on it
	}()
	if _, err := conn.Exec(connecting, "LISTEN "+appliedChannel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	onListen()
	b.setListening(true)
	defer b.setListening(false)
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("wait for answers: %w", err)
		}
		nonce, pid, ok := strings.Cut(n.Payload, " ")
		number, err := strconv.ParseInt(pid, 10, 32)
		if !ok || err != nil {
			continue
		}
		b.mu.Lock()
		if c := b.waiting[nonce]; c != nil {
			select {
			case c <- int32(number):
			default: // more answers than were asked for
			}
		}
		b.mu.Unlock()
	}
}

func (b *Barrier) setListening(up bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if up {
		close(b.listening)
	} else {
		b.listening = make(chan struct{})
	}
}

// ErrNotApplied is returned when it is not known whether all have applied a change.
var ErrNotApplied = errors.New("not all brokers have said in time that they have applied the change")

// maxFollowers bounds the answers that are kept for one who waits.
const maxFollowers = 64

// Wait waits until all that follow the feed have applied what was committed before it
// was called; if cleared is not nil, until cleared reports true and they have applied that
// as well. It returns ErrNotApplied after ApplyLimit. Where nobody
// follows it returns at once.
func (b *Barrier) Wait(ctx context.Context, cleared func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, ApplyLimit)
	defer cancel()
	followed, err := b.wait(ctx)
	if err != nil || !followed || cleared == nil {
		return err
	}
	tick := time.NewTicker(clearedEvery)
	defer tick.Stop()
	for {
		switch is, err := cleared(ctx); {
		case err != nil:
			return errors.Join(ErrNotApplied, err)
		case is:
			_, err := b.wait(ctx)
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ErrNotApplied
		}
	}
}

// clearedEvery is how often it is looked whether what is waited for is so.
const clearedEvery = 25 * time.Millisecond

// wait asks once, and reports whether there is anybody who follows.
func (b *Barrier) wait(ctx context.Context) (followed bool, err error) {
	b.mu.Lock()
	up := b.listening
	b.mu.Unlock()
	select {
	case <-up:
	case <-ctx.Done():
		return true, ErrNotApplied
	}
	nonce, answers := rand.Text(), make(chan int32, maxFollowers)
	b.mu.Lock()
	b.waiting[nonce] = answers
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.waiting, nonce)
	}()

	var asked []int32
	var void string
	err = b.pool.QueryRow(ctx, schema.AskFollowers, followerLockClass, followerLockID, askChannel, nonce).Scan(&asked, &void)
	if err != nil {
		return true, errors.Join(ErrNotApplied, err)
	}
	followed = len(asked) > 0
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for len(asked) > 0 {
		select {
		case pid := <-answers:
			asked = slices.DeleteFunc(asked, func(p int32) bool { return p == pid })
		case <-tick.C: // who is gone reads everything when it is back
			var now []int32
			if err := b.pool.QueryRow(ctx, schema.SelectFollowers, followerLockClass, followerLockID).Scan(&now); err != nil {
				return true, errors.Join(ErrNotApplied, err)
			}
			asked = slices.DeleteFunc(asked, func(p int32) bool { return !slices.Contains(now, p) })
		case <-ctx.Done():
			return true, ErrNotApplied
		}
	}
	return followed, nil
}
