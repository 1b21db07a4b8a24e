package api

import (
	"mynah/authhook"
	"mynah/chat"
)

// callerRoles are the roles of tokens, in the order of the table's columns.
var callerRoles = []authhook.Role{authhook.RoleUser, authhook.RoleDevice, authhook.RoleService, authhook.RoleArchiver, authhook.RoleAdmin}

// rightsByCall is which role may make which call that needs a token, by the name of the
// operation: a letter for each of user, device, service, archiver, admin. What somebody
// may do in a certain group, as its owner for example, is decided by the table of package
// groups besides, where a device is a member only.
//
//	y  allowed
//	p  not allowed: for people
//	d  not allowed: a device is a member only
//	a  not allowed: for operators
//	r  not allowed: the archiver only archives
var rightsByCall = map[string]string{
	"me":               "yyyyy",
	"editMe":           "yyyry",
	"deleteMe":         "yppry",
	"changePassword":   "yppra",
	"identities":       "yyyry",
	"linkCode":         "yppra",
	"linkWeChat":       "yppra",
	"linkTicket":       "yppra",
	"unlink":           "yppry",
	"sessions":         "yyyry",
	"endOtherSessions": "yyyry",
	"endSession":       "yyyry",

	"profile": "yyyry",
	"lookUp":  "yyyry",
	"find":    "yyyry",

	"createDevice":  "ydyry",
	"devices":       "ydyry",
	"device":        "ydyry",
	"renameDevice":  "ydyry",
	"deleteDevice":  "ydyry",
	"renewDevice":   "ydyry",
	"disableDevice": "ydyry",
	"enableDevice":  "ydyry",

	"disableAccount": "aaaay",
	"enableAccount":  "aaaay",
	"rotateKeys":     "aaaay",

	"askContact":        "yppry",
	"contactRequests":   "yyyry",
	"acceptContact":     "yppry",
	"endContactRequest": "yyyry",
	"contacts":          "yyyry",
	"contact":           "yyyry",
	"remarkContact":     "yyyry",
	"removeContact":     "yyyry",
	"blocks":            "yyyry",
	"block":             "yppry",
	"unblock":           "yyyry",
	"privacy":           "yyyry",
	"setPrivacy":        "yyyry",

	"createGroup":       "ydyry",
	"myGroups":          "yyyry",
	"group":             "yyyry",
	"editGroup":         "ydyry",
	"dissolveGroup":     "ydyry",
	"transferGroup":     "ydyry",
	"joinGroup":         "yyyry",
	"leaveGroup":        "yyyry",
	"members":           "yyyry",
	"member":            "yyyry",
	"editMember":        "yyyry", // one's own nickname
	"kickMember":        "ydyry",
	"bans":              "ydyry",
	"banMember":         "ydyry",
	"unbanMember":       "ydyry",
	"joinRequests":      "ydyry",
	"approveJoin":       "ydyry",
	"declineJoin":       "ydyry",
	"invite":            "ydyry",
	"invitations":       "ydyry",
	"uninvite":          "ydyry",
	"myInvitations":     "yyyry",
	"declineInvitation": "yyyry",
	"createLink":        "ydyry",
	"links":             "ydyry",
	"revokeLink":        "ydyry",
	"joinByLink":        "yyyry",
}

var (
	errPeopleOnly   = chat.Refuse(chat.CodeNotAllowed, "This is for people. Devices and services have tokens and keys.")
	errDeviceOnly   = chat.Refuse(chat.CodeNotAllowed, "A device is a member only: it makes and manages no groups and no devices.")
	errAdminOnly    = chat.Refuse(chat.CodeNotAllowed, "This is for the role admin.")
	errArchiverOnly = chat.Refuse(chat.CodeNotAllowed, "A token of role archiver is for the archiver alone.")
	errNotForAdmins = chat.Refuse(chat.CodeNotAllowed, "This is for people who sign in here, with a token of role user.")
)

// mayCall returns nil if the role may make the call, and the refusal if not.
func mayCall(role authhook.Role, operation string) error {
	letters := rightsByCall[operation]
	for i, one := range callerRoles {
		if one != role || i >= len(letters) {
			continue
		}
		switch letters[i] {
		case 'y':
			return nil
		case 'p':
			return errPeopleOnly
		case 'd':
			return errDeviceOnly
		case 'r':
			return errArchiverOnly
		case 'a':
			if role == authhook.RoleAdmin {
				return errNotForAdmins
			}
		}
	}
	return errAdminOnly
}
