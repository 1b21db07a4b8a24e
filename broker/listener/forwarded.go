package listener

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Headers in which a proxy may tell the client's address.
const (
	headerXForwardedFor = "X-Forwarded-For"
	headerForwarded     = "Forwarded" // RFC 7239
)

// clientAddr returns the address of r's client: the peer, unless that is a
// trusted proxy; else the right-most address in header that is not a trusted
// proxy's. Whoever is not trusted can put what it wants to the left of that. A
// hop that is no address (unknown, an obfuscated name) ends the walk at the last
// proxy that is known.
func clientAddr(r *http.Request, header string, trusted []netip.Prefix) netip.AddrPort {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.AddrPort{} // a Unix socket
	}
	peer = unmapped(peer)
	if !contains(trusted, peer.Addr()) {
		return peer
	}
	hops := strings.Split(strings.Join(r.Header.Values(header), ","), ",")
	client := peer
	for _, hop := range slices.Backward(hops) {
		hop = strings.TrimSpace(hop)
		if header == headerForwarded {
			hop = forwardedFor(hop)
		}
		addr, ok := parseHop(hop)
		if !ok {
			break
		}
		client = addr
		if !contains(trusted, addr.Addr()) {
			break
		}
	}
	return client
}

// forwardedFor returns the value of for= in one element of a Forwarded header.
func forwardedFor(element string) string {
	for pair := range strings.SplitSeq(element, ";") {
		name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if ok && strings.EqualFold(name, "for") {
			return strings.Trim(value, `"`)
		}
	}
	return ""
}

// parseHop reads an address with or without a port, IPv6 with or without
// brackets.
func parseHop(s string) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddrPort(s); err == nil {
		return unmapped(a), true
	}
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Unmap(), 0), true
}
