package social_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"mynah/api/social"
	"mynah/chat"
)

// what the table must say, written down a second time and by another hand: the
// roles that may, for each action. Where the way to join matters it is named.
var allowed = map[social.Action]string{
	social.ViewGroup:         "operator owner admin member invited outsider/open outsider/approval device",
	social.ViewMembers:       "operator owner admin member device",
	social.EditGroup:         "operator owner admin",
	social.SetJoin:           "operator owner",
	social.MuteAll:           "operator owner admin",
	social.Dissolve:          "operator owner",
	social.Transfer:          "operator owner",
	social.SetAdmins:         "operator owner",
	social.JoinGroup:         "operator owner admin member invited outsider/open device",
	social.AskToJoin:         "outsider/approval",
	social.JoinByLink:        "operator owner admin member invited outsider device",
	social.Leave:             "admin member device",
	social.Invite:            "operator owner admin member/open",
	social.ManageInvitations: "operator owner admin",
	social.ManageLinks:       "operator owner admin",
	social.DecideRequests:    "operator owner admin",
	social.RemoveMember:      "operator owner admin",
	social.RemoveAdmin:       "operator owner",
	social.ManageBans:        "operator owner admin",
	social.MuteMember:        "operator owner admin",
	social.MuteAdmin:         "operator owner",
	social.NameOneself:       "owner admin member device",
	social.NameOthers:        "operator owner admin",
	social.ManageDevices:     "operator owner",
	social.Speak:             "operator owner admin member device",
	social.SpeakMuted:        "operator owner admin",
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
	if len(allowed) != len(social.Actions()) {
		t.Errorf("the table has %d actions, this test %d", len(social.Actions()), len(allowed))
	}
	for _, action := range social.Actions() {
		for _, role := range social.Roles() {
			for _, join := range social.Joins() {
				may := false
				for one := range strings.FieldsSeq(allowed[action]) {
					may = may || one == string(role) || one == fmt.Sprintf("%s/%s", role, join)
				}
				err := social.May(role, action, join)
				if (err == nil) != may {
					t.Errorf("%s: %s in a group of join %s: %v", action, role, join, err)
				}
				if err == nil {
					continue
				}
				// What a refusal may tell. On MQTT everything is not_member.
				want := map[social.Role]chat.Code{
					social.Banned: chat.CodeNotFound, social.Invited: chat.CodeNotMember, social.Outsider: chat.CodeNotMember,
				}[role]
				switch {
				case action == social.Speak || action == social.SpeakMuted:
					want = chat.CodeNotMember
					if role == social.Member || role == social.Device {
						want = chat.CodeNotAllowed
					}
				case role == social.Outsider && join == social.JoinInvitation:
					want = chat.CodeNotFound // such a group is not seen
				case action == social.JoinGroup || action == social.AskToJoin:
					want = chat.CodeNotAllowed
					if role == social.Banned {
						want = chat.CodeNotFound
					}
				case want == "" && role == social.Operator:
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
	for _, join := range social.Joins() {
		if code(social.May(social.Owner, "unheard of", join)) != chat.CodeNotFound {
			t.Error("an action that is not in the table is allowed")
		}
	}
	if social.May("unheard of", social.ViewGroup, social.JoinOpen) == nil || social.May(social.Owner, social.ViewGroup, "unheard of") == nil {
		t.Error("a role or a way to join that is not in the table is allowed something")
	}
}

// Every relation, every action.
func TestContactTable(t *testing.T) {
	t.Parallel()
	want := map[social.ContactAction]string{
		//                self    stranger  asked     incoming  contact   blocked
		social.Ask:      "invalid -         -         -         conflict  conflict",
		social.Accept:   "invalid not_found not_found -         not_found not_found",
		social.Decline:  "invalid not_found not_found -         not_found not_found",
		social.Withdraw: "invalid not_found -         not_found not_found not_found",
		social.Remark:   "invalid not_found not_found not_found -         not_found",
		social.Remove:   "invalid not_found not_found not_found -         not_found",
		social.Block:    "invalid -         -         -         -         -",
		social.Unblock:  "invalid -         -         -         -         -",
	}
	if len(want) != len(social.ContactActions()) {
		t.Errorf("the table has %d actions, this test %d", len(social.ContactActions()), len(want))
	}
	for _, action := range social.ContactActions() {
		for i, relation := range social.Relations() {
			expected := strings.Fields(want[action])[i]
			if expected == "-" {
				expected = ""
			}
			if got := code(social.MayWithContact(relation, action)); string(got) != expected {
				t.Errorf("%s with %s: %q, want %q", action, relation, got, expected)
			}
		}
	}
}
