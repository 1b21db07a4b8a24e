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
	checkViolation   = "23514"
	notPermitted     = "42501"
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
	return ok && pgErr.Code == uniqueViolation && isKey(pgErr)
}

// isKey reports whether an error is about the key of a partition of table messages:
// that of the first, which was the whole table once, or that which PostgreSQL names.
func isKey(err *pgconn.PgError) bool {
	return err.ConstraintName == "messages_pkey" ||
		strings.HasPrefix(err.TableName, "messages_from_") && err.ConstraintName == err.TableName+"_pkey"
}

// isNoRoom reports whether PostgreSQL refused a row because there is no partition for
// it, or because its partition is being ended.
func isNoRoom(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pgErr.Code != checkViolation {
		return false
	}
	if pgErr.ConstraintName != "" {
		return strings.HasPrefix(pgErr.ConstraintName, "messages_until_")
	}
	return pgErr.TableName == "messages" || strings.HasPrefix(pgErr.TableName, "messages_from_")
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
	if !ok || isDuplicate(err) || isForeignColumn(err) || isNoRoom(err) {
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
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if ok && pgErr.Code == undefinedTable {
		return "run mynah migrate"
	}
	if ok && pgErr.Code == notPermitted {
		return "the role of --database-url has to own table messages, or to be a member of the role that does: the archiver makes its partitions"
	}
	if isLocked(err) {
		return "another session has locked table messages or rows of it: see pg_locks and pg_stat_activity"
	}
	return ""
}
