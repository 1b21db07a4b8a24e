package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/authhook"
	"mynah/directory/changes"
	"mynah/internal/pgdial"
	"mynah/schema"
)

const (
	// feedTimeout bounds one reading of the feed, and connecting for it.
	feedTimeout = 3 * time.Second
	// Pauses between attempts to connect.
	pauseMin = 100 * time.Millisecond
	pauseMax = time.Second
	// maxPreload is how many are loaded ahead after a gap in the feed: those used last.
	maxPreload = 20_000
	// readOnlyPause is how long the follower stays on a connection to a server that takes
	// no writes. It has what is known, and so is better than none; but the address may
	// lead to the server that has taken its place by now.
	readOnlyPause = 5 * time.Second
	// seenEvery is how often it is noted who connected.
	seenEvery = 10 * time.Second
)

// follow keeps the cache right until ctx ends. first is closed when the feed has
// been read for the first time.
func (d *Directory) follow(ctx context.Context, reader *changes.Reader, first chan<- struct{}) {
	save := time.NewTicker(d.cfg.SaveEvery)
	defer save.Stop()
	note := time.NewTicker(seenEvery)
	defer note.Stop()
	defer d.save(reader)
	begun := func() {
		if !d.synced.Swap(true) {
			close(first)
		}
	}
	pause := pauseMin
	for ctx.Err() == nil {
		err := d.followOnce(ctx, reader, save.C, note.C, func() {
			if d.away.Swap(false) {
				d.log.InfoContext(ctx, "PostgreSQL is back; the changes made meanwhile have been read")
				d.pendingAccounts.signal() // before anybody else registers them
			}
			pause = pauseMin
			begun()
		})
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, pgdial.ErrReadOnly) {
			continue // it has been a while
		}
		if !d.away.Swap(true) {
			d.log.WarnContext(ctx, "PostgreSQL is away: known rights go on, unknown ones are refused", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-save.C: // what is known may have changed just before
			d.save(reader)
		case <-time.After(pause):
		}
		pause = min(2*pause, pauseMax)
	}
}

// followOnce follows the feed on one connection until it fails. onRead is called after
// each reading.
func (d *Directory) followOnce(ctx context.Context, reader *changes.Reader, save, note <-chan time.Time, onRead func()) error {
	connecting, cancel := context.WithTimeout(ctx, feedTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(connecting, d.pool.Config().ConnConfig)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing) // nothing is pending on it
	}()
	// Before the first reading: what is committed after it is notified.
	if _, err := conn.Exec(connecting, "LISTEN "+changes.Channel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := changes.RegisterFollower(connecting, conn); err != nil {
		return err
	}
	if err := d.checkDatabase(connecting, conn, reader); err != nil {
		return err
	}
	var asked []string // who waits for what was committed before the next reading
	began := time.Now()
	for {
		if err := d.readFeed(ctx, reader, conn); err != nil {
			return err
		}
		onRead()
		if err := d.answerWaiting(ctx, conn, asked); err != nil {
			return err
		}
		asked = asked[:0]
		select {
		case <-save:
			d.save(reader)
		case <-note:
			d.noteSeen(ctx)
		default:
		}
		waiting, cancel := context.WithTimeout(ctx, d.cfg.PollEvery)
		n, err := conn.WaitForNotification(waiting)
		if err == nil {
			if nonce, ok := changes.ParseQuestion(n.Channel, n.Payload); ok {
				asked = append(asked, nonce)
			}
		}
		idle := waiting.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && !idle {
			return fmt.Errorf("wait for changes: %w", err)
		}
		if idle && time.Since(began) > readOnlyPause {
			asking, cancel := context.WithTimeout(ctx, feedTimeout)
			err := pgdial.CheckWritable(asking, conn)
			cancel()
			if err != nil {
				return fmt.Errorf("ask whether the server takes writes: %w", err)
			}
		}
	}
}

// answerWaiting answers who waits for changes (changes.Barrier): those that they know of are
// applied, since watchers have been called.
func (d *Directory) answerWaiting(ctx context.Context, conn *pgx.Conn, asked []string) error {
	if len(asked) == 0 {
		return nil
	}
	answering, cancel := context.WithTimeout(ctx, feedTimeout)
	defer cancel()
	return changes.Answer(answering, conn, asked)
}

// checkDatabase forgets everything if this is another database than the one that the
// cache is of.
func (d *Directory) checkDatabase(ctx context.Context, conn *pgx.Conn, reader *changes.Reader) error {
	var id string
	if err := conn.QueryRow(ctx, schema.DirectoryIdentity).Scan(&id); err != nil {
		return fmt.Errorf("identify the database: %w", err)
	}
	if d.database != "" && d.database != id {
		d.log.WarnContext(ctx, "this is another database than before: what was known is forgotten")
		d.subjects.clear()
		d.groups.clear()
		*reader = changes.Reader{} // so that the next reading says that all may have changed
	}
	d.database = id
	return nil
}

// readFeed reads the feed once and passes on what is new.
func (d *Directory) readFeed(ctx context.Context, reader *changes.Reader, conn *pgx.Conn) error {
	reading, cancel := context.WithTimeout(ctx, feedTimeout)
	defer cancel()
	list, all, err := reader.Read(reading, conn)
	if err != nil {
		return err
	}
	if all {
		d.reloadAll(ctx)
		return nil
	}
	if len(list) > 0 {
		d.applyChanges(ctx, list)
	}
	return nil
}

// reloadAll has everything loaded again. Those used last are loaded at once, because
// the broker is about to ask about everybody connected.
func (d *Directory) reloadAll(ctx context.Context) {
	d.subjects.markStale()
	d.groups.markStale()
	d.away.Store(false) // or nothing would be asked for
	d.refreshKeys(ctx)
	d.subjects.preload(ctx, d.subjects.recent(maxPreload))
	d.notifyWatchers(authhook.Change{Kind: authhook.ChangeAll})
}

// applyChanges updates the cache and then calls the watchers. Whom the cache knew is
// loaded at once, all together: the broker asks about those who are connected, one
// after the other.
func (d *Directory) applyChanges(ctx context.Context, list []authhook.Change) {
	var people, groups []string
	everybody := false
	for _, c := range list {
		switch {
		case c.Kind == authhook.ChangeAll, c.Kind == authhook.ChangeRights && c.Subject == "" && c.Group == "":
			everybody = true
		case c.Subject != "":
			people = append(people, c.Subject)
		default:
			groups = append(groups, c.Group)
		}
	}
	if everybody {
		d.subjects.markStale()
		d.groups.markStale()
		d.refreshKeys(ctx)
	}
	slices.Sort(people)
	people = slices.Compact(people)
	known := d.subjects.knows(people)
	d.subjects.forget(people...)
	d.groups.forget(groups...)
	d.away.Store(false)
	d.subjects.preload(ctx, known)
	for _, c := range list {
		d.notifyWatchers(c)
	}
}

// noteSeen notes in the database who has connected.
func (d *Directory) noteSeen(ctx context.Context) {
	d.mu.Lock()
	ids := make([]string, 0, len(d.seen))
	for id := range d.seen {
		ids = append(ids, id)
	}
	clear(d.seen)
	d.mu.Unlock()
	for chunk := range slices.Chunk(ids, 1000) {
		writing, cancel := context.WithTimeout(ctx, feedTimeout)
		_, err := d.pool.Exec(writing, schema.DirectorySeen, chunk)
		cancel()
		if err != nil {
			d.log.WarnContext(ctx, "cannot note who was seen", "people", len(chunk), "error", err)
		}
	}
}
