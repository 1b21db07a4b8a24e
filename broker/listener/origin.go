package listener

import (
	"net/http"
	"net/netip"

	"mynah/internal/origin"
)

// originAllowed reports whether r's page may connect: its origin is allowed, or is the host
// that the request names. A request without an Origin header is allowed, since no page can
// send one: browsers always set it, while tools, devices and most mini-programs do not.
func (s *WebSocket) originAllowed(r *http.Request) bool {
	values := r.Header.Values("Origin")
	switch {
	case len(values) == 0 || s.origins.Any():
		return true
	case len(values) > 1:
		return false
	}
	return s.origins.Allow(values[0]) || origin.SameHost(values[0], s.source.Host(r))
}

// logRefusedOrigin logs a refused origin for the operator: most often an origin is
// missing in the configuration. The browser does not show the reason to the page's
// author.
func (s *WebSocket) logRefusedOrigin(r *http.Request, remote netip.AddrPort) {
	leftOut, ok := s.refusedOrigins.Allow()
	if !ok {
		return
	}
	attrs := []any{"door", s.server.id, "origin", origin.Printable(r.Header.Values("Origin")), "host", origin.Printable([]string{s.source.Host(r)}), "remote", remote.String()}
	if leftOut > 0 {
		attrs = append(attrs, "left_out", leftOut)
	}
	s.server.Logger.Warn("a page of an origin that is not allowed was refused; if it is yours, name the origin in --allow-origin", attrs...)
}
