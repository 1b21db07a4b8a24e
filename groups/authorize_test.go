package groups_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"mynah/chat"
	"mynah/groups"
)

// what the table must say, written down a second time and by another hand: the
// roles that may, for each action. Where the way to join matters it is named.
var allowed = map[groups.Action]string{
	groups.ViewGroup:         "operator owner admin member invited outsider/open outsider/approval device",
	groups.ViewMembers:       "operator owner admin member device",
	groups.EditGroup:         "operator owner admin",
	groups.SetJoin:           "operator owner",
	groups.MuteAll:           "operator owner admin",
	groups.Dissolve:          "operator owner",
	groups.Transfer:          "operator owner",
	groups.SetAdmins:         "operator owner",
	groups.JoinGroup:         "operator owner admin member invited outsider/open device",
	groups.AskToJoin:         "outsider/approval",
	groups.JoinByLink:        "operator owner admin member invited outsider device",
	groups.Leave:             "admin member device",
	groups.Invite:            "operator owner admin member/open",
	groups.ManageInvitations: "operator owner admin",
	groups.ManageLinks:       "operator owner admin",
	groups.DecideRequests:    "operator owner admin",
	groups.RemoveMember:      "operator owner admin",
	groups.RemoveAdmin:       "operator owner",
	groups.ManageBans:        "operator owner admin",
	groups.MuteMember:        "operator owner admin",
	groups.MuteAdmin:         "operator owner",
	groups.SetOwnNickname:    "owner admin member device",
	groups.SetNicknames:      "operator owner admin",
	groups.ManageDevices:     "operator owner",
	groups.Speak:             "operator owner admin member device",
	groups.SpeakWhenMuted:    "operator owner admin",
}

func code(err error) chat.Code {
	refusal, _ := errors.AsType[*chat.Error](err)
	if refusal == nil {
		return ""
	}
	return refusal.Code
}

// Every role, every action, every way to join.
func TestTable(t *testing.T) {
	t.Parallel()
	if len(allowed) != len(groups.Actions()) {
		t.Errorf("the table has %d actions, this test %d", len(groups.Actions()), len(allowed))
	}
	for _, action := range groups.Actions() {
		for _, role := range groups.Roles() {
			for _, join := range groups.JoinPolicies() {
				may := false
				for one := range strings.FieldsSeq(allowed[action]) {
					may = may || one == string(role) || one == fmt.Sprintf("%s/%s", role, join)
				}
				err := groups.May(role, action, join)
				if (err == nil) != may {
					t.Errorf("%s: %s in a group of join %s: %v", action, role, join, err)
				}
				if err == nil {
					continue
				}
				// What a refusal may tell. On MQTT everything is not_member.
				want := map[groups.Role]chat.Code{
					groups.Banned: chat.CodeNotFound, groups.Invited: chat.CodeNotMember, groups.Outsider: chat.CodeNotMember,
				}[role]
				switch {
				case action == groups.Speak || action == groups.SpeakWhenMuted:
					want = chat.CodeNotMember
					if role == groups.Member || role == groups.Device {
						want = chat.CodeNotAllowed
					}
				case role == groups.Outsider && join == groups.JoinInvitation:
					want = chat.CodeNotFound // such a group is not seen
				case action == groups.JoinGroup || action == groups.AskToJoin:
					want = chat.CodeNotAllowed
					if role == groups.Banned {
						want = chat.CodeNotFound
					}
				case want == "" && role == groups.Operator:
					want = chat.CodeNotMember
				case want == "":
					want = chat.CodeNotAllowed
				}
				if got := code(err); got != want {
					t.Errorf("%s: %s in a group of join %s is refused as %q, want %q", action, role, join, got, want)
				}
			}
		}
	}
	for _, join := range groups.JoinPolicies() {
		if code(groups.May(groups.Owner, "unheard of", join)) != chat.CodeNotFound {
			t.Error("an action that is not in the table is allowed")
		}
	}
	if groups.May("unheard of", groups.ViewGroup, groups.JoinOpen) == nil || groups.May(groups.Owner, groups.ViewGroup, "unheard of") == nil {
		t.Error("a role or a way to join that is not in the table is allowed something")
	}
}
