package contacts

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/people"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// Block keeps the peer from writing to the person and from asking. A request of
// theirs is gone. They are not notified.
func (s *Service) Block(ctx context.Context, me, peer string) error {
	return s.changeRelation(ctx, me, peer, Block, func(ctx context.Context, r Relation, _ bool) error {
		n, err := s.db.Count(ctx, schema.CountBlocks, me)
		if err != nil {
			return err
		}
		if n >= s.cfg.MaxBlocks {
			return chat.Refuse(chat.CodeLimit, "You have blocked as many as you can.")
		}
		if r == Incoming {
			if _, err := s.db.Exec(ctx, "drop request", schema.DeleteContact, me, peer); err != nil {
				return err
			}
		}
		_, err = s.db.Exec(ctx, "block", schema.InsertBlock, me, peer)
		return err
	})
}

// Unblock undoes Block.
func (s *Service) Unblock(ctx context.Context, me, peer string) error {
	return s.changeRelation(ctx, me, peer, Unblock, func(ctx context.Context, _ Relation, _ bool) error {
		_, err := s.db.Exec(ctx, "unblock", schema.DeleteBlock, me, peer)
		return err
	})
}

// BlockedPerson is somebody whom the person has blocked.
type BlockedPerson struct {
	ID string `json:"id"`
	people.Named
	Since time.Time `json:"since"`
}

// Blocks returns at most limit blocked people after the id.
func (s *Service) Blocks(ctx context.Context, me, after string, limit int) ([]BlockedPerson, error) {
	return pgtx.List(ctx, s.db, "read blocks", pgx.RowToStructByPos[BlockedPerson], schema.SelectBlocks, me, after, limit)
}

// PersonID returns the id of who is blocked.
func (b *BlockedPerson) PersonID() string { return b.ID }
