package api

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// origins are the web pages whose scripts may call the API. They are written as those
// that may open a WebSocket (broker/listener), and mean the same.
type origins struct {
	any      bool
	patterns []originPattern
}

type originPattern struct {
	scheme string
	host   string // with its port unless it is the scheme's own; below *. without the star
	below  bool   // hosts below host, not host itself
}

// parseOrigins reads https://chat.example.com, https://*.example.com:8443 and *.
func parseOrigins(texts []string) (o origins, err error) {
	for _, text := range texts {
		if text == "*" {
			o.any = true
			continue
		}
		scheme, host, ok := splitOrigin(text)
		name, below := strings.CutPrefix(host, "*")
		if !ok || name == "" || strings.Contains(name, "*") || below && name[0] != '.' {
			return origins{}, fmt.Errorf("--allow-origin %q: give a scheme and a host, for example https://app.example.com or https://*.example.com, or *", text)
		}
		o.patterns = append(o.patterns, originPattern{scheme: scheme, host: name, below: below})
	}
	return o, nil
}

// allow reports whether pages of the origin may call.
func (o origins) allow(origin string) bool {
	if o.any {
		return true
	}
	scheme, host, ok := splitOrigin(origin)
	return ok && slices.ContainsFunc(o.patterns, func(p originPattern) bool {
		if p.scheme != scheme {
			return false
		}
		return !p.below && host == p.host || p.below && len(host) > len(p.host) && strings.HasSuffix(host, p.host)
	})
}

// splitOrigin splits an origin (RFC 6454 section 6.2) into its scheme and its host, in
// lower case and without a default port.
func splitOrigin(s string) (scheme, host string, ok bool) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", "", false
	}
	scheme, host = strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	if _, port, err := net.SplitHostPort(host); err == nil && port == map[string]string{"https": "443", "http": "80"}[scheme] {
		host = strings.TrimSuffix(host, ":"+port)
	}
	return scheme, host, true
}

// cors lets pages of the configured origins call the API. Tokens travel in a
// header, so no credentials mode is needed. It reports whether it answered.
func (a *API) cors(w http.ResponseWriter, r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || !a.origins.any && len(a.origins.patterns) == 0 {
		return false
	}
	w.Header().Add("Vary", "Origin")
	switch {
	case a.origins.any:
		w.Header().Set("Access-Control-Allow-Origin", "*")
	case a.origins.allow(origin):
		w.Header().Set("Access-Control-Allow-Origin", origin)
	default:
		return false
	}
	w.Header().Set("Access-Control-Expose-Headers", "ETag, Location, Retry-After, X-Request-Id")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	w.Header().Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE")
	w.Header().Set("Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key, If-None-Match")
	w.Header().Set("Access-Control-Max-Age", "3600")
	w.WriteHeader(http.StatusNoContent)
	return true
}
