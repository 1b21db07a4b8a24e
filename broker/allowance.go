package broker

import (
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"
)

// Bounds of a session's subscriptions. Each is visited when the session comes, changes or
// goes, and all of them are written to disk when one changes.
const (
	maxSubscriptions = 1000
	maxFilterBytes   = 64 << 10 // of all their filters together

	// Whoever publishes gives a message to each shared subscription that matches, so
	// people and devices have few of them.
	maxShared = 20
)

// allowance is what subscriptions a session has, and may have beside them.
type allowance struct {
	filters map[string]struct{}
	size    int // bytes of the filters
	shared  int // of them, -1 if they are not bounded
}

// allowance returns that of the connection's session.
func (c *conn) allowance() *allowance {
	subs := c.session.Filters()
	a := &allowance{filters: make(map[string]struct{}, len(subs))}
	if privileged(c.holder.Role) {
		a.shared = -1
	}
	for _, s := range subs {
		a.add(s.Filter)
	}
	return a
}

func (a *allowance) has(filter string) bool {
	_, ok := a.filters[filter]
	return ok
}

func (a *allowance) add(filter string) {
	a.filters[filter] = struct{}{}
	a.size += len(filter)
	if a.shared >= 0 && mqtt.IsSharedFilter(filter) {
		a.shared++
	}
}

// take adds a filter if the session may have it.
func (a *allowance) take(filter string) bool {
	if len(a.filters) >= maxSubscriptions || a.size+len(filter) > maxFilterBytes || a.shared >= maxShared && mqtt.IsSharedFilter(filter) {
		return false
	}
	a.add(strings.Clone(filter))
	return true
}
