package contacts

import (
	"mynah/chat"
)

// Relation is what somebody else is to a person.
type Relation string

// The relations. A contact who is blocked as well is a contact here.
const (
	Self     Relation = "self"
	Stranger Relation = "stranger"
	Asked    Relation = "asked"    // the person has asked them
	Incoming Relation = "incoming" // they have asked the person
	Contact  Relation = "contact"
	Blocked  Relation = "blocked" // the person has blocked them
)

// Relations are all relations, in the order of the columns of the table.
func Relations() []Relation {
	return []Relation{Self, Stranger, Asked, Incoming, Contact, Blocked}
}

// Action is what a person wants to do with somebody else.
type Action string

// The actions.
const (
	Ask      Action = "ask" // asking who has asked accepts
	Accept   Action = "accept"
	Decline  Action = "decline"
	Withdraw Action = "withdraw"
	Remark   Action = "remark"
	Remove   Action = "remove"
	Block    Action = "block"
	Unblock  Action = "unblock"
)

// rules is who may do what with whom: a letter for each relation.
//
//	y  allowed
//	-  there is nothing to do that with
//	c  conflict: it is so already, or the opposite is
//	s  nobody is one's own contact
var rules = []struct {
	action  Action
	letters string // self stranger asked incoming contact blocked
}{
	{Ask, "syyycc"},
	{Accept, "s--y--"},
	{Decline, "s--y--"},
	{Withdraw, "s-y---"},
	{Remark, "s---y-"},
	{Remove, "s---y-"},
	{Block, "syyyyy"},
	{Unblock, "syyyyy"},
}

// Actions are all actions of the table.
func Actions() []Action {
	all := make([]Action, len(rules))
	for i, r := range rules {
		all[i] = r.action
	}
	return all
}

var (
	errSelf      = chat.Refuse(chat.CodeInvalid, "That is you.")
	errNoContact = chat.Refuse(chat.CodeNotFound, "There is no such contact or request.")
	errIsContact = chat.Refuse(chat.CodeConflict, "You are contacts, or you have blocked them. Unblock them first.")
)

// May returns nil if the action can be taken with somebody who is that
// to the person, and the refusal if not.
func May(relation Relation, action Action) error {
	for _, r := range rules {
		for i, one := range Relations() {
			if r.action != action || one != relation {
				continue
			}
			switch r.letters[i] {
			case 'y':
				return nil
			case 'c':
				return errIsContact
			case 's':
				return errSelf
			}
			return errNoContact
		}
	}
	return errNoContact
}
