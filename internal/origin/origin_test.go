package origin_test

import (
	"testing"

	"mynah/internal/origin"
)

// What is allowed is the whole origin: a host that ends alike, another scheme or port is
// another one.
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
	if l.Empty() || l.Any() {
		t.Error("a list of some is empty, or of all")
	}
	all, err := origin.Parse([]string{"*"})
	if err != nil || !all.Any() || all.Empty() || !all.Allow("null") {
		t.Errorf("*: %v", err)
	}
	if none := (origin.List{}); !none.Empty() || none.Any() || none.Allow("https://chat.example.com") {
		t.Error("an empty list allows something")
	}
	for _, wrong := range []string{"", "chat.example.com", "https://", "https://*", "https://*example.com", "https://a.*.com", "https://a.com/path", "https://a.com?x"} {
		if _, err := origin.Parse([]string{wrong}); err == nil {
			t.Errorf("%q is taken", wrong)
		}
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
		if origin.Same(tc.origin, tc.host) != tc.want {
			t.Errorf("%q is from %q: %t", tc.origin, tc.host, !tc.want)
		}
	}
}
