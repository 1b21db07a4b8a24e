package archiver

import (
	"context"
	"fmt"
	"slices"
	"time"

	"mynah/internal/pgdial"
	"mynah/schema"

	"github.com/jackc/pgx/v5"
)

// Table messages is partitioned by seq. seq counts messages and is no time, so a
// partition has at most partitionSize of them, and where that takes longer than a month
// it is ended with the month. There is no default partition: a row that has no place is
// refused, its partition made, and the batch tried again. So that this is rare,
// partitionsAhead are made before they are needed.
const (
	partitionSize   = 1 << 24
	partitionsAhead = 2
	// endMargin is how far above the newest message a partition is ended: what comes
	// before that is done still goes into it.
	endMargin = 4096
	// endSeq is above every seq.
	endSeq = 1 << 53

	// maintainEvery is how often the partitions are looked after, and maintainAgain
	// after how long if that failed.
	maintainEvery = time.Hour
	maintainAgain = time.Minute
	// shortLock is how long the maintenance waits for a lock that others queue behind.
	shortLock = "1s"
	// maintenance is what PostgreSQL shows of the session that does it.
	maintenance = "mynah archive maintenance"
)

// partition has the messages of From up to, and without, To.
type partition struct {
	Name     string
	From, To int64
}

// Maintained says what Maintain has done, by names of partitions.
type Maintained struct {
	Made    []string // for messages to come
	Ended   []string // since a month was over
	Dropped []string // since their messages were too old
}

// Maintain looks after the partitions of table messages: it makes those that will be
// needed, ends one whose newest message is of another month than its oldest, and drops
// those that have only messages older than keep, which 0 disables. It may run beside
// archivers and beside itself, and holds them up for a moment at most; a lock that it
// does not get at once is an error, and what is missing is for the next time.
func Maintain(ctx context.Context, db Beginner, keep time.Duration, now time.Time) (Maintained, error) {
	var done Maintained
	var position int64
	err := inTx(ctx, db, func(tx pgx.Tx) error { return tx.QueryRow(ctx, schema.SelectLastSeq).Scan(&position) })
	if err != nil {
		return done, fmt.Errorf("read the archive's position: %w", err)
	}
	if position > 0 {
		made, _, err := makePartitions(ctx, db, []int64{position}, partitionsAhead)
		done.Made = names(made)
		if err != nil {
			return done, err
		}
		if err := beginEnd(ctx, db, position); err != nil {
			return done, fmt.Errorf("end the partition of a month that is over: %w", err)
		}
	}
	if done.Ended, err = finishEnds(ctx, db); err != nil || keep <= 0 {
		return done, err
	}
	done.Dropped, err = dropOld(ctx, db, position, now.Add(-keep))
	return done, err
}

// inTx runs f in a transaction.
func inTx(ctx context.Context, db Beginner, f func(pgx.Tx) error) error {
	tx, err := db.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // does nothing after a commit
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// listPartitions returns the partitions, ascending, after waiting for whoever changes
// them. Nobody else changes them until the transaction ends.
func listPartitions(ctx context.Context, tx pgx.Tx) ([]partition, error) {
	if _, err := tx.Exec(ctx, schema.LockPartitions); err != nil {
		return nil, fmt.Errorf("wait for whoever changes the partitions: %w", err)
	}
	rows, err := tx.Query(ctx, schema.SelectPartitions)
	if err != nil {
		return nil, fmt.Errorf("list the partitions: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[partition])
	if err != nil {
		return nil, fmt.Errorf("list the partitions: %w", err)
	}
	return all, nil
}

// makePartitions sees that there is a partition for each of the seqs, and as many as
// ahead after that of the last. It returns those that it made, and where that of the last
// ends.
func makePartitions(ctx context.Context, db Beginner, seqs []int64, ahead int) (made []partition, until int64, err error) {
	err = inTx(ctx, db, func(tx pgx.Tx) error {
		have, err := listPartitions(ctx, tx)
		if err != nil {
			return err
		}
		made, until = missingPartitions(have, seqs, ahead)
		for i, p := range made {
			if err := tx.QueryRow(ctx, schema.AddPartition, p.From, p.To).Scan(&made[i].Name); err != nil {
				return fmt.Errorf("make the partition of messages %d to %d: %w", p.From, p.To-1, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return made, until, nil
}

// missingPartitions returns what makePartitions has to make.
func missingPartitions(have []partition, seqs []int64, ahead int) (missing []partition, until int64) {
	have = slices.Clone(have)
	place := func(seq int64) partition {
		i, _ := slices.BinarySearchFunc(have, seq, func(p partition, seq int64) int {
			if p.To <= seq {
				return -1
			}
			return 1
		}) // the first that ends above seq
		if i < len(have) && have[i].From <= seq {
			return have[i]
		}
		p := partition{From: seq / partitionSize * partitionSize, To: (seq/partitionSize + 1) * partitionSize}
		if i > 0 {
			p.From = max(p.From, have[i-1].To)
		}
		if i < len(have) {
			p.To = min(p.To, have[i].From)
		}
		have = slices.Insert(have, i, p)
		missing = append(missing, p)
		return p
	}
	var p partition
	for _, seq := range seqs {
		p = place(seq)
	}
	until = p.To
	for i := 0; i < ahead && len(seqs) > 0 && p.To < endSeq; i++ {
		p = place(p.To)
	}
	return missing, until
}

func names(partitions []partition) []string {
	var all []string
	for _, p := range partitions {
		all = append(all, p.Name)
	}
	return all
}

// makeRoom finds a place for messages that PostgreSQL has refused for want of one.
func makeRoom(ctx context.Context, db Beginner, seqs []int64) error {
	if _, err := finishEnds(ctx, db); err != nil {
		return err
	}
	_, _, err := makePartitions(ctx, db, seqs, 0)
	return err
}

// beginEnd sets a bound for the partition that messages go into, if a month has begun
// since its first one. From then on PostgreSQL refuses what is above, for which
// finishEnds makes room.
func beginEnd(ctx context.Context, db Beginner, position int64) error {
	return inTx(ctx, db, func(tx pgx.Tx) error {
		have, err := listPartitions(ctx, tx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(have, func(p partition) bool { return p.From <= position && position < p.To })
		if i < 0 {
			return nil
		}
		p := have[i]
		if position+endMargin >= p.To { // it ends soon, or has been ended
			return nil
		}
		var over bool
		if err := tx.QueryRow(ctx, fmt.Sprintf(schema.IsMonthOver, p.Name)).Scan(&over); err != nil || !over {
			return err
		}
		// Nobody stores anything between the look at the newest message and the bound.
		if _, err := tx.Exec(ctx, fmt.Sprintf(schema.LockPartition, p.Name)); err != nil {
			return err
		}
		var bounded bool // by somebody whose turn it is to end it
		if err := tx.QueryRow(ctx, schema.HasBound, p.Name).Scan(&bounded); err != nil || bounded {
			return err
		}
		var newest int64
		if err := tx.QueryRow(ctx, fmt.Sprintf(schema.SelectNewest, p.Name)).Scan(&newest); err != nil {
			return err
		}
		bound := newest + endMargin
		if bound >= p.To {
			return nil
		}
		_, err = tx.Exec(ctx, fmt.Sprintf(schema.BoundPartition, p.Name, p.From, bound))
		return err
	})
}

// finishEnds ends the partitions that have a bound: its own, or what somebody has begun
// and left.
func finishEnds(ctx context.Context, db Beginner) (ended []string, err error) {
	type end struct {
		Name      string
		Bound     int64
		Validated bool
	}
	var all []end
	list := func(tx pgx.Tx) error {
		if _, err := listPartitions(ctx, tx); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, schema.SelectBounds)
		if err == nil {
			all, err = pgx.CollectRows(rows, pgx.RowToStructByPos[end])
		}
		return err
	}
	// In a transaction of its own, since it reads the partition: others write meanwhile.
	if err := inTx(ctx, db, func(tx pgx.Tx) error {
		if err := list(tx); err != nil {
			return err
		}
		for _, e := range all {
			if !e.Validated {
				if _, err := tx.Exec(ctx, fmt.Sprintf(schema.ValidateBound, e.Name, e.Bound)); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("hold a partition against its bound: %w", err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	err = inTx(ctx, db, func(tx pgx.Tx) error {
		if err := list(tx); err != nil {
			return err
		}
		for _, e := range all {
			var did bool
			if err := tx.QueryRow(ctx, schema.EndPartition, e.Name, e.Bound).Scan(&did); err != nil {
				return err
			}
			if did {
				ended = append(ended, e.Name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("end a partition: %w", err)
	}
	return ended, nil
}

// dropOld drops the partitions below the archive's position that have no message since
// then.
func dropOld(ctx context.Context, db Beginner, position int64, then time.Time) (dropped []string, err error) {
	for {
		var name string
		err := inTx(ctx, db, func(tx pgx.Tx) error {
			have, err := listPartitions(ctx, tx)
			if err != nil {
				return err
			}
			for _, p := range have {
				if p.To > position {
					break
				}
				var old bool
				if err := tx.QueryRow(ctx, fmt.Sprintf(schema.IsOld, p.Name), then).Scan(&old); err != nil {
					return err
				}
				if !old {
					continue
				}
				// A dead letter may have been stored meanwhile.
				if _, err := tx.Exec(ctx, schema.LockMessages); err != nil {
					return err
				}
				if err := tx.QueryRow(ctx, fmt.Sprintf(schema.IsOld, p.Name), then).Scan(&old); err != nil || !old {
					return err
				}
				name = p.Name
				_, err := tx.Exec(ctx, fmt.Sprintf(schema.DropPartition, p.Name))
				return err
			}
			return nil
		})
		if err != nil {
			return dropped, fmt.Errorf("drop what is older than the archive is to be: %w", err)
		}
		if name == "" {
			return dropped, nil
		}
		dropped = append(dropped, name)
	}
}

// maintain does the maintenance from time to time until ctx ends.
func (r *run) maintain(ctx context.Context) {
	retried := false
	for {
		pause := maintainEvery
		if err := r.maintainOnce(ctx, &retried); err != nil && ctx.Err() == nil {
			pause = maintainAgain
			attrs := []any{"error", err}
			if advice := hint(err); advice != "" {
				attrs = append(attrs, "advice", advice)
			}
			r.log.WarnContext(ctx, "the partitions of table messages could not be looked after; trying again", attrs...)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (r *run) maintainOnce(ctx context.Context, retried *bool) error {
	config, err := pgdial.Parse(r.cfg.DatabaseURL, maintenance)
	if err != nil {
		return fmt.Errorf("read the database address: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(limited, config)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // everything was committed step by step
	if err := pgdial.SetDefaultLimits(limited, conn, map[string]string{"lock_timeout": shortLock}); err != nil {
		return fmt.Errorf("limit the session: %w", err)
	}
	done, err := Maintain(ctx, conn, r.cfg.Retention, r.cfg.Now())
	if len(done.Made)+len(done.Ended)+len(done.Dropped) > 0 {
		r.log.InfoContext(ctx, "looked after the partitions of table messages", "made", done.Made, "ended", done.Ended, "dropped", done.Dropped)
	}
	if err != nil || *retried {
		return err
	}
	// Archivers of the version before took a message without a partition for one that
	// PostgreSQL refuses.
	_, stored, _, err := retryDeadLetters(ctx, conn, checkViolation)
	if stored > 0 {
		r.log.InfoContext(ctx, "stored dead letters that had no partition", "messages", stored)
	}
	*retried = err == nil
	return err
}

// room is what the committer knows about the partitions.
type room struct {
	until int64     // from this seq on there are fewer ahead than there should be
	tried time.Time // when making some last failed
}

// lookAhead makes partitions for messages to come when those that there are run out. A
// failure is not the batch's: what is missing is made when PostgreSQL asks for it.
func (s *store) lookAhead(ctx context.Context, last int64) {
	if last < s.room.until || time.Since(s.room.tried) < maintainAgain {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	_, until, err := makePartitions(ctx, s.conn, []int64{last}, partitionsAhead)
	if err != nil {
		s.room.tried = time.Now()
		s.log.WarnContext(ctx, "cannot make partitions of table messages ahead", "error", err, "advice", hint(err))
		return
	}
	s.room.until = until
}

// seqsOf returns the seqs of the messages that are rows.
func seqsOf(items []item) []int64 {
	var seqs []int64
	for i := range items {
		if items[i].to > items[i].from {
			seqs = append(seqs, int64(items[i].seq)) //nolint:gosec // ParseEnvelope allows 2^53-1 at most
		}
	}
	return seqs
}
