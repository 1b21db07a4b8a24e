// Package origin decides which web pages may use the server from another host. MQTT over
// WebSocket and the HTTP API use the same list. It guarantees that a page whose origin is
// not on the list is refused; another scheme, host or port is another origin. Parse makes
// a List, and Allow checks the Origin header of a request.
package origin

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// List is a list of allowed origins (RFC 6454). The zero value allows no web
// page.
type List struct {
	allowAll bool
	literals []string // of hostless
	patterns []pattern
}

// hostless are the origins of pages without a host: the files of a hybrid app, sandboxed
// frames, and redirects. Any page can send them, so they are allowed only if the list names
// them.
var hostless = []string{"file://", "null"}

// appSchemes are the schemes of origins that no page in a browser can have. The
// runtimes of mini-programs and mini-games send them (weapp://wechat-game-runtime).
// They are always allowed, like programs that send no origin.
var appSchemes = []string{"weapp"}

type pattern struct {
	scheme     string
	host       string // with its port unless that is the scheme's default; for *.host the part after the star
	subdomains bool   // hosts below host, not host itself
}

// Parse reads patterns such as https://chat.example.com, https://*.example.com:8443 and *,
// and the literals file:// and null.
func Parse(patterns []string) (List, error) {
	var l List
	for _, text := range patterns {
		if text == "*" {
			l.allowAll = true
			continue
		}
		if slices.Contains(hostless, text) {
			l.literals = append(l.literals, text)
			continue
		}
		scheme, host, ok := splitOrigin(text)
		name, below := strings.CutPrefix(host, "*")
		if !ok || name == "" || strings.Contains(name, "*") || below && name[0] != '.' {
			return List{}, fmt.Errorf("%q: give a scheme and a host, for example https://app.example.com or https://*.example.com, or file://, null or *", text)
		}
		l.patterns = append(l.patterns, pattern{scheme: scheme, host: name, subdomains: below})
	}
	return l, nil
}

// Any reports whether all origins are allowed.
func (l List) Any() bool { return l.allowAll }

// Allow reports whether an origin, as a browser sends it, is allowed.
func (l List) Allow(origin string) bool {
	if l.allowAll || slices.Contains(l.literals, origin) {
		return true
	}
	scheme, host, ok := splitOrigin(origin)
	if ok && slices.Contains(appSchemes, scheme) {
		return true
	}
	return ok && slices.ContainsFunc(l.patterns, func(p pattern) bool {
		if p.scheme != scheme {
			return false
		}
		return !p.subdomains && host == p.host || p.subdomains && len(host) > len(p.host) && strings.HasSuffix(host, p.host)
	})
}

// SameHost reports whether an origin is that of the host, which may have a port.
func SameHost(origin, host string) bool {
	scheme, own, ok := splitOrigin(origin)
	return ok && own == canonical(scheme, host)
}

// maxPrinted is the maximum number of bytes of a client's text that is logged.
const maxPrinted = 200

// Printable returns the values of a header in a form that is safe in a log
// line.
func Printable(values []string) string {
	text := strings.Join(values, ", ")
	if len(text) > maxPrinted {
		text = text[:maxPrinted] + "…"
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' || c >= 0x7f && c < 0xa0 || c == utf8.RuneError {
			return '?'
		}
		return c
	}, text)
}

// splitOrigin splits an origin (RFC 6454, section 6.2) into its scheme and its host, both in lower
// case and without a default port.
func splitOrigin(s string) (scheme, host string, ok bool) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", "", false
	}
	scheme = strings.ToLower(u.Scheme)
	return scheme, canonical(scheme, u.Host), true
}

func canonical(scheme, host string) string {
	host = strings.ToLower(host)
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return host
	}
	if (port == "443" && (scheme == "https" || scheme == "wss")) || (port == "80" && (scheme == "http" || scheme == "ws")) {
		if strings.Contains(name, ":") {
			return "[" + name + "]"
		}
		return name
	}
	return host
}
