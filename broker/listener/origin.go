package listener

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// origins is an allow-list of the web pages that may open a WebSocket.
type origins struct {
	any      bool
	patterns []originPattern
}

type originPattern struct {
	scheme string
	host   string // with its port unless it is the scheme's own; below *. without the star
	below  bool   // hosts below host, not host itself
}

// parseOrigins reads patterns such as https://chat.example.com,
// https://*.example.com:8443 and *.
func parseOrigins(patterns []string) (origins, error) {
	var o origins
	for _, s := range patterns {
		if s == "*" {
			o.any = true
			continue
		}
		scheme, host, ok := splitOrigin(s)
		name, below := strings.CutPrefix(host, "*")
		if !ok || strings.Contains(name, "*") || name == "" || (below && !strings.HasPrefix(name, ".")) {
			return origins{}, fmt.Errorf("allowed origin %q: want scheme://host, scheme://*.domain or *", s)
		}
		o.patterns = append(o.patterns, originPattern{scheme: scheme, host: name, below: below})
	}
	return o, nil
}

// allow reports whether r's page may connect. A request without an Origin does
// not come from a page: tools, devices and mini-programs send none, and nothing
// that a browser does on behalf of a page does without. host is what the client
// calls us.
func (o origins) allow(r *http.Request, host string) bool {
	values := r.Header.Values("Origin")
	if len(values) == 0 || o.any {
		return true
	}
	scheme, origin, ok := splitOrigin(values[0])
	if !ok || len(values) > 1 {
		return false
	}
	if len(o.patterns) == 0 {
		return origin == canonicalHost(scheme, host)
	}
	for _, p := range o.patterns {
		if p.scheme != scheme {
			continue
		}
		if p.below && len(origin) > len(p.host) && strings.HasSuffix(origin, p.host) || !p.below && origin == p.host {
			return true
		}
	}
	return false
}

// splitOrigin splits an origin (RFC 6454, section 6.2) into its scheme and its
// host, both in lower case and without a default port.
func splitOrigin(s string) (scheme, host string, ok bool) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", "", false
	}
	scheme = strings.ToLower(u.Scheme)
	return scheme, canonicalHost(scheme, u.Host), true
}

func canonicalHost(scheme, host string) string {
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
