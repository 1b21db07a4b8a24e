package origin_test

import (
	"strings"
	"testing"

	"mynah/internal/origin"
)

// The whole origin must match: a host with the same suffix, another scheme or another
// port is refused.
func TestAllow(t *testing.T) {
	t.Parallel()
	l, err := origin.Parse([]string{"https://chat.example.com", "https://*.example.org:8443", "http://[::1]:80"})
	if err != nil {
		t.Fatal(err)
	}
	for o, want := range map[string]bool{
		"https://chat.example.com": true, "https://chat.example.com:443": true, "HTTPS://Chat.Example.COM": true,
		"https://a.example.org:8443": true, "https://a.b.example.org:8443": true, "http://[::1]": true,
		"http://chat.example.com": false, "https://chat.example.com:444": false, "https://evilchat.example.com": false,
		"https://chat.example.com.evil.net": false, "https://example.org:8443": false, "https://evilexample.org:8443": false,
		"https://a.example.org": false, "https://chat.example.com/": false, "https://user@chat.example.com": false, "null": false, "": false,
	} {
		if l.Allow(o) != want {
			t.Errorf("%q is allowed: %t", o, !want)
		}
	}
	if l.Any() {
		t.Error("a list of some is of all")
	}
	all, err := origin.Parse([]string{"*"})
	if err != nil || !all.Any() || !all.Allow("null") {
		t.Errorf("*: %v", err)
	}
	if none := (origin.List{}); none.Any() || none.Allow("https://chat.example.com") {
		t.Error("an empty list allows a page")
	}
	for _, wrong := range []string{"", "chat.example.com", "https://", "https://*", "https://*example.com", "https://a.*.com", "https://a.com/path", "https://a.com?x"} {
		if _, err := origin.Parse([]string{wrong}); err == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}

// Mini-games on iOS send an origin that no page can have; it is allowed. An origin without
// a host, which any page can send, is allowed only if the list names it.
func TestOriginsWithoutHost(t *testing.T) {
	t.Parallel()
	parse := func(patterns ...string) origin.List {
		l, err := origin.Parse(patterns)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, tc := range []struct {
		list                  origin.List
		weapp, file, null, at bool
	}{
		{origin.List{}, true, false, false, false},
		{parse("https://chat.example.com"), true, false, false, true},
		{parse("weapp://wechat-game-runtime"), true, false, false, false},
		{parse("file://"), true, true, false, false},
		{parse("null", "https://chat.example.com"), true, false, true, true},
		{parse("*"), true, true, true, true},
	} {
		for o, want := range map[string]bool{
			"weapp://wechat-game-runtime": tc.weapp, "WEAPP://other": tc.weapp, "file://": tc.file, "null": tc.null, "https://chat.example.com": tc.at,
			"weapp:": tc.list.Any(), "file:///": tc.list.Any(), "NULL": tc.list.Any(), "file://host": tc.list.Any(),
		} {
			if tc.list.Allow(o) != want {
				t.Errorf("%+v: %q is allowed: %t", tc.list, o, !want)
			}
		}
	}
}

// A client's text is safe in a log line.
func TestPrintable(t *testing.T) {
	t.Parallel()
	if got := origin.Printable([]string{"https://a\nb", "\x1b[31m\xff"}); got != "https://a?b, ?[31m?" {
		t.Errorf("printed as %q", got)
	}
	if got := origin.Printable([]string{strings.Repeat("ä", 5000)}); len(got) > 210 {
		t.Errorf("%d bytes of a long one", len(got))
	}
}

func TestSame(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		origin, host string
		want         bool
	}{
		{"http://localhost:8080", "localhost:8080", true},
		{"https://a.com", "A.com:443", true},
		{"https://a.com:443", "a.com", true},
		{"http://[::1]", "[::1]:80", true},
		{"https://a.com", "a.com:80", false},
		{"https://a.com", "b.com", false},
		{"null", "null", false},
	} {
		if origin.SameHost(tc.origin, tc.host) != tc.want {
			t.Errorf("%q is from %q: %t", tc.origin, tc.host, !tc.want)
		}
	}
}
