package groups

import "mynah/chat"

// Role is what somebody is in a group.
type Role string

// The roles. Operators hold a token of role admin; what they are in the group
// besides does not matter.
const (
	Operator Role = "operator"
	Owner    Role = "owner"
	Admin    Role = "admin"
	Member   Role = "member"
	Device   Role = "device"   // a member that is a device, whatever else the database says that it is
	Invited  Role = "invited"  // by name; not a member yet
	Outsider Role = "outsider" // neither of the others
	Banned   Role = "banned"
)

// Roles are all roles, in the order of the columns of the table.
func Roles() []Role { return []Role{Operator, Owner, Admin, Member, Device, Invited, Outsider, Banned} }

// Join says how one becomes a member of a group.
type Join string

// The ways to join.
const (
	JoinOpen       Join = "open"       // by wanting to, or by subscribing: a room
	JoinApproval   Join = "approval"   // the owner or an admin approves
	JoinInvitation Join = "invitation" // only with an invitation; others do not see the group
)

// Joins are all ways to join, in the order of the columns of the table.
func Joins() []Join { return []Join{JoinOpen, JoinApproval, JoinInvitation} }

// Action is what somebody wants to do with a group.
type Action string

// The actions.
const (
	ViewGroup         Action = "view group"
	ViewMembers       Action = "view members"
	EditGroup         Action = "edit group"      // name, avatar, announcement, ext
	SetJoin           Action = "set join policy" // who gets in from now on
	MuteAll           Action = "mute all"
	Dissolve          Action = "dissolve"
	Transfer          Action = "transfer"
	SetAdmins         Action = "set admins"
	JoinGroup         Action = "join"        // at once
	AskToJoin         Action = "ask to join" // wait for approval
	JoinByLink        Action = "join by link"
	Leave             Action = "leave"
	Invite            Action = "invite"
	ManageInvitations Action = "manage invitations"
	ManageLinks       Action = "manage links"
	DecideRequests    Action = "decide requests"
	RemoveMember      Action = "remove member" // kick or ban who is no admin
	RemoveAdmin       Action = "remove admin"
	ManageBans        Action = "manage bans"
	MuteMember        Action = "mute member" // who is no admin
	MuteAdmin         Action = "mute admin"
	NameOneself       Action = "name oneself" // one's nickname in the group
	NameOthers        Action = "name others"
	ManageDevices     Action = "manage devices"
	Speak             Action = "speak"
	SpeakMuted        Action = "speak when all are muted"
)

// rule is a line of the table: for each way to join, a letter for each role, in
// the order of Roles and Joins.
//
//	y  allowed
//	n  not allowed: who asks knows the group and lacks the role
//	m  not a member: who asks may know the group, and would have to be in it
//	h  hidden: answered as if there were no such group
type rule struct {
	action                     Action
	open, approval, invitation string
}

// rules is who may do what in a group. Everything that depends on a role in a
// group is decided here.
var rules = []rule{
	// Groups that are joined by open, approval, invitation; in each the letters of
	// operator, owner, admin, member, device, invited, outsider, banned.
	{ViewGroup, "yyyyyyyh", "yyyyyyyh", "yyyyyyhh"},
	{ViewMembers, "yyyyymmh", "yyyyymmh", "yyyyymhh"},
	{EditGroup, "yyynnmmh", "yyynnmmh", "yyynnmhh"},
	{SetJoin, "yynnnmmh", "yynnnmmh", "yynnnmhh"},
	{MuteAll, "yyynnmmh", "yyynnmmh", "yyynnmhh"},
	{Dissolve, "yynnnmmh", "yynnnmmh", "yynnnmhh"},
	{Transfer, "yynnnmmh", "yynnnmmh", "yynnnmhh"},
	{SetAdmins, "yynnnmmh", "yynnnmmh", "yynnnmhh"},
	{JoinGroup, "yyyyyyyh", "yyyyyynh", "yyyyyyhh"}, // members: they are in it already
	{AskToJoin, "nnnnnnnh", "nnnnnnyh", "nnnnnnhh"},
	{JoinByLink, "yyyyyyyh", "yyyyyyyh", "yyyyyyyh"},
	{Leave, "mnyyymmh", "mnyyymmh", "mnyyymhh"}, // an owner hands over or dissolves
	{Invite, "yyyynmmh", "yyynnmmh", "yyynnmhh"},
	{ManageInvitations, "yyynnmmh", "yyynnmmh", "yyynnmhh"},
	{ManageLinks, "yyynnmmh", "yyynnmmh", "yyynnmhh"},
	{DecideRequests, "yyynnmmh", "yyynnmmh", "yyynnmhh"},
	{RemoveMember, "yyynnmmh", "yyynnmmh", "yyynnmhh"},
	{RemoveAdmin, "yynnnmmh", "yynnnmmh", "yynnnmhh"},
	{ManageBans, "yyynnmmh", "yyynnmmh", "yyynnmhh"},
	{MuteMember, "yyynnmmh", "yyynnmmh", "yyynnmhh"},
	{MuteAdmin, "yynnnmmh", "yynnnmmh", "yynnnmhh"},
	{NameOneself, "myyyymmh", "myyyymmh", "myyyymhh"},
	{NameOthers, "yyynnmmh", "yyynnmmh", "yyynnmhh"},
	{ManageDevices, "yynnnmmh", "yynnnmmh", "yynnnmhh"},
	{Speak, "yyyyymmm", "yyyyymmm", "yyyyymmm"},
	{SpeakMuted, "yyynnmmm", "yyynnmmm", "yyynnmmm"},
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
	errNoGroup    = chat.Refuse(chat.CodeNotFound, "There is no such group.")
	errNotMember  = chat.Refuse(chat.CodeNotMember, "You are not in this group.")
	errNotAllowed = chat.Refuse(chat.CodeNotAllowed, "Your role in this group does not allow that.")
)

// cell is a place in the table.
type cell struct {
	role   Role
	action Action
	join   Join
}

// verdicts is the table, ready to be asked: the broker does with every publish.
var verdicts = func() map[cell]error {
	all := map[cell]error{}
	for _, r := range rules {
		for j, letters := range []string{r.open, r.approval, r.invitation} {
			for i, role := range Roles() {
				all[cell{role, r.action, Joins()[j]}] = map[byte]error{
					'y': nil, 'n': errNotAllowed, 'm': errNotMember, 'h': errNoGroup,
				}[letters[i]]
			}
		}
	}
	return all
}()

// May returns nil if the role may take the action in a group that is joined by
// join, and the refusal if not.
func May(role Role, action Action, join Join) error {
	verdict, ok := verdicts[cell{role, action, join}]
	if !ok {
		return errNoGroup // what the table does not know is not allowed
	}
	return verdict
}

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

// ContactAction is what somebody wants to do with a contact.
type ContactAction string

// The actions.
const (
	Ask      ContactAction = "ask" // asking who has asked accepts
	Accept   ContactAction = "accept"
	Decline  ContactAction = "decline"
	Withdraw ContactAction = "withdraw"
	Remark   ContactAction = "remark"
	Remove   ContactAction = "remove"
	Block    ContactAction = "block"
	Unblock  ContactAction = "unblock"
)

// contactRules is who may do what with whom: a letter for each relation.
//
//	y  allowed
//	-  there is nothing to do that with
//	c  conflict: it is so already, or the opposite is
//	s  nobody is one's own contact
var contactRules = []struct {
	action  ContactAction
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

// ContactActions are all actions of the table.
func ContactActions() []ContactAction {
	all := make([]ContactAction, len(contactRules))
	for i, r := range contactRules {
		all[i] = r.action
	}
	return all
}

var (
	errSelf      = chat.Refuse(chat.CodeInvalid, "That is you.")
	errNoContact = chat.Refuse(chat.CodeNotFound, "There is no such contact or request.")
	errIsContact = chat.Refuse(chat.CodeConflict, "You are contacts, or you have blocked them. Unblock them first.")
)

// MayWithContact returns nil if the action can be taken with somebody who is that
// to the person, and the refusal if not.
func MayWithContact(relation Relation, action ContactAction) error {
	for _, r := range contactRules {
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
