package authhook_test

import (
	"context"
	"strings"
	"testing"
	"unicode/utf8"

	"mynah/authhook"
	"mynah/chat"
)

const notAnID = "; ids are 1 to 64 characters of A-Z a-z 0-9 _ . ~ -"

// asks is what clients are told who want something of a topic.
var asks = map[string]func(context.Context, *authhook.Policy, *authhook.Identity, string) error{
	"publishes to": func(ctx context.Context, p *authhook.Policy, id *authhook.Identity, topic string) error {
		return authhook.WhyNotPublish(id, topic, p.CanPublish(ctx, id, topic))
	},
	"leaves a will on": func(ctx context.Context, p *authhook.Policy, id *authhook.Identity, topic string) error {
		return authhook.WhyNotPublish(id, topic, p.CanWill(ctx, id, topic))
	},
	"subscribes to": func(ctx context.Context, p *authhook.Policy, id *authhook.Identity, topic string) error {
		return authhook.WhyNotSubscribe(id, topic, p.CanSubscribe(ctx, id, topic))
	},
}

// reasonOf returns the reason of a refusal, "" if there is none.
func reasonOf(tb testing.TB, err error) string {
	tb.Helper()
	if err == nil {
		return ""
	}
	refusal, ok := err.(*chat.Error) //nolint:errorlint // every refusal is one itself
	if !ok {
		tb.Fatalf("refusal is a %T: %v", err, err)
	}
	return refusal.Reason
}

// A refused publish, will and subscription say what is wrong and what to do, in the same
// words where it is the name. "user/al ice" was answered by "only the broker publishes there",
// and "users/alice" by "you may not publish there".
func TestReasonsOfRefusals(t *testing.T) {
	t.Parallel()
	p := authhook.NewPolicy(town{})
	id := alice(authhook.RoleUser)
	aclPub := func(topic string) string {
		return `acl.pub of your token has no filter for "` + topic + `"; ask for a token that has one, or publish to user/<id> or group/<id>`
	}
	aclSub := func(filter string) string {
		return `acl.sub of your token has no filter that covers "` + filter + `"; ask for a token that has one. The chat is on user/alice and group/+`
	}
	const (
		others    = "what is below user/ is for each alone, and all of it for roles service and admin (user/# for archiver); yours is user/alice"
		allGroups = "all of group/ is for roles service and admin (group/# for archiver); subscribe to group/+ and group/+/signal for the groups that you are in"
		everybody = "presence of all is for roles service and admin; subscribe to presence/<id> of each"
		noName    = "not a topic name; wildcards are for subscriptions"
		noFilter  = "not a topic filter; + stands alone in its level, # alone in the last, and a shared one is $share/<name>/<filter>"
	)
	// What is no topic at all gets the same answer whatever one wants there.
	for topic, want := range map[string]string{
		"user/al ice":      `"al ice" is no id, because of ' ' (U+0020)` + notAnID,
		"users/alice":      `"users/alice" is no topic of the chat; did you mean user/alice?`,
		"groups/42":        `"groups/42" is no topic of the chat; did you mean group/42?`,
		"Group/42":         `"Group/42" is no topic of the chat; did you mean group/42?`,
		"user/":            "the id is missing" + notAnID,
		"user":             "the id is missing" + notAnID,
		"group":            "the id is missing" + notAnID,
		"presence":         "the id is missing" + notAnID,
		"/user/bob":        `"/user/bob" is no topic of the chat; did you mean user/bob?`,
		"user/bob/":        `"user/bob/" is no topic of the chat; did you mean user/bob?`,
		"group/42/signals": `"group/42/signals" is no topic of the chat; did you mean group/42/signal?`,
		"presence/a b":     `"a b" is no id, because of ' ' (U+0020)` + notAnID,
		"user/bob/inbox":   "there is no user/<id>/inbox; there are user/<id>, user/<id>/signal and user/<id>/error",
		"$mynah/tokens":    `"$mynah/tokens" is no topic of the chat; did you mean $mynah/token?`,
	} {
		for does, why := range asks {
			if got := reasonOf(t, why(t.Context(), p, id, topic)); got != want {
				t.Errorf("who %s %q is told\n%s, want\n%s", does, topic, got, want)
			}
		}
	}
	for topic, want := range map[string]string{
		"presence/bob":         "only the broker publishes to presence/<id>, when somebody comes or goes; tell other things on user/<id>/signal or group/<id>/signal",
		"user/bob/error":       "only the broker publishes to user/<id>/error; write to user/<id>",
		"$SYS/broker/uptime":   "only the broker publishes below $SYS/; choose a topic that does not begin with $",
		"$share/g/user/bob":    `$share/ is for subscriptions; publish to "user/bob"`,
		"$mynah/x":             "below $mynah/ there is $mynah/token alone, for a fresh token",
		"$x":                   "topics that begin with $ are the broker's; choose one that does not",
		"elsewhere":            aclPub("elsewhere"),
		"elsewhere/\u202euser": aclPub(`elsewhere/\u202euser`),
		"lab/1/get":            aclPub("lab/1/get"),
		"":                     "the topic is empty; name one, such as user/<id> or group/<id>",
		"lab/\x00":             "not a topic name; it has to be UTF-8 without U+0000, of at most 65,535 bytes",
		"user/+":               noName,
		"#":                    noName,
		"lab/1/set":            "",
		"user/carol":           "",
	} {
		if got := reasonOf(t, asks["publishes to"](t.Context(), p, id, topic)); got != want {
			t.Errorf("who publishes to %q is told\n%s, want\n%s", topic, got, want)
		}
		if got := reasonOf(t, asks["leaves a will on"](t.Context(), p, id, topic)); got != want {
			t.Errorf("who leaves a will on %q is told\n%s, want\n%s", topic, got, want)
		}
	}
	for filter, want := range map[string]string{
		"user/bob":               "that is for bob alone; yours is user/alice",
		"user/bob/signal":        "that is for bob alone; yours is user/alice",
		"user/+":                 others,
		"user/#":                 others,
		"user/+/signal":          others,
		"group/#":                allGroups,
		"group/other/#":          "there is no group/<id>/#; there are group/<id> and group/<id>/signal",
		"group/other":            "you are not in this group; join it or ask to be invited",
		"presence/+":             everybody,
		"presence/#":             everybody,
		"users/+":                `"users/+" is no topic of the chat; did you mean user/+?`,
		"groups/#":               `"groups/#" is no topic of the chat; did you mean group/#?`,
		"$share/x/users/bob":     `"users/bob" is no topic of the chat; did you mean user/bob?`,
		"$share/x/user/bob":      "chat topics cannot be shared subscriptions; subscribe without $share/<name>/",
		"$SYS/#":                 "$SYS/ is for roles archiver, service and admin; connect with a token of one of them",
		"$mynah/token":           "nothing is sent on $mynah/; publish a fresh token to $mynah/token to stay connected",
		"$other/x":               "of what begins with $ there are $SYS/ and $share/<name>/<filter> alone; choose a topic that does not begin with $",
		"#":                      aclSub("#"),
		"elsewhere/+":            aclSub("elsewhere/+"),
		"$share/g/elsewhere":     aclSub("elsewhere"),
		"a/#/b":                  noFilter,
		"$share/g":               noFilter,
		"":                       "the filter is empty; name one, such as user/<me> or group/+",
		"lab/+/x":                "",
		"user/alice":             "",
		"$share/g/lab/\u00e9tat": "",
	} {
		if got := reasonOf(t, asks["subscribes to"](t.Context(), p, id, filter)); got != want {
			t.Errorf("who subscribes to %q is told\n%s, want\n%s", filter, got, want)
		}
	}
	if got := reasonOf(t, asks["leaves a will on"](t.Context(), p, id, chat.RenewTopic)); got != "a token is no will, since its connection is over by then; publish it to $mynah/token while connected" {
		t.Errorf("a will on the renewal topic: %s", got)
	}
	for _, who := range []struct {
		id   *authhook.Identity
		want string
	}{
		{alice(authhook.RoleArchiver), `role "archiver" may not publish there; connect with a token of role user, device, service or admin`},
		{alice("root"), `role "root" may not publish there; connect with a token of role user, device, service or admin`},
		{nil, "the connection has no holder any more; connect again"},
	} {
		if got := reasonOf(t, asks["publishes to"](t.Context(), p, who.id, "user/bob")); got != who.want {
			t.Errorf("told\n%s, want\n%s", got, who.want)
		}
	}
	if got := reasonOf(t, asks["subscribes to"](t.Context(), p, nil, "user/bob")); got != "the connection has no holder any more; connect again" {
		t.Errorf("nobody, subscribing, is told %s", got)
	}
}

// Whatever somebody asks for, the reason fits into a packet and shows nothing that is not
// visible.
func TestReasonsAreBounded(t *testing.T) {
	t.Parallel()
	p := authhook.NewPolicy(town{})
	for _, topic := range []string{
		strings.Repeat("x", 65535), "user/" + strings.Repeat("爱", 20_000), strings.Repeat("user/", 13_000), "users/" + strings.Repeat("x", 60_000),
		"$share/g/" + strings.Repeat("x", 60_000), "group/42/" + strings.Repeat("\u202e", 20_000), "presence/bob/" + strings.Repeat("é", 30_000), "$" + strings.Repeat("é", 30_000),
	} {
		for _, role := range roles {
			for does, why := range asks {
				err := why(t.Context(), p, alice(role), topic)
				reason := reasonOf(t, err)
				if (err != nil) != (reason != "") || len(reason) > 500 || !utf8.ValidString(reason) || strings.Contains(reason, "\u202e") {
					t.Errorf("%s %s %.30q: %d bytes: %q", role, does, topic, len(reason), reason)
				}
			}
		}
	}
}
