package chat_test

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"mynah/chat"
)

// A name that is nearly one of the chat's: what is wrong with it, and what was meant.
func TestMisnamed(t *testing.T) {
	t.Parallel()
	const ids = "; ids are 1 to 64 characters of A-Z a-z 0-9 _ . ~ -"
	meant := func(name, topic string) string {
		return `"` + name + `" is no topic of the chat; did you mean ` + topic + "?"
	}
	for name, want := range map[string]string{
		"user/al ice":                          `"al ice" is no id, because of ' ' (U+0020)` + ids,
		"user/爱丽丝":                             `"爱丽丝" is no id, because of '爱' (U+7231)` + ids,
		"user/al\u200bice":                     `"al\u200bice" is no id, because of '\u200b' (U+200B)` + ids,
		"user/a\xffb":                          `"a\xffb" is no id, because of the byte 0xFF` + ids,
		"user/a\ufffdb":                        `"a` + "\ufffd" + `b" is no id, because of '` + "\ufffd" + `' (U+FFFD)` + ids,
		"user/alice@example.com":               `"alice@example.com" is no id, because of '@' (U+0040)` + ids,
		"group/a b":                            `"a b" is no id, because of ' ' (U+0020)` + ids,
		"group/a b/signal":                     `"a b" is no id, because of ' ' (U+0020)` + ids,
		"presence/a:b":                         `"a:b" is no id, because of ':' (U+003A)` + ids,
		"user/" + strings.Repeat("x", 65):      `"` + strings.Repeat("x", 64) + `"… is no id, because it has 65 characters` + ids,
		"user/":                                "the id is missing" + ids,
		"user":                                 "the id is missing" + ids,
		"group":                                "the id is missing" + ids,
		"presence/":                            "the id is missing" + ids,
		"users/alice":                          meant("users/alice", "user/alice"),
		"User/alice":                           meant("User/alice", "user/alice"),
		"groups/42":                            meant("groups/42", "group/42"),
		"Group/42":                             meant("Group/42", "group/42"),
		"GROUP/42/SIGNAL":                      meant("GROUP/42/SIGNAL", "group/42/signal"),
		"groups/+":                             meant("groups/+", "group/+"),
		"users/#":                              meant("users/#", "user/#"),
		"Presence/bob":                         meant("Presence/bob", "presence/bob"),
		"/user/bob":                            meant("/user/bob", "user/bob"),
		"user/bob/":                            meant("user/bob/", "user/bob"),
		"user//bob":                            meant("user//bob", "user/bob"),
		"user/bob ":                            meant("user/bob ", "user/bob"),
		"group/42/signals":                     meant("group/42/signals", "group/42/signal"),
		"group/+/signals":                      meant("group/+/signals", "group/+/signal"),
		"user/bob/errors":                      meant("user/bob/errors", "user/bob/error"),
		"$mynah/tokens":                        meant("$mynah/tokens", "$mynah/token"),
		"mynah/token":                          meant("mynah/token", "$mynah/token"),
		"/token":                               meant("/token", "$mynah/token") + " A shell takes $mynah for a variable unless it is in single quotes",
		"users/al ice":                         `"users/al ice" is no topic of the chat; did you mean user/<id>? "al ice" is no id, because of ' ' (U+0020)` + ids,
		"dm/alice/bob":                         "dm/<a>/<b> names a conversation and is no topic; a direct message goes to user/<id> of the other one",
		"user/bob/inbox":                       "there is no user/<id>/inbox; there are user/<id>, user/<id>/signal and user/<id>/error",
		"user/bob/signal/x":                    "there is no user/<id>/signal/x; there are user/<id>, user/<id>/signal and user/<id>/error",
		"group/42/error":                       "there is no group/<id>/error; there are group/<id> and group/<id>/signal",
		"group/42/#":                           "there is no group/<id>/#; there are group/<id> and group/<id>/signal",
		"presence/bob/x":                       `there is nothing below presence/<id>; leave "/x" out`,
		"user/bob":                             "",
		"user/bob/signal":                      "",
		"user/bob/error":                       "",
		"group/42":                             "",
		"group/+":                              "",
		"group/+/signal":                       "",
		"user/#":                               "",
		"presence/+":                           "",
		"presence/bob":                         "",
		chat.RenewTopic:                        "",
		"$SYS/broker/uptime":                   "",
		"plant/1/temp":                         "",
		"house/bob":                            "",
		"users":                                "",
		"user-data/bob":                        "",
		"":                                     "",
		"/":                                    "",
		"#":                                    "",
		"x/" + strings.Repeat("user/", 20_000): "",
	} {
		if got := chat.Misnamed(name); got != want {
			t.Errorf("%.100q:\n got %s\nwant %s", name, got, want)
		}
	}
}

// What every name gets is bounded, UTF-8 and visible, since it goes into packets and logs; and
// there is a reason for each that is reserved below user/, group/ and presence/.
func FuzzMisnamed(f *testing.F) {
	for _, name := range []string{"user/al ice", "users/\x00", "group/\xff/signal", "presence/a/b/c", "//user//bob//", "user/\u202e", "Group/+/#", "user/" + strings.Repeat("爱", 100)} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		reason := chat.Misnamed(name)
		if len(reason) > 600 || !utf8.ValidString(reason) || strings.ContainsFunc(reason, unicode.IsControl) {
			t.Errorf("%q: %d bytes: %q", name, len(reason), reason)
		}
		first, _, _ := strings.Cut(name, "/")
		topic := chat.ParseTopic(name)
		if topic.Kind == chat.KindReserved && (first == "user" || first == "group" || first == "presence") != (reason != "") &&
			!strings.ContainsAny(name, "+#$") {
			t.Errorf("%q is reserved, and the reason is %q", name, reason)
		}
		if topic.ID != "" && reason != "" {
			t.Errorf("%q is a topic, and the reason that it is none is %q", name, reason)
		}
	})
}
