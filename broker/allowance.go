package broker

import (
	"fmt"
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// Bounds of a session's subscriptions. Each is visited when the session comes, changes or
// goes, and all of them are written to disk when one changes.
const (
	// Of all their filters together, and more where a session may have more of them.
	maxFilterBytes = 64 << 10
	bytesPerFilter = 64

	// Whoever publishes gives a message to each shared subscription that matches, so
	// people and devices have few of them.
	maxShared = 20
)

// allowance is what subscriptions a session has, and may have beside them.
type allowance struct {
	max     int // subscriptions
	filters map[string]struct{}
	size    int // bytes of the filters
	shared  int // of them, -1 if they are not bounded
}

// allowance returns that of the connection's session, which may have so many subscriptions.
func (c *conn) allowance(maxSubscriptions int) *allowance {
	subs := c.session.Subscriptions()
	a := &allowance{max: maxSubscriptions, filters: make(map[string]struct{}, len(subs))}
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

// maxBytes is how many bytes all filters together may have.
func (a *allowance) maxBytes() int { return max(maxFilterBytes, a.max*bytesPerFilter) }

// refusal is why take refuses a filter.
func (a *allowance) refusal() packets.Code {
	return packets.Code{Code: packets.ErrQuotaExceeded.Code, Reason: fmt.Sprintf(
		"a session has at most %d subscriptions, of %d KiB together, and %d shared ones; unsubscribe from others first, or use filters with wildcards",
		a.max, a.maxBytes()>>10, maxShared)}
}

// giveBack removes a filter that take has added.
func (a *allowance) giveBack(filter string) {
	delete(a.filters, filter)
	a.size -= len(filter)
	if a.shared > 0 && mqtt.IsSharedFilter(filter) {
		a.shared--
	}
}

// take adds a filter if the session may have it.
func (a *allowance) take(filter string) bool {
	if len(a.filters) >= a.max || a.size+len(filter) > a.maxBytes() || a.shared >= maxShared && mqtt.IsSharedFilter(filter) {
		return false
	}
	a.add(strings.Clone(filter))
	return true
}
