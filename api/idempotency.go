package api

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/people/seal"
	"mynah/schema"
)

// sealAnswer is the purpose for which kept answers are sealed: with the
// Idempotency-Key, of which the database has only a hash, because an answer may
// hold a token that is to be seen once.
const sealAnswer = "mynah kept answer"

// runOnce runs work at most once for the caller's key and keeps its answer in the
// same transaction: whatever crashes in between, either both exist or neither
// does. A repeated call gets the kept answer into replayed and true. A call that
// comes while the first is still running waits for it, because both insert the
// same key. A failed call keeps nothing and may be repeated.
func (a *API) runOnce(ctx context.Context, key, operation string, in, replayed any, work func(context.Context) (any, error)) (again bool, err error) {
	request, err := json.Marshal(in)
	if err != nil {
		return false, fmt.Errorf("hash request: %w", err)
	}
	hash := sha256.Sum256(append([]byte(operation+"\n"), request...))
	subject := callerOf(ctx).Subject
	id := sha256.Sum256([]byte("key\n" + subject + "\n" + key))
	err = a.db.Tx(ctx, func(ctx context.Context) error {
		q := a.db.Q(ctx)
		inserted, err := q.Exec(ctx, schema.InsertIdempotency, subject, id[:], hash[:])
		if err != nil {
			return fmt.Errorf("reserve idempotency key: %w", err)
		}
		if inserted.RowsAffected() == 0 {
			again = true
			var first, sealed []byte
			if err := q.QueryRow(ctx, schema.SelectIdempotency, subject, id[:]).Scan(&first, &sealed); err != nil {
				if errors.Is(err, pgx.ErrNoRows) {
					return chat.Refuse(chat.CodeUnavailable, "The answer to this key has just been forgotten. Try again.")
				}
				return fmt.Errorf("read idempotency key: %w", err)
			}
			if string(first) != string(hash[:]) {
				return chat.Refuse(chat.CodeKeyReused, "This Idempotency-Key was used for another request. Take a new one.")
			}
			text, err := seal.Open([]byte(key), sealAnswer, sealed)
			if err != nil {
				return fmt.Errorf("open kept answer: %w", err)
			}
			return json.Unmarshal(text, replayed)
		}
		out, err := work(ctx)
		if err != nil {
			return err
		}
		text, err := json.Marshal(out)
		if err != nil {
			return fmt.Errorf("keep answer: %w", err)
		}
		sealed, err := seal.Seal([]byte(key), sealAnswer, text)
		if err != nil {
			return fmt.Errorf("keep answer: %w", err)
		}
		if _, err := q.Exec(ctx, schema.UpdateIdempotency, subject, id[:], sealed); err != nil {
			return fmt.Errorf("keep answer: %w", err)
		}
		return nil
	})
	return again, err
}
