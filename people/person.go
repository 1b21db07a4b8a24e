package people

import (
	"context"
	"fmt"
	"slices"

	"mynah/chat"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// Named is somebody in a list, whose name and picture are shown with their id. What embeds
// it has a method PersonID, which returns that id.
type Named struct {
	Name   string `json:"name,omitempty" db:"-" doc:"Their name; absent where their profile is not to be seen" example:"Bert"`
	Avatar string `json:"avatar,omitempty" db:"-" doc:"An https address, or the id of an uploaded file"`
}

// SetName sets what is shown with the id.
func (n *Named) SetName(name, avatar string) { n.Name, n.Avatar = name, avatar }

// LockPersons keeps the contacts and the group counts of the ids from changing until the
// context's transaction ends. Persons are locked before groups.
func LockPersons(ctx context.Context, db *pgtx.DB, ids ...string) error {
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if _, err := db.Exec(ctx, "lock person", schema.LockPerson, id); err != nil {
			return err
		}
	}
	return nil
}

var errDeleted = chat.Refuse(chat.CodeUnauthenticated, "The account has been deleted.")

// RefuseDeleted returns nil unless the person's account has been deleted. The person must
// be locked: a request of theirs may be under way while their account is being deleted, and
// must not bring back what the deletion removes.
func RefuseDeleted(ctx context.Context, db *pgtx.DB, id string) error {
	var deleted bool
	if err := db.Q(ctx).QueryRow(ctx, schema.IsDeleted, id).Scan(&deleted); err != nil {
		return fmt.Errorf("read account: %w", err)
	}
	if deleted {
		return errDeleted
	}
	return nil
}
