package schema

// Queries by which who changes a right learns that the brokers have applied the change;
// see package changes (barrier.go).
const (
	// FollowerLock has the session be counted as one that follows the feed of changes,
	// until it ends. $1 and $2 name the lock.
	FollowerLock = `SELECT pg_advisory_lock_shared($1::int, $2::int)`

	// AskFollowers asks those that follow the feed, on channel $3 and by nonce $4, to
	// say when they have applied what was committed before, and gives the process ids
	// of their sessions: those that hold lock $1, $2.
	AskFollowers = `SELECT ` + followers + `, pg_notify($3, $4)::text`

	// SelectFollowers gives the same process ids again.
	SelectFollowers = `SELECT ` + followers

	followers = `ARRAY(SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
    AND classid = $1::int::oid AND objid = $2::int::oid
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))::int[]`

	// TellApplied answers nonce $2 on channel $1, with the process id of this session.
	TellApplied = `SELECT pg_notify($1, $2 || ' ' || pg_backend_pid())`

	// IsCleared tells whether nobody is a member of group $1 any more.
	IsCleared = `SELECT NOT EXISTS (SELECT FROM groups WHERE id = $1 AND members > 0)`
)
