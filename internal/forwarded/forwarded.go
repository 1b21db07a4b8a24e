// Package forwarded finds the address of the client whose request came through reverse
// proxies. HTTP and MQTT over WebSocket both use it, so that both count a client under the
// same address.
//
// It guarantees that a client cannot choose its address. Only trusted proxies are
// believed, and only one header: a proxy that sets one header passes the client's own
// copy of the other on. Make a Source and call Client for each request.
package forwarded

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Headers in which a proxy names the client's address.
const (
	XForwardedFor = "X-Forwarded-For"
	Forwarded     = "Forwarded" // RFC 7239
)

// Source says which proxies are trusted, and which header they set. The zero value
// trusts nobody.
type Source struct {
	// Header is XForwardedFor or Forwarded; "" is XForwardedFor.
	Header string
	// Trusted are the proxies' addresses.
	Trusted []netip.Prefix
}

// ParseHeader returns the header of the name, which has no case; "" is XForwardedFor.
func ParseHeader(name string) (string, error) {
	for _, known := range []string{XForwardedFor, Forwarded} {
		if strings.EqualFold(name, known) {
			return known, nil
		}
	}
	if name == "" {
		return XForwardedFor, nil
	}
	return "", fmt.Errorf("forwarded header %q: want %s or %s", name, XForwardedFor, Forwarded)
}

// Client returns the address of r's client: the peer, unless that is a trusted proxy; then
// it is the right-most address in the header that is not a trusted proxy's. Everything to
// the left of that can be forged. The search ends at an entry that is no address
// ("unknown", an obfuscated identifier, a malformed header); then the result is the last
// known proxy. The port is 0 if the header has none. The address is invalid if the peer
// has none, as on a Unix socket.
func (s Source) Client(r *http.Request) netip.AddrPort {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.AddrPort{}
	}
	client := canonicalAddr(peer.Addr(), peer.Port())
	lines := r.Header.Values(s.header())
	for _, line := range slices.Backward(lines) {
		for _, hop := range slices.Backward(s.hops(line)) {
			if !s.trusts(client.Addr()) {
				return client
			}
			next, ok := ParseNode(hop)
			if !ok {
				return client
			}
			client = next
		}
	}
	return client
}

// Host returns the host that r's client asked for. A trusted proxy may have replaced it in
// the request; it then names the original in X-Forwarded-Host, or as host= in Forwarded.
func (s Source) Host(r *http.Request) string {
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !s.trusts(peer.Addr()) {
		return r.Host
	}
	if s.header() == XForwardedFor {
		if host := r.Header.Get("X-Forwarded-Host"); host != "" {
			return host
		}
		return r.Host
	}
	if lines := r.Header.Values(Forwarded); len(lines) > 0 {
		if elements, ok := parseForwarded(lines[len(lines)-1]); ok && len(elements) > 0 {
			if host, ok := elements[len(elements)-1]["host"]; ok && host != "" {
				return host
			}
		}
	}
	return r.Host
}

func (s Source) header() string {
	if s.Header == "" {
		return XForwardedFor
	}
	return s.Header
}

func (s Source) trusts(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(s.Trusted, func(p netip.Prefix) bool { return p.Contains(a) })
}

// hops returns the nodes that one line of the header names, in their order. A malformed
// line has one node that is no address.
func (s Source) hops(line string) []string {
	if s.header() == XForwardedFor {
		return strings.Split(line, ",")
	}
	elements, ok := parseForwarded(line)
	if !ok {
		return []string{""}
	}
	hops := make([]string, len(elements))
	for i, pairs := range elements {
		hops[i] = pairs["for"]
	}
	return hops
}

// parseForwarded reads a line of Forwarded (RFC 7239 section 4): elements separated by commas, each
// of pairs separated by semicolons. Names are returned in lower case, quoted strings
// without their quotes. It reports false if the line is malformed or an element has a name
// twice.
func parseForwarded(line string) (elements []map[string]string, ok bool) {
	pairs := map[string]string{}
	for rest := line; ; {
		rest = strings.TrimLeft(rest, " \t")
		if end := strings.IndexAny(rest, "=;,"); end > 0 && rest[end] == '=' {
			name := strings.ToLower(strings.TrimSpace(rest[:end]))
			value, after, ok := cutValue(rest[end+1:])
			if _, twice := pairs[name]; !ok || twice {
				return nil, false
			}
			pairs[name], rest = value, strings.TrimLeft(after, " \t")
		}
		switch {
		case rest == "":
			return append(elements, pairs), true
		case rest[0] == ',':
			elements, pairs = append(elements, pairs), map[string]string{}
		case rest[0] != ';':
			return nil, false
		}
		rest = rest[1:]
	}
}

// cutValue reads a token or a quoted string from the front of s, and returns
// the rest.
func cutValue(s string) (text, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, `;,"`)
		if end < 0 {
			end = len(s)
		}
		return strings.TrimSpace(s[:end]), s[end:], true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\': // a quoted pair
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

// ParseNode reads an address, IPv6 with or without brackets, and with or without a port,
// which may be obfuscated (RFC 7239 section 6).
func ParseNode(s string) (netip.AddrPort, bool) {
	s = strings.TrimSpace(s)
	host, port := s, ""
	if inside, ok := strings.CutPrefix(s, "["); ok {
		if host, port, ok = strings.Cut(inside, "]"); !ok || !strings.Contains(host, ":") {
			return netip.AddrPort{}, false
		}
		if port != "" && port[0] != ':' {
			return netip.AddrPort{}, false
		}
	} else if strings.Count(s, ":") == 1 {
		host = s[:strings.IndexByte(s, ':')]
		port = s[len(host):]
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, false
	}
	switch {
	case port == "":
		return canonicalAddr(a, 0), true
	case strings.HasPrefix(port, ":_") && len(port) > 2:
		return canonicalAddr(a, 0), true
	}
	n, err := strconv.ParseUint(port[1:], 10, 16)
	return canonicalAddr(a, uint16(n)), err == nil
}

// canonicalAddr returns the form in which addresses are compared: IPv4-mapped
// IPv6 as IPv4, without a zone.
func canonicalAddr(a netip.Addr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(a.Unmap().WithZone(""), port)
}
