package contacts_test

import (
	"errors"
	"strings"
	"testing"

	"mynah/chat"
	"mynah/people/contacts"
)

func code(err error) chat.Code {
	refusal, _ := errors.AsType[*chat.Error](err)
	if refusal == nil {
		return ""
	}
	return refusal.Code
}

// Every relation, every action.
func TestContactTable(t *testing.T) {
	t.Parallel()
	want := map[contacts.Action]string{
		//                self    stranger  asked     incoming  contact   blocked
		contacts.Ask:      "invalid -         -         -         conflict  conflict",
		contacts.Accept:   "invalid not_found not_found -         not_found not_found",
		contacts.Decline:  "invalid not_found not_found -         not_found not_found",
		contacts.Withdraw: "invalid not_found -         not_found not_found not_found",
		contacts.Remark:   "invalid not_found not_found not_found -         not_found",
		contacts.Remove:   "invalid not_found not_found not_found -         not_found",
		contacts.Block:    "invalid -         -         -         -         -",
		contacts.Unblock:  "invalid -         -         -         -         -",
	}
	if len(want) != len(contacts.Actions()) {
		t.Errorf("the table has %d actions, this test %d", len(contacts.Actions()), len(want))
	}
	for _, action := range contacts.Actions() {
		for i, relation := range contacts.Relations() {
			expected := strings.Fields(want[action])[i]
			if expected == "-" {
				expected = ""
			}
			if got := code(contacts.May(relation, action)); string(got) != expected {
				t.Errorf("%s with %s: %q, want %q", action, relation, got, expected)
			}
		}
	}
}
