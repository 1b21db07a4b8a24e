package schema

// MessageColumns are the columns of table messages in the order in which the
// archiver writes them.
func MessageColumns() []string {
	return []string{"seq", "topic", "conversation", "sender", "sent_at", "type", "mid", "message"}
}

// Queries of the archive. $n and what each column means are said with each.
const (
	// SelectLastSeq gives the greatest seq, 0 for an empty archive.
	SelectLastSeq = `SELECT coalesce(max(seq), 0) FROM messages`

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
	// those after id $1, at most $2. It gives id, topic, payload. The rows
	// stay locked until the transaction ends; those that somebody else has
	// locked are left out.
	SelectDeadLetters = `
SELECT id, topic, payload FROM dead_letters
WHERE id > $1 ORDER BY id LIMIT $2
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
	// It is written as a comparison of rows on purpose. With conversation = $1
	// the planner may walk the primary key backwards instead, hoping to meet
	// enough of the conversation soon: for one that has long been silent that
	// reads the whole table.
	SelectHistory = `
SELECT seq, message FROM messages
WHERE (conversation, seq) < ($1, $2) AND conversation >= $1
ORDER BY conversation DESC, seq DESC LIMIT $3`
)
