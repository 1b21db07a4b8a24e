package forwarded_test

import (
	"net/http"
	"net/netip"
	"testing"

	"mynah/internal/forwarded"
)

var proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}

// Guards against a header that evades a limit, and against users of a proxy who share
// one limit because their address has a port or brackets.
func TestClient(t *testing.T) {
	t.Parallel()
	const peer = "127.0.0.1:9"
	for _, tc := range []struct {
		name   string
		peer   string
		header string
		lines  []string
		want   string
	}{
		{"not trusted", "192.0.2.1:5", forwarded.XForwardedFor, []string{"203.0.113.7"}, "192.0.2.1:5"},
		{"no header", peer, forwarded.XForwardedFor, nil, peer},
		{"the default header", peer, "", []string{"203.0.113.7"}, "203.0.113.7:0"},
		{"address", peer, forwarded.XForwardedFor, []string{"203.0.113.7"}, "203.0.113.7:0"},
		{"with port", peer, forwarded.XForwardedFor, []string{"203.0.113.7:51234"}, "203.0.113.7:51234"},
		{"IPv6", peer, forwarded.XForwardedFor, []string{"2001:db8::1"}, "[2001:db8::1]:0"},
		{"IPv6 in brackets", peer, forwarded.XForwardedFor, []string{"[2001:db8::1]"}, "[2001:db8::1]:0"},
		{"IPv6 with port", peer, forwarded.XForwardedFor, []string{"[2001:db8::1]:443"}, "[2001:db8::1]:443"},
		{"IPv6 with zone", peer, forwarded.XForwardedFor, []string{"fe80::1%eth0"}, "[fe80::1]:0"},
		{"IPv4 in IPv6", peer, forwarded.XForwardedFor, []string{"::ffff:203.0.113.7"}, "203.0.113.7:0"},
		{"spoofed", peer, forwarded.XForwardedFor, []string{"1.1.1.1, 203.0.113.7"}, "203.0.113.7:0"},
		{"two proxies", peer, forwarded.XForwardedFor, []string{"1.1.1.1, 203.0.113.7, 10.1.2.3:80"}, "203.0.113.7:0"},
		{"two lines", peer, forwarded.XForwardedFor, []string{"203.0.113.7", "10.1.2.3"}, "203.0.113.7:0"},
		{"only proxies", peer, forwarded.XForwardedFor, []string{"10.1.2.4, 10.1.2.3"}, "10.1.2.4:0"},
		{"a proxy by IPv6", "[fd00::1]:9", forwarded.XForwardedFor, []string{"203.0.113.7"}, "203.0.113.7:0"},
		{"a peer with a zone", "[fd00::1%eth0]:9", forwarded.XForwardedFor, []string{"203.0.113.7"}, "203.0.113.7:0"},
		{"unknown", peer, forwarded.XForwardedFor, []string{"203.0.113.7, unknown"}, peer},
		{"unknown behind a proxy", peer, forwarded.XForwardedFor, []string{"203.0.113.7, unknown, 10.1.2.3"}, "10.1.2.3:0"},
		{"nothing", peer, forwarded.XForwardedFor, []string{"203.0.113.7,"}, peer},
		{"port of too many digits", peer, forwarded.XForwardedFor, []string{"203.0.113.7:99999"}, peer},
		{"port that is none", peer, forwarded.XForwardedFor, []string{"203.0.113.7:http"}, peer},
		{"IPv4 in brackets", peer, forwarded.XForwardedFor, []string{"[203.0.113.7]"}, peer},
		{"open bracket", peer, forwarded.XForwardedFor, []string{"[2001:db8::1"}, peer},
		{"after the bracket", peer, forwarded.XForwardedFor, []string{"[2001:db8::1]x"}, peer},
		{"a name", peer, forwarded.XForwardedFor, []string{"localhost"}, peer},
		{"Unix socket", "@", forwarded.XForwardedFor, []string{"203.0.113.7"}, "invalid AddrPort"},

		// RFC 7239 sections 4, 6 and 7.
		{"for", peer, forwarded.Forwarded, []string{"for=203.0.113.7"}, "203.0.113.7:0"},
		{"case and others", peer, forwarded.Forwarded, []string{"By=10.0.0.1; For=203.0.113.7;proto=https"}, "203.0.113.7:0"},
		{"quoted", peer, forwarded.Forwarded, []string{`for="203.0.113.7:47011"`}, "203.0.113.7:47011"},
		{"quoted IPv6", peer, forwarded.Forwarded, []string{`for=1.1.1.1, for="[2001:db8:cafe::17]:4711";proto=https;by=10.0.0.1`}, "[2001:db8:cafe::17]:4711"},
		{"quoted pairs", peer, forwarded.Forwarded, []string{`for="203\.0.113.7"`}, "203.0.113.7:0"},
		{"obfuscated port", peer, forwarded.Forwarded, []string{`for="203.0.113.7:_x1"`}, "203.0.113.7:0"},
		{"obfuscated", peer, forwarded.Forwarded, []string{"for=203.0.113.7, for=_hidden"}, peer},
		{"unknown", peer, forwarded.Forwarded, []string{"for=203.0.113.7, for=unknown, for=10.1.2.3"}, "10.1.2.3:0"},
		{"a comma in quotes", peer, forwarded.Forwarded, []string{`for=203.0.113.7;secret="a, for=1.1.1.1;b"`}, "203.0.113.7:0"},
		{"a quote in quotes", peer, forwarded.Forwarded, []string{`for=203.0.113.7;secret="a\", for=1.1.1.1"`}, "203.0.113.7:0"},
		{"for twice", peer, forwarded.Forwarded, []string{"for=1.1.1.1;for=203.0.113.7"}, peer},
		{"no for", peer, forwarded.Forwarded, []string{"for=203.0.113.7, proto=https"}, peer},
		{"two lines", peer, forwarded.Forwarded, []string{"for=203.0.113.7", "for=10.1.2.3"}, "203.0.113.7:0"},
		// Guards against an unclosed quote of the client that hides what the
		// proxy adds after it.
		{"an open quote", peer, forwarded.Forwarded, []string{`for=1.1.1.1, x=", for="[2001:db8::1]"`}, peer},
		{"an open quote on a line of its own", peer, forwarded.Forwarded, []string{`for=1.1.1.1, x="`, "for=203.0.113.7"}, "203.0.113.7:0"},
		{"the other header", peer, forwarded.Forwarded, nil, peer},
	} {
		r := &http.Request{RemoteAddr: tc.peer, Header: http.Header{}}
		name := tc.header
		if name == "" {
			name = forwarded.XForwardedFor
		}
		for _, line := range tc.lines {
			r.Header.Add(name, line)
		}
		// Only the configured header is believed.
		if name == forwarded.Forwarded {
			r.Header.Set(forwarded.XForwardedFor, "9.9.9.9")
		} else {
			r.Header.Set(forwarded.Forwarded, "for=9.9.9.9")
		}
		if got := (forwarded.Source{Header: tc.header, Trusted: proxies}).Client(r).String(); got != tc.want {
			t.Errorf("%s: %s %q from %s: %s, want %s", tc.name, name, tc.lines, tc.peer, got, tc.want)
		}
	}
}

func TestHost(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		peer, header, name, value, want string
	}{
		{"127.0.0.1:9", forwarded.XForwardedFor, "X-Forwarded-Host", "chat.example", "chat.example"},
		{"192.0.2.1:9", forwarded.XForwardedFor, "X-Forwarded-Host", "chat.example", "own.example"},
		{"127.0.0.1:9", forwarded.XForwardedFor, "Forwarded", "host=chat.example", "own.example"},
		{"127.0.0.1:9", forwarded.Forwarded, "Forwarded", `for=1.1.1.1;host=evil.example, for=192.0.2.1;host="chat.example:8443"`, "chat.example:8443"},
		{"127.0.0.1:9", forwarded.Forwarded, "Forwarded", "for=192.0.2.1", "own.example"},
		{"127.0.0.1:9", forwarded.Forwarded, "X-Forwarded-Host", "chat.example", "own.example"},
		{"192.0.2.1:9", forwarded.Forwarded, "Forwarded", "host=chat.example", "own.example"},
	} {
		r := &http.Request{RemoteAddr: tc.peer, Host: "own.example", Header: http.Header{http.CanonicalHeaderKey(tc.name): {tc.value}}}
		if got := (forwarded.Source{Header: tc.header, Trusted: proxies}).Host(r); got != tc.want {
			t.Errorf("%s from %s, %s: %q: host %s, want %s", tc.header, tc.peer, tc.name, tc.value, got, tc.want)
		}
	}
}

func TestParseHeader(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"": forwarded.XForwardedFor, "forwarded": forwarded.Forwarded, "X-FORWARDED-FOR": forwarded.XForwardedFor} {
		if got, err := forwarded.ParseHeader(in); got != want || err != nil {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	if _, err := forwarded.ParseHeader("X-Real-IP"); err == nil {
		t.Error("X-Real-IP is taken")
	}
}

// No input makes the parser panic, or return an invalid address.
func FuzzClient(f *testing.F) {
	for _, seed := range []string{"203.0.113.7", `for="[2001:db8::1]:443";by=x, for=1.1.1.1`, `for="a\`, "[::1]:_x", ",;=,", "for==,"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		for _, header := range []string{forwarded.XForwardedFor, forwarded.Forwarded} {
			r := &http.Request{RemoteAddr: "127.0.0.1:9", Header: http.Header{header: {line}}}
			if got := (forwarded.Source{Header: header, Trusted: proxies}).Client(r); !got.IsValid() || got.Addr().Zone() != "" || got.Addr().Is4In6() {
				t.Errorf("%s: %q: %s", header, line, got)
			}
			// A line that the proxy adds is believed, whatever the lines before it hold.
			r.Header[header] = append(r.Header[header], map[string]string{forwarded.XForwardedFor: "203.0.113.7", forwarded.Forwarded: "for=203.0.113.7"}[header])
			if got := (forwarded.Source{Header: header, Trusted: proxies}).Client(r).Addr().String(); got != "203.0.113.7" {
				t.Errorf("%s: %q hides the client: %s", header, line, got)
			}
		}
	})
}
