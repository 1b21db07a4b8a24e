package pubsub

import (
	"fmt"
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"

	"mynah/broker/session"
)

// A message outside the chat visits every level of every filter with wildcards that matches
// so far, and then every subscription to those that match. Topics.mu is held meanwhile. So
// what a subject may have of them is bounded, over all its sessions together: a session has
// a bound of its own, but sessions have different filters.
const (
	// DefaultMaxWildcards is the default of Config.MaxWildcards.
	DefaultMaxWildcards = 1000

	levelsPerWildcard        = 8  // on average
	subscriptionsPerWildcard = 20 // on average, as when that many sessions have the same filters
)

// wildcards counts the filters with wildcards outside the chat that a subject has in all its
// sessions together. Topics.mu guards it.
type wildcards struct {
	uses          map[string]int // by filter, how many sessions have it, and reservations
	levels        int            // of all filters, each counted once
	subscriptions int            // the sum of uses
}

// isWildcard reports whether a filter is outside the chat and has a wildcard.
func isWildcard(filter string) bool {
	return !session.IsChatFilter(filter) && strings.ContainsAny(filter, "+#")
}

// levelsOf returns how many levels a filter has in the tree.
func levelsOf(filter string) int {
	if mqtt.IsSharedFilter(filter) {
		_, filter = cutShared(filter)
	}
	return 1 + strings.Count(filter, "/")
}

// addWildcard counts one more use of a subject's filter. mu is held.
func (t *Topics) addWildcard(subject, filter string) {
	if !isWildcard(filter) {
		return
	}
	w := t.wildcards[subject]
	if w == nil {
		if t.wildcards == nil {
			t.wildcards = map[string]*wildcards{}
		}
		w = &wildcards{uses: map[string]int{}}
		t.wildcards[subject] = w
	}
	if w.uses[filter] == 0 {
		filter = strings.Clone(filter) // a piece of the packet, which it would keep
		w.levels += levelsOf(filter)
	}
	w.uses[filter]++
	w.subscriptions++
}

// removeWildcard counts one use less. mu is held.
func (t *Topics) removeWildcard(subject, filter string) {
	w := t.wildcards[subject]
	if w == nil || w.uses[filter] == 0 {
		return
	}
	w.subscriptions--
	if w.uses[filter]--; w.uses[filter] > 0 {
		return
	}
	w.levels -= levelsOf(filter)
	if delete(w.uses, filter); len(w.uses) == 0 {
		delete(t.wildcards, subject)
	}
}

// Reserve reports whether a session of a subject may have a filter that it does not have yet.
// If it may, the filter is counted as the subject's until Release, so that sessions that
// subscribe at the same time do not get more together. What a subject has already, as from
// before there was a bound, it keeps.
func (t *Topics) Reserve(subject, filter string) bool {
	if !isWildcard(filter) {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if w := t.wildcards[subject]; w != nil {
		limit := t.maxWildcards()
		if w.subscriptions >= limit*subscriptionsPerWildcard {
			return false
		}
		if w.uses[filter] == 0 && (len(w.uses) >= limit || w.levels+levelsOf(filter) > limit*levelsPerWildcard) {
			return false
		}
	}
	t.addWildcard(subject, filter)
	return true
}

// Release ends what Reserve has allowed, once for each time. By then the session has the
// subscription, or it is not to have it.
func (t *Topics) Release(subject string, filters []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, filter := range filters {
		t.removeWildcard(subject, filter)
	}
}

// WildcardsRefused is why Reserve refuses a filter, for the client.
func (t *Topics) WildcardsRefused() string {
	limit := t.maxWildcards()
	return fmt.Sprintf("outside the chat you have at most %d different filters with + or #, of %d levels together, in %d subscriptions of all your sessions; unsubscribe from others first, or use fewer filters that match more",
		limit, limit*levelsPerWildcard, limit*subscriptionsPerWildcard)
}
