package archiver

import (
	"errors"
	"slices"
	"strings"

	"mynah/schema"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	uniqueViolation  = "23505"
	notNull          = "23502"
	undefinedTable   = "42P01"
	lockNotAvailable = "55P03"
	messagesKey      = "messages_pkey"
)

// isLocked reports whether PostgreSQL gave up waiting for somebody else's lock.
func isLocked(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == lockNotAvailable
}

// isDuplicate reports whether PostgreSQL refused a row because its seq is there
// already.
func isDuplicate(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == uniqueViolation && pgErr.ConstraintName == messagesKey
}

// isForeignColumn reports whether PostgreSQL refused a row because a column of the
// user's own has neither a value nor a default: no message could be stored.
func isForeignColumn(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == notNull && !slices.Contains(schema.MessageColumns(), pgErr.ColumnName)
}

// isDataRefusal reports whether PostgreSQL refused the data itself, so that trying
// again is in vain: classes 22 (data exception), 23 (a constraint), 54 (a limit,
// such as an index entry too long) and P0 (raised by a trigger of the user's own).
// Everything else may pass: the server is away, full, read-only, out of memory, or
// somebody has taken our rights.
func isDataRefusal(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || isDuplicate(err) || isForeignColumn(err) {
		return false
	}
	for _, class := range []string{"22", "23", "54", "P0"} {
		if strings.HasPrefix(pgErr.Code, class) {
			return true
		}
	}
	return false
}

// sqlstate returns PostgreSQL's code of an error, nil if it has none.
func sqlstate(err error) *string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return &pgErr.Code
	}
	return nil
}

// hint returns what the operator can do about an error, "" if it is unknown.
func hint(err error) string {
	if isForeignColumn(err) {
		return "give that column of table messages a default, or let it be NULL"
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == undefinedTable {
		return "run mynah migrate"
	}
	if isLocked(err) {
		return "another session has locked table messages or rows of it: see pg_locks and pg_stat_activity"
	}
	return ""
}
