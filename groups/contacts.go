package groups

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/people/displaytext"
	"mynah/schema"
)

// Friend is a contact as their owner sees them.
type Friend struct {
	ID string `json:"id"`
	Named
	Remark string    `json:"remark,omitempty" doc:"What you call them"`
	Since  time.Time `json:"since"`
}

// Request is a contact request, from either side.
type Request struct {
	ID string `json:"id" doc:"Who asks, or who was asked"`
	Named
	Note  string    `json:"note,omitempty"`
	Since time.Time `json:"since"`
}

// TimeKey is the place of a row in a list ordered by time.
type TimeKey struct {
	At time.Time `json:"a"`
	ID string    `json:"i"`
}

// contactNotice is the body of notices about contacts.
type contactNotice struct {
	Who  string `json:"who"`
	Note string `json:"note,omitempty"`
}

// withPeer runs fn in a transaction in which neither side's contacts change
// otherwise, if the table lets the person take the action with the peer. fn is
// told the relation and whether the peer has blocked the person.
func (s *Service) withPeer(ctx context.Context, me, peer string, action ContactAction, fn func(ctx context.Context, r Relation, blocked bool) error) error {
	if me == peer {
		return MayWithContact(Self, action)
	}
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.lockPersons(ctx, me, peer); err != nil {
			return err
		}
		if err := s.present(ctx, me); err != nil {
			return err
		}
		var state string
		var blocking, blocked bool
		if err := s.db.Q(ctx).QueryRow(ctx, schema.SelectRelation, me, peer).Scan(&state, &blocking, &blocked); err != nil {
			return fmt.Errorf("read relation: %w", err)
		}
		relation := Relation(state)
		switch {
		case relation == Contact:
		case blocking:
			relation = Blocked
		case state == "":
			relation = Stranger
		}
		if err := MayWithContact(relation, action); err != nil {
			return err
		}
		return fn(ctx, relation, blocked)
	})
}

// Ask asks the peer to become a contact. If the peer has asked already, both are
// contacts now and it returns true. Whether the peer exists, or has blocked the
// person, is not told: the request is noted for the person all the same.
func (s *Service) Ask(ctx context.Context, me, peer, note string) (contacts bool, err error) {
	if err := displaytext.Check("A note", note); err != nil {
		return false, err
	}
	err = s.withPeer(ctx, me, peer, Ask, func(ctx context.Context, r Relation, blocked bool) error {
		if r == Incoming {
			contacts = true
			return s.befriend(ctx, me, peer)
		}
		if r == Asked {
			var asked bool
			if err := s.db.Q(ctx).QueryRow(ctx, schema.IsAsked, me, peer, note, blocked).Scan(&asked); err != nil {
				return fmt.Errorf("read request: %w", err)
			}
			if asked { // a notice for each call would be a flood
				return nil
			}
		}
		n, err := s.count(ctx, schema.CountContacts, me, string(Asked), s.cfg.MaxRequests)
		if err != nil {
			return err
		}
		if n >= s.cfg.MaxRequests && r != Asked {
			return chat.Refuse(chat.CodeLimit, "Too many of your requests wait for an answer. Withdraw some.")
		}
		if _, err := s.exec(ctx, "store request", schema.UpsertContact, me, peer, string(Asked), note); err != nil {
			return err
		}
		if blocked {
			return nil
		}
		if _, err := s.exec(ctx, "store request", schema.UpsertContact, peer, me, string(Incoming), note); err != nil {
			return err
		}
		return s.notice(ctx, chat.UserTopic(peer), "notice.contact.request", contactNotice{Who: me, Note: note})
	})
	return contacts, err
}

// befriend makes both sides contacts, of whom the peer has asked.
func (s *Service) befriend(ctx context.Context, me, peer string) error {
	for _, side := range [][2]string{{me, peer}, {peer, me}} {
		n, err := s.count(ctx, schema.CountContacts, side[0], string(Contact), s.cfg.MaxContacts)
		if err != nil {
			return err
		}
		if n >= s.cfg.MaxContacts {
			return chat.Refuse(chat.CodeLimit, "One of you has as many contacts as there may be.")
		}
		if _, err := s.exec(ctx, "store contact", schema.UpsertContact, side[0], side[1], string(Contact), ""); err != nil {
			return err
		}
		if err := s.notice(ctx, chat.UserTopic(side[0]), "notice.contact.accepted", contactNotice{Who: side[1]}); err != nil {
			return err
		}
	}
	return nil
}

// Accept accepts the peer's request.
func (s *Service) Accept(ctx context.Context, me, peer string) error {
	return s.withPeer(ctx, me, peer, Accept, func(ctx context.Context, _ Relation, _ bool) error {
		return s.befriend(ctx, me, peer)
	})
}

// EndRequest declines the peer's request, or withdraws one's own. Who has asked is
// told; who was asked sees the request go.
func (s *Service) EndRequest(ctx context.Context, me, peer string) error {
	end := func(ctx context.Context, r Relation, _ bool) error {
		if _, err := s.exec(ctx, "end request", schema.DeleteContactPair, me, peer); err != nil {
			return err
		}
		kind := "notice.contact.withdrawn"
		if r == Incoming {
			kind = "notice.contact.declined"
		}
		return s.notice(ctx, chat.UserTopic(peer), kind, contactNotice{Who: me})
	}
	err := s.withPeer(ctx, me, peer, Decline, end)
	if errors.Is(err, errNoContact) {
		err = s.withPeer(ctx, me, peer, Withdraw, func(ctx context.Context, r Relation, blocked bool) error {
			if blocked { // they never saw it
				_, err := s.exec(ctx, "end request", schema.DeleteContact, me, peer)
				return err
			}
			return end(ctx, r, blocked)
		})
	}
	return err
}

// SetRemark sets what the person calls a contact.
func (s *Service) SetRemark(ctx context.Context, me, peer, remark string) (f *Friend, err error) {
	remark, err = displaytext.Name("A remark", remark)
	if err != nil {
		return nil, err
	}
	err = s.withPeer(ctx, me, peer, Remark, func(ctx context.Context, _ Relation, _ bool) error {
		if _, err := s.exec(ctx, "set remark", schema.UpdateRemark, me, peer, remark); err != nil {
			return err
		}
		f, err = s.Friend(ctx, me, peer)
		return err
	})
	return f, err
}

// RemoveContact ends being contacts, for both sides. The removed one is not told.
func (s *Service) RemoveContact(ctx context.Context, me, peer string) error {
	return s.withPeer(ctx, me, peer, Remove, func(ctx context.Context, _ Relation, _ bool) error {
		if _, err := s.exec(ctx, "remove contact", schema.DeleteContactPair, me, peer); err != nil {
			return err
		}
		return s.notice(ctx, chat.UserTopic(me), "notice.contact.removed", contactNotice{Who: peer})
	})
}

// Friend returns a contact.
func (s *Service) Friend(ctx context.Context, me, peer string) (*Friend, error) {
	all, err := list(ctx, s, "read contact", pgx.RowToStructByPos[Friend], schema.SelectContact, me, peer)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errNoContact
	}
	return &all[0], nil
}

// Friends returns at most limit contacts after the id.
func (s *Service) Friends(ctx context.Context, me, after string, limit int) ([]Friend, error) {
	return list(ctx, s, "read contacts", pgx.RowToStructByPos[Friend], schema.SelectContacts, me, after, limit)
}

// Requests returns at most limit requests, newest first: those that came to the
// person, or those that they made. after is nil for the beginning.
func (s *Service) Requests(ctx context.Context, me string, incoming bool, after *TimeKey, limit int) ([]Request, error) {
	state := Asked
	if incoming {
		state = Incoming
	}
	if after == nil {
		after = &TimeKey{At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
	}
	return list(ctx, s, "read requests", pgx.RowToStructByPos[Request], schema.SelectRequests, me, string(state), after.At, after.ID, limit)
}

// Block keeps the peer from writing to the person and from asking. A request of
// theirs is gone. They are not told.
func (s *Service) Block(ctx context.Context, me, peer string) error {
	return s.withPeer(ctx, me, peer, Block, func(ctx context.Context, r Relation, _ bool) error {
		n, err := s.count(ctx, schema.CountBlocks, me)
		if err != nil {
			return err
		}
		if n >= s.cfg.MaxBlocks {
			return chat.Refuse(chat.CodeLimit, "You have blocked as many as you can.")
		}
		if r == Incoming {
			if _, err := s.exec(ctx, "drop request", schema.DeleteContact, me, peer); err != nil {
				return err
			}
		}
		_, err = s.exec(ctx, "block", schema.InsertBlock, me, peer)
		return err
	})
}

// Unblock undoes Block.
func (s *Service) Unblock(ctx context.Context, me, peer string) error {
	return s.withPeer(ctx, me, peer, Unblock, func(ctx context.Context, _ Relation, _ bool) error {
		_, err := s.exec(ctx, "unblock", schema.DeleteBlock, me, peer)
		return err
	})
}

// BlockedPerson is somebody whom the person has blocked.
type BlockedPerson struct {
	ID string `json:"id"`
	Named
	Since time.Time `json:"since"`
}

// Blocks returns at most limit blocked people after the id.
func (s *Service) Blocks(ctx context.Context, me, after string, limit int) ([]BlockedPerson, error) {
	return list(ctx, s, "read blocks", pgx.RowToStructByPos[BlockedPerson], schema.SelectBlocks, me, after, limit)
}

// Privacy is what a person lets others do; "" is the server's default.
type Privacy struct {
	Write    string `json:"write" enum:"anyone,contacts," doc:"Who may write to you; empty for the server's default"`
	Presence string `json:"presence" enum:"anyone,acquainted,nobody," doc:"Who may see whether you are online: acquainted are contacts and members of a common group; empty for the default, which is that"`
}

// Privacy returns the person's settings.
func (s *Service) Privacy(ctx context.Context, me string) (p Privacy, err error) {
	if err = s.db.Q(ctx).QueryRow(ctx, schema.SelectPrivacy, me).Scan(&p.Write, &p.Presence); err != nil {
		return p, fmt.Errorf("read privacy: %w", err)
	}
	return p, nil
}

// SetPrivacy changes the person's settings; what is nil stays.
func (s *Service) SetPrivacy(ctx context.Context, me string, write, presence *string) (Privacy, error) {
	if _, err := s.exec(ctx, "set privacy", schema.UpdatePrivacy, me, write, presence); err != nil {
		return Privacy{}, err
	}
	return s.Privacy(ctx, me)
}
