package listener

import (
	"net/http"
	"net/netip"

	"mynah/internal/origin"
)

// mayCome reports whether r's page may connect: one of an allowed origin, or one that comes
// from the host that the client calls us. A request without an Origin does not come from a
// page: tools, devices and most mini-programs send none, and nothing that a browser does on
// behalf of a page does without.
func (s *WebSocket) mayCome(r *http.Request) bool {
	values := r.Header.Values("Origin")
	switch {
	case len(values) == 0 || s.origins.Any():
		return true
	case len(values) > 1:
		return false
	}
	return s.origins.Allow(values[0]) || origin.SameHost(values[0], s.source.Host(r))
}

// logRefusedOrigin tells the operator, who has forgotten an origin more often than a page
// has no business here. The browser tells the page's author nothing.
func (s *WebSocket) logRefusedOrigin(r *http.Request, remote netip.AddrPort) {
	leftOut, ok := s.refusedOrigins.Allow()
	if !ok {
		return
	}
	attrs := []any{"door", s.door.id, "origin", origin.Printable(r.Header.Values("Origin")), "host", origin.Printable([]string{s.source.Host(r)}), "remote", remote.String()}
	if leftOut > 0 {
		attrs = append(attrs, "left_out", leftOut)
	}
	s.door.Logger.Warn("a page of an origin that is not allowed was refused; if it is yours, name the origin in --allow-origin", attrs...)
}
