package schema

// MessageColumns are the columns of table messages in the order in which the
// archiver writes them.
func MessageColumns() []string {
	return []string{"seq", "topic", "conversation", "sender", "sent_at", "type", "mid", "message"}
}

// Queries of the archive. $n and what each column means are said with each.
const (
	// SelectLastSeq gives the archive's position: the greatest seq that has been stored,
	// 0 if none has.
	SelectLastSeq = `SELECT coalesce(max(seq), 0) FROM archive_position`

	// AdvancePosition, with a seq for %d, makes that the archive's position unless it is
	// above that already. It goes into the transaction that stores the message.
	AdvancePosition = `
INSERT INTO archive_position AS p (seq) VALUES (%d)
ON CONFLICT (one) DO UPDATE SET seq = excluded.seq WHERE p.seq < excluded.seq`

	// InsertDeadLetter keeps a message that could not be stored: seq (or
	// NULL), topic, payload, reason, sqlstate (or NULL). If it is there
	// already it counts one more attempt.
	InsertDeadLetter = `
INSERT INTO dead_letters (seq, topic, payload, reason, sqlstate)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (topic, sha256(payload)) DO UPDATE
SET attempts = dead_letters.attempts + 1, last_attempt_at = now(),
    reason = excluded.reason, sqlstate = excluded.sqlstate`

	// EndStuckArchivers ends sessions that are older than this one, with its role and
	// application name, that have had a write lock on messages for longer than $1 (an
	// interval as text) and wait for their client. It says which.
	EndStuckArchivers = `
WITH stuck AS MATERIALIZED (
    SELECT a.pid, a.backend_start
    FROM pg_stat_activity a
    JOIN pg_stat_activity own ON own.pid = pg_backend_pid()
    WHERE a.usename = session_user AND a.datname = current_database()
        AND a.application_name = current_setting('application_name')
        AND a.backend_start < own.backend_start
        AND a.xact_start < clock_timestamp() - $1::text::interval
        AND a.wait_event_type = 'Client'
        AND EXISTS (
            SELECT FROM pg_locks l
            WHERE l.pid = a.pid AND l.locktype = 'relation' AND l.granted AND l.mode = 'RowExclusiveLock'
                AND l.database = a.datid AND l.relation = to_regclass('messages')))
SELECT format('process %s of PostgreSQL, connected since %s', pid, backend_start)
FROM stuck WHERE pg_terminate_backend(pid)`

	// SelectDeadLetters reads dead letters in the order in which they came:
	// those after id $1, at most $2, with the sqlstate $3, '' for all. It gives
	// id, topic, payload. The rows stay locked until the transaction ends; those that somebody else has
	// locked are left out.
	SelectDeadLetters = `
SELECT id, topic, payload FROM dead_letters
WHERE id > $1 AND ($3 = '' OR sqlstate = $3) ORDER BY id LIMIT $2
FOR UPDATE SKIP LOCKED`

	// DeleteDeadLetter forgets dead letter $1.
	DeleteDeadLetter = `DELETE FROM dead_letters WHERE id = $1`

	// FailDeadLetter counts one more attempt on dead letter $1 with reason $2
	// and sqlstate $3 (or NULL).
	FailDeadLetter = `
UPDATE dead_letters SET attempts = attempts + 1, last_attempt_at = now(), reason = $2, sqlstate = $3
WHERE id = $1`

	// SelectHistory reads a conversation backwards: conversation $1, messages
	// with a seq below $2 (the smallest seq of the page before, or 2^53 to
	// begin), at most $3. It gives seq and message.
	//
	// Partitions are read newest first, until there are enough. A comparison of rows,
	// (conversation, seq) < ($1, $2), would open all of them. conversation = $1 alone
	// would have the planner walk the primary key backwards where it takes the
	// conversation for a large part of a partition, and for one that has fallen silent
	// since, that reads the whole partition. With the range, whose ends it does not
	// know when it plans, it takes it for a small part, whatever the statistics say.
	SelectHistory = `
SELECT seq, message FROM messages
WHERE conversation = (SELECT $1::text) AND conversation BETWEEN (SELECT $1::text) AND (SELECT $1::text) AND seq < $2
ORDER BY seq DESC LIMIT $3`
)

// Queries for the partitions of table messages. The name of one, as SelectPartitions gives
// it, goes in for %s; it is quoted already.
const (
	// LockPartitions has those that change the partitions wait for each other, until
	// the transaction ends ("mynah" in ASCII and 1).
	LockPartitions = `SELECT pg_advisory_xact_lock(x'6d796e616801'::bigint)`

	// SelectPartitions gives name, first seq, and the seq after the last one, ascending.
	SelectPartitions = `SELECT name::text, from_seq, to_seq FROM archive_partitions ORDER BY from_seq`

	// AddPartition makes a partition for $1 up to, and without, $2. It gives its name.
	AddPartition = `SELECT archive_add_partition($1, $2)::text`

	// IsMonthOver tells whether the newest message of a partition is of a later month
	// than its oldest.
	IsMonthOver = `
SELECT coalesce(date_trunc('month', (SELECT sent_at FROM %[1]s ORDER BY seq DESC LIMIT 1), 'UTC')
    > date_trunc('month', (SELECT sent_at FROM %[1]s ORDER BY seq LIMIT 1), 'UTC'), false)`

	// LockPartition has nobody else read or write a partition, and LockMessages table
	// messages, until the transaction ends.
	LockPartition = `LOCK TABLE %s IN ACCESS EXCLUSIVE MODE`
	LockMessages  = `LOCK TABLE messages IN ACCESS EXCLUSIVE MODE`

	// SelectNewest gives the greatest seq of a partition.
	SelectNewest = `SELECT coalesce(max(seq), 0) FROM %s`

	// BoundPartition has a partition that begins at %[2]d refuse everything from
	// %[3]d on. What is there already is not looked at.
	BoundPartition = `ALTER TABLE %[1]s ADD CONSTRAINT messages_until_%[3]d CHECK (seq >= %[2]d AND seq < %[3]d) NOT VALID`

	// SelectBounds gives the partitions that have such a bound, the bound, and whether
	// all of their rows are known to be below.
	SelectBounds = `
SELECT p.name::text, substring(c.conname FROM '\d+$')::bigint, c.convalidated
FROM archive_partitions p JOIN pg_constraint c ON c.conrelid = p.name AND c.conname LIKE 'messages\_until\_%'
ORDER BY p.from_seq`

	// ValidateBound looks at the rows of a partition with bound %[2]d.
	ValidateBound = `ALTER TABLE %[1]s VALIDATE CONSTRAINT messages_until_%[2]d`

	// HasBound tells whether partition $1 has such a bound.
	HasBound = `SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = $1::text::regclass AND conname LIKE 'messages\_until\_%')`

	// EndPartition has partition $1 end at its bound $2, and makes one of the rest. It
	// tells whether it did: not if somebody else has.
	EndPartition = `SELECT archive_end_partition($1::text::regclass, $2)`

	// IsOld tells whether no message of a partition is of time $1 or later.
	IsOld = `SELECT NOT EXISTS (SELECT FROM %s WHERE sent_at >= $1)`

	// DropPartition drops a partition with its messages.
	DropPartition = `DROP TABLE %s`
)
