package archiver_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mynah/archiver"
	"mynah/internal/pgtest"
	"mynah/internal/waitfor"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
)

// partitionRows is how many messages a partition has.
const partitionRows = 1 << 24

// at is a message of a time.
func at(seq uint64, sent time.Time) delivery {
	return delivery{seq, "group/a", fmt.Appendf(nil, `{"seq":%d,"prev":0,"from":"alice","to":"group/a","ts":%d,"type":"text","body":"x"}`, seq, sent.UnixMilli())}
}

// partitions returns the ranges of the partitions, with the number of messages in each.
func partitions(tb testing.TB, pool *pgxpool.Pool) []string {
	tb.Helper()
	var all []string
	for _, name := range mustQuery[string](tb, pool, `SELECT name::text FROM archive_partitions ORDER BY from_seq`) {
		all = append(all, mustQuery[string](tb, pool, `SELECT from_seq || '-' || to_seq || ' ' || (SELECT count(*) FROM `+name+`) FROM archive_partitions WHERE name = $1::text::regclass`, name)...)
	}
	return all
}

func span(from, to uint64, n int) string { return fmt.Sprintf("%d-%d %d", from, to, n) }

// noDeadLetters fails the test if there are any.
func noDeadLetters(tb testing.TB, pool *pgxpool.Pool) {
	tb.Helper()
	if all := mustQuery[string](tb, pool, `SELECT reason FROM dead_letters`); len(all) > 0 {
		tb.Errorf("dead letters: %q", all)
	}
}

// Guards against messages that become dead letters, or hold up all others, because there
// is no partition for them: those of a log whose numbers begin anywhere, of two logs in
// one batch, and those behind the last partition. And against partitions that are only
// made when a message waits for one.
func TestPartitionsAreMade(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	address := pgtest.New(t)
	pool := mustPool(t, address)
	onlyCommitted(t, broker, pool)
	a := mustStart(t, broker, address)
	const first = 1_764_000_000_000_000
	const begins = first / partitionRows * partitionRows
	all := chatter(7, 10)
	all = append(all, chatter(first, 10)...)
	broker.publish(all...)
	archived(t, broker, pool, all)
	want := []string{
		span(0, partitionRows, 10), span(partitionRows, 2*partitionRows, 0), span(2*partitionRows, 3*partitionRows, 0),
		span(begins, begins+partitionRows, 10), span(begins+partitionRows, begins+2*partitionRows, 0), span(begins+2*partitionRows, begins+3*partitionRows, 0),
	}
	waitfor.MustSucceed(t, "partitions are made", func() error {
		if diff := cmp.Diff(want, partitions(t, pool)); diff != "" {
			return fmt.Errorf("(-want +got):\n%s", diff)
		}
		return nil
	})

	// As soon as one is begun, there are two behind it.
	next := chatter(begins+partitionRows-5, 10)
	broker.publish(next...)
	all = append(all, next...)
	archived(t, broker, pool, all)
	want = append(want, span(begins+3*partitionRows, begins+4*partitionRows, 0))
	want[3], want[4] = span(begins, begins+partitionRows, 15), span(begins+partitionRows, begins+2*partitionRows, 5)
	waitfor.MustSucceed(t, "one more is made", func() error {
		if diff := cmp.Diff(want, partitions(t, pool)); diff != "" {
			return fmt.Errorf("(-want +got):\n%s", diff)
		}
		return nil
	})
	if last := a.Lag().Committed; last != begins+partitionRows+4 {
		t.Errorf("the position is %d", last)
	}
	// One that somebody has taken out and kept is not in the way.
	mustExec(t, pool, `ALTER TABLE messages DETACH PARTITION messages_from_0`)
	again := chatter(3, 1)
	broker.publish(again...)
	archived(t, broker, pool, append(again, all[10:]...))
	if n := mustQuery[int](t, pool, `SELECT count(*) FROM messages_from_0`)[0]; n != 10 {
		t.Errorf("the partition that was taken out has %d messages, want 10", n)
	}
	noDeadLetters(t, pool)
	if last := mustQuery[int64](t, pool, `SELECT seq FROM archive_position`)[0]; last != begins+partitionRows+4 {
		t.Errorf("the position went back to %d", last)
	}
}

// Guards against a partition of a quiet server that holds years, so that retention never
// drops it; and against messages that are lost, refused or doubled while one is ended,
// by two archivers with everything repeated.
func TestPartitionEndsWithItsMonth(t *testing.T) {
	t.Parallel()
	address := pgtest.New(t)
	pool := mustPool(t, address)
	ctx := context.Background()
	november := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	store := func(first uint64, n int, sent time.Time) {
		mustExec(t, pool, `INSERT INTO messages (seq, topic, conversation, sender, sent_at, type, message)
			SELECT n, 'group/a', 'group/a', 'alice', $3, 'text', '{}' FROM generate_series($1::bigint, $1::bigint + $2 - 1) n`, int64(first), int64(n), sent)
		mustExec(t, pool, `UPDATE archive_position SET seq = $1`, int64(first)+int64(n)-1)
	}
	maintain := func() archiver.Maintained {
		t.Helper()
		done, err := archiver.Maintain(ctx, pool, 0, november.AddDate(1, 0, 0))
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	store(1, 100, november)
	if done := maintain(); len(done.Ended) > 0 {
		t.Errorf("ended in the middle of a month: %+v", done)
	}
	december := time.Date(2026, 12, 1, 0, 0, 1, 0, time.UTC)
	store(101, 50, december)
	if done := maintain(); !slices.Equal(done.Ended, []string{"messages_from_0"}) {
		t.Errorf("at the turn of the month: %+v", done)
	}
	const bound = 150 + 4096
	want := []string{span(0, bound, 150), span(bound, partitionRows, 0), span(partitionRows, 2*partitionRows, 0), span(2*partitionRows, 3*partitionRows, 0)}
	if diff := cmp.Diff(want, partitions(t, pool)); diff != "" {
		t.Errorf("partitions (-want +got):\n%s", diff)
	}
	for range 2 {
		if done := maintain(); len(done.Ended) > 0 { // it is still the one that messages go into
			t.Errorf("ended again: %+v", done)
		}
	}
	// The next month, with archivers at work: they meet the bound at any moment.
	store(bound, 10, december)
	broker := newFakeBroker(t)
	onlyCommitted(t, broker, pool)
	mustStart(t, broker, address)
	mustStart(t, broker, address, func(c *archiver.Config) { c.ClientID = "other"; c.BatchSize = 3000 })
	const n = 20_000
	january := time.Date(2027, 1, 1, 0, 0, 1, 0, time.UTC)
	all := make([]delivery, n)
	for i := range all {
		all[i] = at(uint64(bound+10+i), january)
	}
	var working sync.WaitGroup
	working.Go(func() {
		for chunk := range slices.Chunk(all, 500) {
			broker.publish(chunk...)
		}
	})
	waitfor.MustSucceed(t, "the partition is ended", func() error { // by us or by an archiver
		_, err := archiver.Maintain(ctx, pool, 0, january)
		if mustQuery[bool](t, pool, `SELECT to_seq = $2 FROM archive_partitions WHERE from_seq = $1`, int64(bound), int64(partitionRows))[0] {
			return errors.Join(errors.New("not yet"), err)
		}
		return nil
	})
	working.Wait()
	waitfor.MustSucceed(t, "all are stored", func() error {
		if got := mustQuery[string](t, pool, `SELECT count(*) || ' ' || count(DISTINCT seq) FROM messages WHERE seq >= $1`, int64(bound+10))[0]; got != fmt.Sprintf("%d %d", n, n) {
			return fmt.Errorf("%s are", got)
		}
		return nil
	})
	noDeadLetters(t, pool)
	if all := partitions(t, pool); len(all) < 5 || strings.HasPrefix(all[1], fmt.Sprintf("%d-%d ", bound, partitionRows)) {
		t.Errorf("partitions after the second month: %q", all)
	}
}

// Guards against a partition that is never ended since whoever had begun to was killed: a
// message above its bound must wait for no maintenance.
func TestPartitionLeftWithABound(t *testing.T) {
	t.Parallel()
	for _, validated := range []bool{false, true} {
		t.Run(fmt.Sprintf("validated: %v", validated), func(t *testing.T) {
			t.Parallel()
			broker := newFakeBroker(t)
			address := pgtest.New(t)
			pool := mustPool(t, address)
			mustStart(t, broker, address)
			all := chatter(1, 200)
			broker.publish(all[:100]...)
			archived(t, broker, pool, all[:100])
			mustExec(t, pool, `ALTER TABLE messages_from_0 ADD CONSTRAINT messages_until_150 CHECK (seq >= 0 AND seq < 150) NOT VALID`)
			if validated {
				mustExec(t, pool, `ALTER TABLE messages_from_0 VALIDATE CONSTRAINT messages_until_150`)
			}
			broker.publish(all[100:]...)
			archived(t, broker, pool, all)
			noDeadLetters(t, pool)
			want := []string{span(0, 150, 149), span(150, partitionRows, 51), span(partitionRows, 2*partitionRows, 0), span(2*partitionRows, 3*partitionRows, 0)}
			if diff := cmp.Diff(want, partitions(t, pool)); diff != "" {
				t.Errorf("partitions (-want +got):\n%s", diff)
			}
		})
	}
}

// Guards against retention that drops what is young, what is not archived yet, or
// nothing; and against a late repetition or dead letter that has no place any more.
func TestRetention(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	address := pgtest.New(t)
	pool := mustPool(t, address)
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	days := func(n int) time.Time { return now.AddDate(0, 0, -n) }
	all := []delivery{
		at(5, days(100)), at(6, days(95)), // a partition that is old
		at(partitionRows+1, days(94)), at(partitionRows+2, days(3)), // one with a young message
		at(3*partitionRows+1, days(92)), at(3*partitionRows+2, days(91)), // an old one
		at(4*partitionRows+1, days(91)), // old as well, and the newest
	}
	a := mustStart(t, broker, address, func(c *archiver.Config) { c.Now = func() time.Time { return now } })
	broker.publish(all...)
	archived(t, broker, pool, all)
	if done, err := archiver.Maintain(t.Context(), pool, 0, now); err != nil || len(done.Dropped) > 0 {
		t.Errorf("without a retention: %+v, %v", done, err)
	}
	// Somebody who reads the table has it wait, and nobody queues behind it for long.
	reader, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Exec(t.Context(), `SELECT FROM messages`); err != nil {
		t.Fatal(err)
	}
	limited := mustPool(t, address+"&lock_timeout=100ms")
	if done, err := archiver.Maintain(t.Context(), limited, 90*24*time.Hour, now); err == nil || len(done.Dropped) > 0 {
		t.Errorf("beside a reader: %+v, %v", done, err)
	}
	_ = reader.Rollback(t.Context())
	if err := a.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	// The archiver does it by itself.
	mustStart(t, broker, address, func(c *archiver.Config) {
		c.Now, c.Retention = func() time.Time { return now }, 90*24*time.Hour
	})
	kept := []delivery{all[2], all[3], all[6]}
	waitfor.MustSucceed(t, "old partitions are dropped", func() error {
		if got := mustQuery[int](t, pool, `SELECT count(*) FROM messages`)[0]; got != len(kept) {
			return fmt.Errorf("%d messages are there", got)
		}
		return nil
	})
	archived(t, broker, pool, kept)
	if n := mustQuery[int](t, pool, `SELECT count(*) FROM pg_class WHERE relname IN ('messages_from_0', 'messages_from_50331648')`)[0]; n != 0 {
		t.Errorf("%d of the dropped partitions are there", n)
	}

	late := say(6, "alice", "group/a", "late")
	broker.publish(late)
	archived(t, broker, pool, append([]delivery{late}, kept...))
	mustExec(t, pool, `INSERT INTO dead_letters (seq, topic, payload, reason) VALUES (50331700, 'group/a', $1, 'test')`, say(50_331_700, "alice", "group/a", "late").payload)
	if _, stored, failed, err := archiver.RetryDeadLetters(t.Context(), pool); err != nil || stored != 1 || failed != 0 {
		t.Errorf("retry: %d stored, %d failed, %v", stored, failed, err)
	}
	noDeadLetters(t, pool)
}

// Guards against messages that an archiver of the version before has made dead letters,
// because it did not know of partitions, and that nobody looks at.
func TestDeadLettersWithoutPartition(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	address := pgtest.New(t)
	pool := mustPool(t, address)
	const first = 1_764_000_000_000_000
	for i := range uint64(3) {
		d := say(first+i, "alice", "group/a", "hello")
		mustExec(t, pool, `INSERT INTO dead_letters (seq, topic, payload, reason, sqlstate) VALUES ($1, $2, $3, 'no partition of relation "messages" found for row', '23514')`,
			int64(d.seq), d.topic, d.payload)
	}
	mustExec(t, pool, `INSERT INTO dead_letters (topic, payload, reason) VALUES ('group/a', 'no message', 'test')`)
	mustStart(t, broker, address)
	waitfor.MustSucceed(t, "they are stored", func() error {
		if n := mustQuery[int](t, pool, `SELECT count(*) FROM messages`)[0]; n != 3 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if got := mustQuery[int](t, pool, `SELECT attempts FROM dead_letters`); !slices.Equal(got, []int{1}) {
		t.Errorf("attempts at the other dead letter: %v, want 1", got)
	}
}

// Guards against a constraint of the user's own that is taken for a missing partition, so
// that one message holds up all others.
func TestConstraintOfTheUserIsPoison(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	address := pgtest.New(t)
	pool := mustPool(t, address)
	mustExec(t, pool, `ALTER TABLE messages ADD CONSTRAINT polite CHECK (message->>'body' <> 'damn')`)
	mustExec(t, pool, `CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no' USING ERRCODE = 'check_violation'; END $$`)
	mustExec(t, pool, `CREATE TRIGGER forbid BEFORE INSERT ON messages FOR EACH ROW WHEN (NEW.message->>'body' = 'no') EXECUTE FUNCTION forbid()`)
	mustExec(t, pool, `CREATE UNIQUE INDEX once ON messages (seq, (message->>'body'))`)
	all := chatter(1, 20)
	bad := []delivery{say(21, "alice", "group/a", "damn"), say(22, "alice", "group/a", "no")}
	mustStart(t, broker, address)
	broker.publish(append(slices.Clone(all), bad...)...)
	archived(t, broker, pool, all)
	if n := mustQuery[int](t, pool, `SELECT count(*) FROM dead_letters WHERE sqlstate = '23514'`)[0]; n != 2 {
		t.Errorf("%d dead letters, want 2", n)
	}
}
