// Package outbox writes notices into the outbox: messages that people are to see because
// something has changed.
//
// What it guarantees:
//
//   - A notice is part of the transaction in its context: it is there if the change that it
//     tells of was committed, and only then.
//   - Notices of one topic are published in the order in which they were written, if their
//     transactions come one after the other.
//
// Package outreach publishes them.
package outbox

import (
	"context"
	"encoding/json"
	"fmt"

	"mynah/schema"
	"mynah/schema/pgtx"
)

// Notify writes a notice of the kind for the topic. body is rendered as JSON.
func Notify(ctx context.Context, db *pgtx.DB, topic, kind string, body any) error {
	return insert(ctx, db, schema.InsertNotice, topic, kind, body)
}

// NotifyStaff writes one for the owner and for each admin of the group.
func NotifyStaff(ctx context.Context, db *pgtx.DB, group, kind string, body any) error {
	return insert(ctx, db, schema.InsertStaffNotice, group, kind, body)
}

func insert(ctx context.Context, db *pgtx.DB, statement, recipient, kind string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("render notice: %w", err)
	}
	_, err = db.Exec(ctx, "write notice", statement, recipient, kind, string(text))
	return err
}
