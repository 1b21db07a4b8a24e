// Package origin says which web pages may use the server from another host: the pages that
// may open a WebSocket are those that may call the HTTP API.
package origin

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// List is a list of allowed origins (RFC 6454). The zero value allows none.
type List struct {
	any      bool
	patterns []pattern
}

type pattern struct {
	scheme string
	host   string // with its port unless it is the scheme's own; below *. without the star
	below  bool   // hosts below host, not host itself
}

// Parse reads patterns such as https://chat.example.com, https://*.example.com:8443 and *.
func Parse(patterns []string) (List, error) {
	var l List
	for _, text := range patterns {
		if text == "*" {
			l.any = true
			continue
		}
		scheme, host, ok := split(text)
		name, below := strings.CutPrefix(host, "*")
		if !ok || name == "" || strings.Contains(name, "*") || below && name[0] != '.' {
			return List{}, fmt.Errorf("%q: give a scheme and a host, for example https://app.example.com or https://*.example.com, or *", text)
		}
		l.patterns = append(l.patterns, pattern{scheme: scheme, host: name, below: below})
	}
	return l, nil
}

// Empty reports whether no origin is allowed.
func (l List) Empty() bool { return !l.any && len(l.patterns) == 0 }

// Any reports whether all origins are allowed.
func (l List) Any() bool { return l.any }

// Allow reports whether an origin, as a browser sends it, is allowed.
func (l List) Allow(origin string) bool {
	if l.any {
		return true
	}
	scheme, host, ok := split(origin)
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
