package authhook_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mynah/authhook"
	"mynah/chat"
)

// town is a Directory with people and groups to try the rules on:
//
//   - bob has blocked everybody, everyone else takes messages;
//   - "club" has alice as a member, in "choir" she is muted, "closed" she is
//     banned from, "square" is an open room, "dark" cannot be looked up;
//   - hidden may not be seen.
type town struct {
	authhook.OpenDirectory
	down bool // nothing can be looked up
}

var (
	errBlocked = chat.Refuse(chat.CodeNotAllowed, "blocked")
	errMuted   = chat.Refuse(chat.CodeMuted, "muted")
	errBanned  = chat.Refuse(chat.CodeNotMember, "banned")
	errDark    = errors.New("connection refused: postgres://user:hunter2@db")
)

func (d town) Groups(context.Context, string) ([]string, error) {
	if d.down {
		return nil, errDark
	}
	return []string{"club", "choir"}, nil
}

func (d town) MayWrite(_ context.Context, _, to string) error {
	switch {
	case d.down:
		return errDark
	case to == "bob":
		return errBlocked
	}
	return nil
}

func (d town) MaySpeak(_ context.Context, _, group string, member bool) error {
	switch {
	case d.down || group == "dark":
		return errDark
	case group == "closed":
		return errBanned
	case group == "choir":
		return errMuted
	case group == "club" || member:
		return nil
	}
	return chat.Refuse(chat.CodeNotMember, "not in")
}

func (d town) MaySee(_ context.Context, _, id string) error {
	switch {
	case d.down:
		return errDark
	case id == "hidden":
		return errBlocked
	}
	return nil
}

func (d town) JoinBySubscribing(_ context.Context, _, group string) (bool, error) {
	if d.down || group == "dark" {
		return false, errDark
	}
	return group == "square", nil
}

var roles = []authhook.Role{authhook.RoleUser, authhook.RoleDevice, authhook.RoleService, authhook.RoleArchiver, authhook.RoleAdmin}

// alice returns her identity in a role: a member of "card" and banned from
// "closed" by token, with an acl.
func alice(role authhook.Role) *authhook.Identity {
	return &authhook.Identity{
		Subject: "alice", Role: role, Groups: []string{"card", "closed", "dark"},
		Pub:     []string{"lab/+/set", "public/#", "user/#", "$SYS/#"},
		Sub:     []string{"lab/#", "group/#", "presence/#", "$SYS/#", "$other/#"},
		Expires: time.Now().Add(time.Hour),
	}
}

// code returns the code of a refusal, or "ok".
func code(t *testing.T, err error) chat.Code {
	t.Helper()
	t.Helper()
	if err == nil {
		return "ok"
	}
	// A plain type assertion: every refusal is a *chat.Error itself, so that
	// nothing internal can reach a client around it.
	refusal, ok := err.(*chat.Error) //nolint:errorlint // see above
	if !ok {
		t.Fatalf("refusal is a %T: %v", err, err)
	}
	return refusal.Code
}

// rule is one row: what the five roles get, in the order of roles.
type rule struct {
	topic string
	want  [5]chat.Code
}

// all gives every role the same.
func all(c chat.Code) [5]chat.Code { return [5]chat.Code{c, c, c, c, c} }

// people gives users and devices one thing, service and admin another, the
// archiver a third.
func people(c, staff, archiver chat.Code) [5]chat.Code {
	return [5]chat.Code{c, c, staff, archiver, staff}
}

const (
	okay   chat.Code = "ok"
	denied           = chat.CodeNotAllowed
	bad              = chat.CodeBadTopic
	out              = chat.CodeNotMember
	later            = chat.CodeUnavailable
)

// TestCanPublish is the table "who may publish" of PROTOCOL.md for every role
// and every kind of topic, and the bad-input row "publish to another's topic, a
// group that one is not in, presence/…, $SYS/…, a wildcard".
func TestCanPublish(t *testing.T) {
	t.Parallel()
	for _, r := range []rule{
		{"user/carol", people(okay, okay, denied)},
		{"user/carol/signal", people(okay, okay, denied)},
		{"user/bob", people(denied, okay, denied)}, // has blocked alice
		{"user/bob/signal", people(denied, okay, denied)},
		{"user/alice", people(okay, okay, denied)}, // a note to oneself
		{"group/club", people(okay, okay, denied)},
		{"group/club/signal", people(okay, okay, denied)},
		{"group/card", people(okay, okay, denied)}, // by token
		{"group/choir", people(chat.CodeMuted, okay, denied)},
		{"group/choir/signal", people(chat.CodeMuted, okay, denied)},
		{"group/closed", people(out, okay, denied)}, // the token does not help
		{"group/square", people(out, okay, denied)}, // open, but not joined
		{"group/other", people(out, okay, denied)},
		{"group/dark", people(later, okay, denied)},
		{chat.RenewTopic, all(okay)},
		{"lab/1/set", people(okay, okay, denied)},
		{"lab/1/get", people(denied, denied, denied)},
		{"public", people(okay, okay, denied)},
		{"public/a/b", people(okay, okay, denied)},
		{"elsewhere", all(denied)},
		// Never, whatever the acl says.
		{"user/alice/error", all(denied)},
		{"user/carol/error", all(denied)},
		{"user/carol/other", all(denied)},
		{"user/carol/signal/x", all(denied)},
		{"user/", all(denied)},
		{"user", all(denied)},
		{"group", all(denied)},
		{"group/a b", all(denied)},
		{"presence/alice", all(denied)},
		{"presence", all(denied)},
		{"$SYS/broker/uptime", all(denied)},
		{"$mynah/other", all(denied)},
		{"$share/g/user/carol", all(denied)},
		// No names.
		{"", all(bad)},
		{"#", all(bad)},
		{"+", all(bad)},
		{"user/+", all(bad)},
		{"user/#", all(bad)},
		{"group/+", all(bad)},
		{"lab/+/set", all(bad)},
		{"public/#", all(bad)},
		{"presence/+", all(bad)},
		{"$SYS/#", all(bad)},
		{"public/\x00", all(bad)},
		{"public/\xff", all(bad)},
	} {
		p := authhook.NewPolicy(town{})
		for i, role := range roles {
			if got := code(t, p.CanPublish(t.Context(), alice(role), r.topic)); got != r.want[i] {
				t.Errorf("%s publishes to %q: got %s, want %s", role, r.topic, got, r.want[i])
			}
			want := r.want[i]
			if r.topic == chat.RenewTopic {
				want = denied // a token is no last will
			}
			if got := code(t, p.CanWill(t.Context(), alice(role), r.topic)); got != want {
				t.Errorf("%s leaves a will on %q: got %s, want %s", role, r.topic, got, want)
			}
		}
	}
}

// TestCanSubscribe is the table "who may subscribe" of PROTOCOL.md for every role
// and every kind of filter, and the bad-input row "subscribe to #, user/+,
// user/bob as alice, $share/x/user/bob".
func TestCanSubscribe(t *testing.T) {
	t.Parallel()
	for _, r := range []rule{
		{"user/alice", all(okay)},
		{"user/alice/signal", all(okay)},
		{"user/alice/error", all(okay)},
		{"user/bob", people(denied, okay, denied)},
		{"user/bob/signal", people(denied, okay, denied)},
		{"user/bob/error", people(denied, okay, denied)},
		{"user/+", people(denied, okay, denied)},
		{"user/+/signal", people(denied, okay, denied)},
		{"user/alice/#", people(denied, okay, denied)},
		{"user/alice/+", people(denied, okay, denied)},
		{"user/#", people(denied, okay, okay)},
		{"group/#", people(denied, okay, okay)},
		{"group/+/#", people(denied, okay, denied)},
		{"group/+", all(okay)},
		{"group/+/signal", all(okay)},
		{"group/+/other", people(denied, okay, denied)},
		{"group/club", all(okay)},
		{"group/club/signal", all(okay)},
		{"group/choir", all(okay)}, // muted people may listen
		{"group/card", all(okay)},
		{"group/dark", all(okay)}, // by token, when nobody can tell
		{"group/closed", people(out, okay, out)},
		{"group/square", people(okay, okay, out)}, // the archiver joins nothing
		{"group/square/signal", people(out, okay, out)},
		{"group/other", people(out, okay, out)},
		{"group/other/#", people(denied, okay, denied)},
		{"presence/alice", all(okay)},
		{"presence/carol", all(okay)},
		{"presence/hidden", people(denied, okay, denied)},
		{"presence/+", people(denied, okay, denied)},
		{"presence/#", people(denied, okay, denied)},
		{"$SYS/#", people(denied, okay, okay)},
		{"$SYS/broker/uptime", people(denied, okay, okay)},
		{"lab/#", all(okay)},
		{"lab/+/x/#", all(okay)},
		{"lab", all(okay)},
		{"$share/g/lab/x", all(okay)},
		{"+/x", all(denied)},
		{"#", all(denied)},
		{"+", all(denied)},
		{"$share/g/#", all(denied)},
		{"elsewhere", all(denied)},
		// Never, whatever the acl says.
		{"user", all(denied)},
		{"group", all(denied)},
		{"presence", all(denied)},
		{"$other/x", all(denied)},
		{"$mynah/token", all(denied)},
		{"$mynah/#", all(denied)},
		{"$share/x/user/bob", all(denied)},
		{"$share/x/user/alice", all(denied)},
		{"$share/x/group/+", all(denied)},
		{"$share/x/presence/alice", all(denied)},
		{"$share/x/$SYS/#", all(denied)},
		{"$share/x/$share/y/user/bob", all(denied)},
		// No filters.
		{"", all(bad)},
		{"a/#/b", all(bad)},
		{"lab/a+", all(bad)},
		{"user/bob#", all(bad)},
		{"$share", all(bad)},
		{"$share/", all(bad)},
		{"$share/g", all(bad)},
		{"$share/g/", all(bad)},
		{"$share//lab", all(bad)},
		{"$share/+/lab", all(bad)},
		{"lab/\x00", all(bad)},
	} {
		p := authhook.NewPolicy(town{})
		for i, role := range roles {
			if got := code(t, p.CanSubscribe(t.Context(), alice(role), r.topic)); got != r.want[i] {
				t.Errorf("%s subscribes to %q: got %s, want %s", role, r.topic, got, r.want[i])
			}
		}
	}
}

// TestHashInACL: "#" opens all plain topics and nothing else.
func TestHashInACL(t *testing.T) {
	t.Parallel()
	p := authhook.NewPolicy(nil)
	id := &authhook.Identity{Subject: "alice", Role: authhook.RoleUser, Pub: []string{"#"}, Sub: []string{"#"}}
	for topic, want := range map[string]chat.Code{
		"#": okay, "+/bob": okay, "+": okay, "a/#": okay, "$share/g/#": okay,
		"user/bob": denied, "user/#": denied, "group/#": denied, "$SYS/#": denied, "$x": denied, "group/other": out,
	} {
		if got := code(t, p.CanSubscribe(t.Context(), id, topic)); got != want {
			t.Errorf("subscribe to %q: got %s, want %s", topic, got, want)
		}
	}
	for topic, want := range map[string]chat.Code{
		"a/b": okay, "presence/bob": denied, "$SYS/x": denied, "$x": denied, "group/other": out, "user/bob/error": denied,
	} {
		if got := code(t, p.CanPublish(t.Context(), id, topic)); got != want {
			t.Errorf("publish to %q: got %s, want %s", topic, got, want)
		}
	}
}

// TestUnknownRole: an identity that no Verifier made has no rights by accident.
func TestUnknownRole(t *testing.T) {
	t.Parallel()
	p := authhook.NewPolicy(nil)
	for _, role := range []authhook.Role{"", "root"} {
		for _, topic := range []string{"user/alice", "lab/1/set", "group/card", chat.RenewTopic} {
			if p.CanPublish(t.Context(), alice(role), topic) == nil || p.CanSubscribe(t.Context(), alice(role), topic) == nil {
				t.Errorf("role %q was allowed %s", role, topic)
			}
		}
	}
}

// TestNoIdentity: a client that is gone may do nothing, and nobody panics.
func TestNoIdentity(t *testing.T) {
	t.Parallel()
	p := authhook.NewPolicy(town{})
	for _, topic := range []string{"user/alice", "group/club", "lab/1", chat.RenewTopic} {
		if p.CanPublish(t.Context(), nil, topic) == nil || p.CanSubscribe(t.Context(), nil, topic) == nil || p.CanWill(t.Context(), nil, topic) == nil {
			t.Errorf("nobody was allowed %s", topic)
		}
	}
	if groups, err := p.Groups(t.Context(), nil); len(groups) > 0 || err != nil {
		t.Errorf("nobody is in %v, %v", groups, err)
	}
}

// TestDirectoryDown: nothing internal reaches the client, and what the token
// alone says stays.
func TestDirectoryDown(t *testing.T) {
	t.Parallel()
	p := authhook.NewPolicy(town{down: true})
	id := alice(authhook.RoleUser)
	for what, tc := range map[string]struct {
		err  error
		want chat.Code
	}{
		"publish to a person":      {p.CanPublish(t.Context(), id, "user/carol"), later},
		"publish to a group":       {p.CanPublish(t.Context(), id, "group/card"), later},
		"publish a note":           {p.CanPublish(t.Context(), id, "user/alice"), okay},
		"publish plain":            {p.CanPublish(t.Context(), id, "lab/1/set"), okay},
		"subscribe own":            {p.CanSubscribe(t.Context(), id, "user/alice"), okay},
		"subscribe group by token": {p.CanSubscribe(t.Context(), id, "group/card"), okay},
		"subscribe other group":    {p.CanSubscribe(t.Context(), id, "group/club"), later},
		"subscribe presence":       {p.CanSubscribe(t.Context(), id, "presence/carol"), later},
	} {
		if got := code(t, tc.err); got != tc.want {
			t.Errorf("%s: got %s, want %s", what, got, tc.want)
		}
	}
	if _, err := p.Groups(t.Context(), id); code(t, err) != later {
		t.Errorf("groups: %v", err)
	}
}

func TestGroups(t *testing.T) {
	t.Parallel()
	got, err := authhook.NewPolicy(town{}).Groups(t.Context(), alice(authhook.RoleUser))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"card", "choir", "club", "dark"}, got); diff != "" {
		t.Errorf("of token and directory, less the ban: %s", diff)
	}
	got, err = authhook.NewPolicy(nil).Groups(t.Context(), alice(authhook.RoleUser))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"card", "closed", "dark"}, got); diff != "" {
		t.Errorf("without a database: %s", diff)
	}
}

// TestCanPublishDoesNotAllocate guards the publish path, allowed and refused.
func TestCanPublishDoesNotAllocate(t *testing.T) { // AllocsPerRun forbids t.Parallel
	p := authhook.NewPolicy(nil)
	id := alice(authhook.RoleUser)
	ctx := t.Context()
	for _, topic := range []string{"user/bob", "user/alice/signal", "group/card", "group/other", "presence/bob", "lab/1/set", "elsewhere", "user/+"} {
		if n := testing.AllocsPerRun(100, func() { _ = p.CanPublish(ctx, id, topic) }); n > 0 {
			t.Errorf("%s: %v allocations", topic, n)
		}
	}
}

func BenchmarkCanPublish(b *testing.B) {
	p := authhook.NewPolicy(nil)
	ctx := b.Context()
	for _, groups := range []int{1, 1000} {
		id := alice(authhook.RoleUser)
		id.Groups = nil
		for i := range groups {
			id.Groups = append(id.Groups, fmt.Sprintf("group-%04d", i))
		}
		last := "group/" + id.Groups[len(id.Groups)-1]
		for name, topic := range map[string]string{"user": "user/bob", "group": last, "plain": "public/a/b"} {
			b.Run(fmt.Sprintf("%s/groups=%d", name, groups), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := p.CanPublish(ctx, id, topic); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	v := everything(b)
	for name, token := range map[string]string{
		"HS256": goodToken(authhook.TokenClaims{Subject: "alice", Groups: []string{"a", "b"}}),
		"EdDSA": must(authhook.MintEd25519(edKey(), "own", authhook.TokenClaims{Subject: "alice"})),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
