// Package contacts is the domain of who belongs to whom: contacts, the requests that make
// them, blocks, and what a person lets others do. It speaks to PostgreSQL and knows nothing
// of HTTP, which package api turns into calls, nor of MQTT: what people should see of a
// change is a notice in the outbox (package schema/outbox), and what the broker must know is
// written by triggers (package directory follows them).
//
// What it guarantees:
//
//   - Who may do what with whom is decided by the table of authorize.go, and nowhere else.
//   - A change, its notices and what it means for the broker are one transaction.
//   - Both sides of a contact change together, under a lock on both persons
//     (people.LockPersons), under which limits are counted as well.
//   - Nothing tells whether somebody exists, or has blocked the caller.
//
// Errors for clients are *chat.Error.
package contacts

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/people"
	"mynah/people/displaytext"
	"mynah/schema"
	"mynah/schema/outbox"
	"mynah/schema/pgtx"
)

// Config are the limits. Zero stands for the default.
type Config struct {
	MaxContacts int // contacts of a person, default 5,000
	MaxRequests int // requests of a person that wait for an answer, default 200
	MaxBlocks   int // people whom a person has blocked, default 1,000
}

// withDefaults returns c with defaults in place of zeros.
func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *int
		value int
	}{{&c.MaxContacts, 5_000}, {&c.MaxRequests, 200}, {&c.MaxBlocks, 1_000}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return c
}

// Service is the contacts of one database. It is safe for concurrent use.
type Service struct {
	cfg Config
	db  *pgtx.DB
}

// New returns a Service.
func New(db *pgtx.DB, cfg Config) *Service {
	return &Service{cfg: cfg.withDefaults(), db: db}
}

// Forget removes the person from everybody's contacts and blocks, and theirs. Those of whom
// the person was a contact, or who had asked or been asked, are notified. It is part of the
// deletion of an account.
func (s *Service) Forget(ctx context.Context, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := people.LockPersons(ctx, s.db, id); err != nil {
			return err
		}
		if _, err := s.db.Exec(ctx, "notify contacts", schema.InsertContactFarewells, id); err != nil {
			return err
		}
		for _, statement := range []string{schema.ForgetContacts, schema.ForgetBlocks} {
			if _, err := s.db.Exec(ctx, "forget person", statement, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// Friend is a contact as their owner sees them.
type Friend struct {
	ID string `json:"id"`
	people.Named
	Remark string    `json:"remark,omitempty" doc:"What you call them"`
	Since  time.Time `json:"since"`
}

// Request is a contact request, from either side.
type Request struct {
	ID string `json:"id" doc:"Who asks, or who was asked"`
	people.Named
	Note  string    `json:"note,omitempty"`
	Since time.Time `json:"since"`
}

// contactNotice is the body of notices about contacts.
type contactNotice struct {
	Who  string `json:"who"`
	Note string `json:"note,omitempty"`
}

// changeRelation runs fn in a transaction in which neither side's contacts change
// otherwise, if the table lets the person take the action with the peer. fn gets
// the relation and whether the peer has blocked the person.
func (s *Service) changeRelation(ctx context.Context, me, peer string, action Action, fn func(ctx context.Context, r Relation, blocked bool) error) error {
	if me == peer {
		return May(Self, action)
	}
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if err := people.LockPersons(ctx, s.db, me, peer); err != nil {
			return err
		}
		if err := people.RefuseDeleted(ctx, s.db, me); err != nil {
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
		if err := May(relation, action); err != nil {
			return err
		}
		return fn(ctx, relation, blocked)
	})
}

// Ask asks the peer to become a contact. If the peer has asked already, both are
// contacts now and it returns true. Whether the peer exists, or has blocked the
// person, is not shown: the request is noted for the person all the same.
func (s *Service) Ask(ctx context.Context, me, peer, note string) (contacts bool, err error) {
	if err := displaytext.Check("A note", note); err != nil {
		return false, err
	}
	err = s.changeRelation(ctx, me, peer, Ask, func(ctx context.Context, r Relation, blocked bool) error {
		if r == Incoming {
			contacts = true
			return s.makeContacts(ctx, me, peer)
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
		n, err := s.db.Count(ctx, schema.CountContacts, me, string(Asked), s.cfg.MaxRequests)
		if err != nil {
			return err
		}
		if n >= s.cfg.MaxRequests && r != Asked {
			return chat.Refuse(chat.CodeLimit, "Too many of your requests wait for an answer. Withdraw some.")
		}
		if _, err := s.db.Exec(ctx, "store request", schema.UpsertContact, me, peer, string(Asked), note); err != nil {
			return err
		}
		if blocked {
			return nil
		}
		if _, err := s.db.Exec(ctx, "store request", schema.UpsertContact, peer, me, string(Incoming), note); err != nil {
			return err
		}
		return outbox.Notify(ctx, s.db, chat.UserTopic(peer), "notice.contact.request", contactNotice{Who: me, Note: note})
	})
	return contacts, err
}

// makeContacts makes both sides contacts, of whom the peer has asked.
func (s *Service) makeContacts(ctx context.Context, me, peer string) error {
	for _, side := range [][2]string{{me, peer}, {peer, me}} {
		n, err := s.db.Count(ctx, schema.CountContacts, side[0], string(Contact), s.cfg.MaxContacts)
		if err != nil {
			return err
		}
		if n >= s.cfg.MaxContacts {
			return chat.Refuse(chat.CodeLimit, "One of you has as many contacts as there may be.")
		}
		if _, err := s.db.Exec(ctx, "store contact", schema.UpsertContact, side[0], side[1], string(Contact), ""); err != nil {
			return err
		}
		if err := outbox.Notify(ctx, s.db, chat.UserTopic(side[0]), "notice.contact.accepted", contactNotice{Who: side[1]}); err != nil {
			return err
		}
	}
	return nil
}

// Accept accepts the peer's request.
func (s *Service) Accept(ctx context.Context, me, peer string) error {
	return s.changeRelation(ctx, me, peer, Accept, func(ctx context.Context, _ Relation, _ bool) error {
		return s.makeContacts(ctx, me, peer)
	})
}

// EndRequest declines the peer's request, or withdraws one's own. Who has asked is
// notified; who was asked sees the request go.
func (s *Service) EndRequest(ctx context.Context, me, peer string) error {
	end := func(ctx context.Context, r Relation, _ bool) error {
		if _, err := s.db.Exec(ctx, "end request", schema.DeleteContactPair, me, peer); err != nil {
			return err
		}
		kind := "notice.contact.withdrawn"
		if r == Incoming {
			kind = "notice.contact.declined"
		}
		return outbox.Notify(ctx, s.db, chat.UserTopic(peer), kind, contactNotice{Who: me})
	}
	err := s.changeRelation(ctx, me, peer, Decline, end)
	if errors.Is(err, errNoContact) {
		err = s.changeRelation(ctx, me, peer, Withdraw, func(ctx context.Context, r Relation, blocked bool) error {
			if blocked { // they never saw it
				_, err := s.db.Exec(ctx, "end request", schema.DeleteContact, me, peer)
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
	err = s.changeRelation(ctx, me, peer, Remark, func(ctx context.Context, _ Relation, _ bool) error {
		if _, err := s.db.Exec(ctx, "set remark", schema.UpdateRemark, me, peer, remark); err != nil {
			return err
		}
		f, err = s.Get(ctx, me, peer)
		return err
	})
	return f, err
}

// Remove ends being contacts, for both sides. The removed one is not notified.
func (s *Service) Remove(ctx context.Context, me, peer string) error {
	return s.changeRelation(ctx, me, peer, Remove, func(ctx context.Context, _ Relation, _ bool) error {
		if _, err := s.db.Exec(ctx, "remove contact", schema.DeleteContactPair, me, peer); err != nil {
			return err
		}
		return outbox.Notify(ctx, s.db, chat.UserTopic(me), "notice.contact.removed", contactNotice{Who: peer})
	})
}

// Get returns a contact.
func (s *Service) Get(ctx context.Context, me, peer string) (*Friend, error) {
	all, err := pgtx.List(ctx, s.db, "read contact", pgx.RowToStructByPos[Friend], schema.SelectContact, me, peer)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errNoContact
	}
	return &all[0], nil
}

// List returns at most limit contacts after the id.
func (s *Service) List(ctx context.Context, me, after string, limit int) ([]Friend, error) {
	return pgtx.List(ctx, s.db, "read contacts", pgx.RowToStructByPos[Friend], schema.SelectContacts, me, after, limit)
}

// Requests returns at most limit requests, newest first: those that came to the
// person, or those that they made. after is nil for the beginning.
func (s *Service) Requests(ctx context.Context, me string, incoming bool, after *schema.TimeKey, limit int) ([]Request, error) {
	state := Asked
	if incoming {
		state = Incoming
	}
	if after == nil {
		after = &schema.TimeKey{At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
	}
	return pgtx.List(ctx, s.db, "read requests", pgx.RowToStructByPos[Request], schema.SelectRequests, me, string(state), after.At, after.ID, limit)
}

// PersonID returns the contact's id.
func (f *Friend) PersonID() string { return f.ID }

// PersonID returns the id of the other side.
func (r *Request) PersonID() string { return r.ID }
