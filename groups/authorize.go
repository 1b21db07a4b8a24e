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

// JoinPolicy says how one becomes a member of a group.
type JoinPolicy string

// The ways to join.
const (
	JoinOpen       JoinPolicy = "open"       // by wanting to, or by subscribing: a room
	JoinApproval   JoinPolicy = "approval"   // the owner or an admin approves
	JoinInvitation JoinPolicy = "invitation" // only with an invitation; others do not see the group
)

// JoinPolicies are all ways to join, in the order of the columns of the table.
func JoinPolicies() []JoinPolicy { return []JoinPolicy{JoinOpen, JoinApproval, JoinInvitation} }

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
	SetOwnNickname    Action = "name oneself" // one's nickname in the group
	SetNicknames      Action = "name others"
	ManageDevices     Action = "manage devices"
	Speak             Action = "speak"
	SpeakWhenMuted    Action = "speak when all are muted"
)

// rule is a line of the table: for each way to join, a letter for each role, in
// the order of Roles and JoinPolicies.
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
	{SetOwnNickname, "myyyymmh", "myyyymmh", "myyyymhh"},
	{SetNicknames, "yyynnmmh", "yyynnmmh", "yyynnmhh"},
	{ManageDevices, "yynnnmmh", "yynnnmmh", "yynnnmhh"},
	{Speak, "yyyyymmm", "yyyyymmm", "yyyyymmm"},
	{SpeakWhenMuted, "yyynnmmm", "yyynnmmm", "yyynnmmm"},
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

// tableKey is what the table is asked for.
type tableKey struct {
	role   Role
	action Action
	join   JoinPolicy
}

// decisions is the table, ready to be asked: the broker does with every publish.
var decisions = func() map[tableKey]error {
	all := map[tableKey]error{}
	for _, r := range rules {
		for j, letters := range []string{r.open, r.approval, r.invitation} {
			for i, role := range Roles() {
				all[tableKey{role, r.action, JoinPolicies()[j]}] = map[byte]error{
					'y': nil, 'n': errNotAllowed, 'm': errNotMember, 'h': errNoGroup,
				}[letters[i]]
			}
		}
	}
	return all
}()

// May returns nil if the role may take the action in a group that is joined by
// join, and the refusal if not.
func May(role Role, action Action, join JoinPolicy) error {
	verdict, ok := decisions[tableKey{role, action, join}]
	if !ok {
		return errNoGroup // what the table does not know is not allowed
	}
	return verdict
}
