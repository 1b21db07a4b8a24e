package chat_test

import (
	"strings"
	"testing"

	"mynah/chat"
)

// TestValidID guards the alphabet and the length of ids, on which topics, log
// keys and rendering without escapes rely.
func TestValidID(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"a", "Z", "0", "_", ".", "~", "-", "..", "alice", "A-z0_.~-", strings.Repeat("a", chat.MaxIDLen)} {
		if !chat.ValidID(id) {
			t.Errorf("%q is an id", id)
		}
	}
	for c := range 256 {
		id := string([]byte{byte(c)})
		if want := strings.Contains("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.~-", id); chat.ValidID(id) != want {
			t.Errorf("ValidID(%q) is %v", id, !want)
		}
	}
	for _, id := range []string{"", "a b", "a/b", "a+", "#", "é", "大", "a\x00", "\xff", strings.Repeat("a", chat.MaxIDLen+1)} {
		if chat.ValidID(id) {
			t.Errorf("%q is no id", id)
		}
	}
}

// TestParseTopic guards that nothing under the chat's own prefixes is ever taken
// for a plain topic, which acl alone would rule.
func TestIsBridgeState(t *testing.T) {
	t.Parallel()
	for topic, want := range map[string]bool{
		"$SYS/broker/connection/hall.mynah/state": true, "$SYS/broker/connection/a b/state": true,
		"$SYS/broker/connection/state": false, "$SYS/broker/connection//state": false, "$SYS/broker/connection/a/b/state": false,
		"$SYS/broker/connection/+/state": false, "$SYS/broker/connection/a/state/x": false, "$SYS/broker/uptime": false,
		"x/$SYS/broker/connection/a/state": false, "": false,
	} {
		if got := chat.IsBridgeState(topic); got != want {
			t.Errorf("%s: %t", topic, got)
		}
	}
}

func TestParseTopic(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", chat.MaxIDLen)
	for name, want := range map[string]chat.Topic{
		"user/alice":               {Kind: chat.KindUser, ID: "alice"},
		"user/" + long:             {Kind: chat.KindUser, ID: long},
		"group/42":                 {Kind: chat.KindGroup, ID: "42"},
		"user/alice/signal":        {Kind: chat.KindUserSignal, ID: "alice"},
		"group/42/signal":          {Kind: chat.KindGroupSignal, ID: "42"},
		"user/alice/error":         {Kind: chat.KindUserError, ID: "alice"},
		"presence/alice":           {Kind: chat.KindPresence, ID: "alice"},
		"$mynah/token":             {Kind: chat.KindRenew},
		"user/signal":              {Kind: chat.KindUser, ID: "signal"},
		"user/signal/signal":       {Kind: chat.KindUserSignal, ID: "signal"},
		"user/error/error":         {Kind: chat.KindUserError, ID: "error"},
		"group/42/error":           {Kind: chat.KindReserved},
		"group/42/other":           {Kind: chat.KindReserved},
		"user/alice/signal/signal": {Kind: chat.KindReserved},
		"user/alice/":              {Kind: chat.KindReserved},
		"user//signal":             {Kind: chat.KindReserved},
		"user/":                    {Kind: chat.KindReserved},
		"user":                     {Kind: chat.KindReserved},
		"group":                    {Kind: chat.KindReserved},
		"group/":                   {Kind: chat.KindReserved},
		"group/a b":                {Kind: chat.KindReserved},
		"group/+":                  {Kind: chat.KindReserved},
		"user/#":                   {Kind: chat.KindReserved},
		"user/" + long + "a":       {Kind: chat.KindReserved},
		"presence":                 {Kind: chat.KindReserved},
		"presence/":                {Kind: chat.KindReserved},
		"presence/alice/x":         {Kind: chat.KindReserved},
		"$mynah":                   {Kind: chat.KindReserved},
		"$mynah/token/x":           {Kind: chat.KindReserved},
		"$mynah/other":             {Kind: chat.KindReserved},
		"$SYS/broker":              {Kind: chat.KindReserved},
		"$share/g/user/alice":      {Kind: chat.KindReserved},
		"$":                        {Kind: chat.KindReserved},
		"":                         {Kind: chat.KindReserved},
		"users/alice":              {Kind: chat.KindPlain},
		"User/alice":               {Kind: chat.KindPlain},
		"/user/alice":              {Kind: chat.KindPlain},
		"sensors/roof/temperature": {Kind: chat.KindPlain},
		" user/alice":              {Kind: chat.KindPlain},
	} {
		if got := chat.ParseTopic(name); got != want {
			t.Errorf("ParseTopic(%q): %+v, want %+v", name, got, want)
		}
	}
}

// TestTopicNames guards that the names that are made are the names that are read.
func TestTopicNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]chat.Topic{
		chat.UserTopic("a"):     {Kind: chat.KindUser, ID: "a"},
		chat.GroupTopic("a"):    {Kind: chat.KindGroup, ID: "a"},
		chat.ErrorTopic("a"):    {Kind: chat.KindUserError, ID: "a"},
		chat.PresenceTopic("a"): {Kind: chat.KindPresence, ID: "a"},
		chat.RenewTopic:         {Kind: chat.KindRenew},
	} {
		if got := chat.ParseTopic(name); got != want {
			t.Errorf("ParseTopic(%q): %+v, want %+v", name, got, want)
		}
	}
}

// TestConversation guards that both sides of a direct message are in the same
// conversation.
func TestConversation(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ sender, to, want string }{
		{"alice", "user/bob", "dm/alice/bob"},
		{"bob", "user/alice", "dm/alice/bob"},
		{"bob", "user/Bob", "dm/Bob/bob"},
		{"a-", "user/a", "dm/a/a-"},
		{"alice", "user/alice", "dm/alice/alice"},
		{"alice", "group/42", "group/42"},
		{"alice", "group/42/signal", ""},
		{"alice", "user/bob/signal", ""},
		{"alice", "presence/bob", ""},
		{"alice", "sensors", ""},
		{"alice", "user/", ""},
	} {
		if got := chat.Conversation(c.sender, c.to); got != c.want {
			t.Errorf("Conversation(%q, %q): %q, want %q", c.sender, c.to, got, c.want)
		}
	}
}
