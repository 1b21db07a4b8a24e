package archiver

import (
	"context"
	"errors"
	"fmt"

	"mynah/chat"
	"mynah/schema"

	"github.com/jackc/pgx/v5"
)

// deadLettersAtOnce is how many dead letters are tried in one transaction.
const deadLettersAtOnce = 500

// Beginner is what RetryDeadLetters needs of a database: a *pgx.Conn or a
// *pgxpool.Pool.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// RetryDeadLetters tries to store every dead letter in table messages: retried is
// how many it tried, stored how many are there now and no dead letters any more,
// failed how many were refused again, which is counted in their row. It may run
// beside archivers and beside itself. After an error the figures say what was
// done before it.
func RetryDeadLetters(ctx context.Context, db Beginner) (retried, stored, failed int, err error) {
	return retryDeadLetters(ctx, db, "")
}

// retryDeadLetters is RetryDeadLetters for those with the sqlstate, "" for all.
func retryDeadLetters(ctx context.Context, db Beginner, code string) (retried, stored, failed int, err error) {
	var after int64
	for {
		tx, err := db.Begin(ctx)
		if err != nil {
			return retried, stored, failed, fmt.Errorf("retry dead letters: begin: %w", err)
		}
		last, ok, bad, err := retryPage(ctx, tx, after, code)
		if err == nil {
			err = tx.Commit(ctx)
		}
		if err != nil {
			_ = tx.Rollback(context.WithoutCancel(ctx)) // the server does it anyway
			return retried, stored, failed, fmt.Errorf("retry dead letters: %w", err)
		}
		retried, stored, failed = retried+ok+bad, stored+ok, failed+bad
		if ok+bad == 0 {
			return retried, stored, failed, nil
		}
		after = last
	}
}

func retryPage(ctx context.Context, tx pgx.Tx, after int64, code string) (last int64, stored, failed int, err error) {
	type letter struct {
		ID      int64
		Topic   string
		Payload []byte
	}
	rows, err := tx.Query(ctx, schema.SelectDeadLetters, after, deadLettersAtOnce, code)
	if err != nil {
		return after, 0, 0, fmt.Errorf("read: %w", err)
	}
	letters, err := pgx.CollectRows(rows, pgx.RowToStructByPos[letter])
	if err != nil {
		return after, 0, 0, fmt.Errorf("read: %w", err)
	}
	last = after
	for _, l := range letters {
		last = l.ID
		refused := retryOne(ctx, tx, l.Payload)
		switch {
		case refused == nil:
			if _, err := tx.Exec(ctx, schema.DeleteDeadLetter, l.ID); err != nil {
				return last, stored, failed, fmt.Errorf("delete: %w", err)
			}
			stored++
		case isRefusal(refused):
			if _, err := tx.Exec(ctx, schema.FailDeadLetter, l.ID, refused.Error(), sqlstate(refused)); err != nil {
				return last, stored, failed, fmt.Errorf("count the attempt: %w", err)
			}
			failed++
		default:
			return last, stored, failed, refused
		}
	}
	return last, stored, failed, nil
}

// isRefusal reports whether a message itself was refused, by us or by PostgreSQL.
func isRefusal(err error) bool {
	return errors.Is(err, chat.ErrEnvelope) || errors.Is(err, errNoSeq) || errors.Is(err, errNoConversation) || isDataRefusal(err)
}

// retryOne stores one message, in a savepoint so that a refusal undoes nothing
// else.
func retryOne(ctx context.Context, tx pgx.Tx, payload []byte) error {
	e, err := chat.ParseEnvelope(payload)
	if err != nil {
		return err
	}
	row, err := appendRow(nil, &e)
	if err != nil {
		return err
	}
	store := func(savepoint pgx.Tx) error {
		if _, err := savepoint.Exec(ctx, makeStaging); err != nil {
			return err
		}
		if _, err := savepoint.Conn().PgConn().CopyFrom(ctx, copyReader(row), copyStaging); err != nil {
			return err
		}
		if _, err := savepoint.Exec(ctx, fromStaging); err != nil {
			return err
		}
		_, err := savepoint.Exec(ctx, "TRUNCATE "+stagingTable)
		return err
	}
	err = inTx(ctx, tx, store)
	if isNoRoom(err) { // it is as old as what has been dropped, or newer than everything
		if err := makeRoom(ctx, tx, []int64{int64(e.Seq)}); err != nil { //nolint:gosec // ParseEnvelope allows 2^53-1 at most
			return err
		}
		err = inTx(ctx, tx, store)
	}
	return err
}
