// Package changes reads the feed of changes to rights (table changes,
// schema/migrations/00010_accounts.sql) without missing one, whatever order
// transactions commit in. It is what an authhook.Directory on PostgreSQL follows:
// LISTEN on Channel tells when to read.
package changes

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"mynah/authhook"
	"mynah/schema"
)

// Channel is what is notified after each transaction that made a change.
const Channel = "mynah_change"

// maxChanges is how many changes are read at once. After more, it is cheaper to read all
// rights again.
const maxChanges = 20_000

// Querier is what a Reader needs: a *pgx.Conn or a *pgxpool.Pool.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Reader reads the feed. Its zero value has read nothing. It is not safe for
// concurrent use.
type Reader struct {
	// cursor is a transaction id below which all transactions had ended when
	// it was read: nothing below it can appear any more. 0 is before any.
	cursor uint64
	// seen are the changes at or above cursor that have been returned.
	seen map[int64]bool
	// mark is up to where the feed had been trimmed at the last Read.
	mark uint64
}

// Resume returns a Reader that goes on from a Cursor that was kept.
func Resume(cursor uint64) *Reader { return &Reader{cursor: cursor} }

// Cursor returns where the reader is, to be kept for Resume. After that some of
// the changes that have been returned are returned again.
func (r *Reader) Cursor() uint64 { return r.cursor }

// Read returns the changes that have been committed since the last Read, each
// once. If all is true it may have missed some, as at the first Read: the caller
// must then read all rights again, after this call.
func (r *Reader) Read(ctx context.Context, q Querier) (list []authhook.Change, all bool, err error) {
	if r.cursor == 0 {
		return nil, true, r.restart(ctx, q)
	}
	rows, err := q.Query(ctx, schema.SelectChanges, strconv.FormatUint(r.cursor, 10), maxChanges+1)
	if err != nil {
		return nil, false, fmt.Errorf("read changes: %w", err)
	}
	defer rows.Close()
	var horizon, trimmed uint64
	visible := map[int64]bool{}
	for rows.Next() {
		var (
			xmin, mark                  string
			id                          *int64
			kind, subject, grp, session *string
		)
		if err := rows.Scan(&xmin, &mark, &id, &kind, &subject, &grp, &session); err != nil {
			return nil, false, fmt.Errorf("read changes: %w", err)
		}
		if horizon, trimmed, err = parse(xmin, mark); err != nil {
			return nil, false, err
		}
		if id == nil {
			break
		}
		visible[*id] = true
		if !r.seen[*id] {
			list = append(list, authhook.Change{Kind: kindOf(*kind), Subject: *subject, Group: *grp, Session: *session})
		}
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		return nil, false, fmt.Errorf("read changes: %w", err)
	}
	switch {
	case trimmed != r.mark && r.cursor <= trimmed, // something was trimmed before it was read, perhaps
		r.cursor > horizon, // the database was restored into another cluster
		len(visible) > maxChanges:
		return nil, true, r.restart(ctx, q)
	}
	// What was seen below the new cursor is not read again; to keep all ids of
	// this reading costs little and is right.
	r.cursor, r.seen, r.mark = horizon, visible, trimmed
	return list, false, nil
}

// restart puts the cursor where everything is still to come.
func (r *Reader) restart(ctx context.Context, q Querier) error {
	var xmin, mark string
	if err := q.QueryRow(ctx, schema.SelectHorizon).Scan(&xmin, &mark); err != nil {
		return fmt.Errorf("read the horizon of changes: %w", err)
	}
	horizon, trimmed, err := parse(xmin, mark)
	if err != nil {
		return err
	}
	r.cursor, r.seen, r.mark = horizon, nil, trimmed
	return nil
}

func parse(xmin, mark string) (horizon, trimmed uint64, err error) {
	if horizon, err = strconv.ParseUint(xmin, 10, 64); err != nil {
		return 0, 0, fmt.Errorf("read the horizon of changes: %w", err)
	}
	if trimmed, err = strconv.ParseUint(mark, 10, 64); err != nil {
		return 0, 0, fmt.Errorf("read the mark of changes: %w", err)
	}
	return horizon, trimmed, nil
}

func kindOf(kind string) authhook.ChangeKind {
	switch kind {
	case "joined":
		return authhook.ChangeJoined
	case "left":
		return authhook.ChangeLeft
	case "rights":
		return authhook.ChangeRights
	case "disabled":
		return authhook.ChangeDisabled
	}
	return authhook.ChangeAll
}
