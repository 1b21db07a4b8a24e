// Package origin says which web pages may use the server from another host: the pages that
// may open a WebSocket are those that may call the HTTP API.
package origin

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// List is a list of allowed origins (RFC 6454). The zero value allows no page's.
type List struct {
	any      bool
	literals []string // of noHost
	patterns []pattern
}

// noHost are what pages send that come from no host: those that a hybrid app has in its
// own files, sandboxed frames, and redirects. Any page can make itself one of them, so they
// are allowed only to who names them.
var noHost = []string{"file://", "null"}

// native are the schemes of origins that no page in a browser can have: the runtimes of
// mini-programs and mini-games send them (weapp://wechat-game-runtime). They are always
// allowed, like programs that send no origin.
var native = []string{"weapp"}

type pattern struct {
	scheme string
	host   string // with its port unless it is the scheme's own; below *. without the star
	below  bool   // hosts below host, not host itself
}

// Parse reads patterns such as https://chat.example.com, https://*.example.com:8443 and *,
// and the literals file:// and null.
func Parse(patterns []string) (List, error) {
	var l List
	for _, text := range patterns {
		if text == "*" {
			l.any = true
			continue
		}
		if slices.Contains(noHost, text) {
			l.literals = append(l.literals, text)
			continue
		}
		scheme, host, ok := split(text)
		name, below := strings.CutPrefix(host, "*")
		if !ok || name == "" || strings.Contains(name, "*") || below && name[0] != '.' {
			return List{}, fmt.Errorf("%q: give a scheme and a host, for example https://app.example.com or https://*.example.com, or file://, null or *", text)
		}
		l.patterns = append(l.patterns, pattern{scheme: scheme, host: name, below: below})
	}
	return l, nil
}

// Any reports whether all origins are allowed.
func (l List) Any() bool { return l.any }

// Allow reports whether an origin, as a browser sends it, is allowed.
func (l List) Allow(origin string) bool {
	if l.any || slices.Contains(l.literals, origin) {
		return true
	}
	scheme, host, ok := split(origin)
	if ok && slices.Contains(native, scheme) {
		return true
	}
	return ok && slices.ContainsFunc(l.patterns, func(p pattern) bool {
		if p.scheme != scheme {
			return false
		}
		return !p.below && host == p.host || p.below && len(host) > len(p.host) && strings.HasSuffix(host, p.host)
	})
}

// Same reports whether a page of the origin comes from a host, which may have a port.
func Same(origin, host string) bool {
	scheme, own, ok := split(origin)
	return ok && own == canonical(scheme, host)
}

// maxPrinted is how much of a client's own text is logged, in bytes.
const maxPrinted = 200

// Printable returns the values of a header as they can stand in a log line.
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

// split splits an origin (RFC 6454, section 6.2) into its scheme and its host, both in lower
// case and without a default port.
func split(s string) (scheme, host string, ok bool) {
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
