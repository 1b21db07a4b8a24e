package listener

import (
	"net/http"

	"mynah/internal/origin"
)

// mayCome reports whether r's page may connect: one of an allowed origin, or one that comes
// from the host that the client calls us if none is configured. A request without an Origin
// does not come from a page: tools, devices and mini-programs send none, and nothing that a
// browser does on behalf of a page does without.
func (s *WebSocket) mayCome(r *http.Request) bool {
	values := r.Header.Values("Origin")
	switch {
	case len(values) == 0 || s.origins.Any():
		return true
	case len(values) > 1:
		return false
	case s.origins.Empty():
		return origin.Same(values[0], s.host(r))
	}
	return s.origins.Allow(values[0])
}
