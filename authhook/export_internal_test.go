package authhook

import (
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"
)

// For the black-box tests.
var (
	StayEncrypted = stayEncrypted
	ValidFilter   = validFilter
	Covers        = covers
)

// Size returns how many subjects and addresses a limiter remembers.
func (l *Limiter) Size() (subjects, addresses int) {
	if l.publish != nil {
		subjects = l.publish.size()
	}
	if l.failures != nil {
		addresses = l.failures.size()
	}
	return subjects, addresses
}

// size returns the number of buckets held.
func (b *buckets) size() int {
	n := 0
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		n += len(s.held)
		s.mu.Unlock()
	}
	return n
}

// SetIdentity gives a client an identity in place of the one that it has, and with it
// another expiry.
func (h *Hook) SetIdentity(cl *mqtt.Client, id *Identity) { h.clients.set(cl, id) }

// Connections returns how many clients have an identity now.
func (h *Hook) Connections() int { return int(h.clients.count.Load()) }

// IDSubject returns the foreign subject whose id it is: what SubjectID undoes.
func IDSubject(id string) string {
	if !Escaped(id) {
		return id
	}
	var subject strings.Builder
	for i := 0; i < len(id); i++ {
		if c, ok := escaped(id[i:]); ok {
			subject.WriteByte(c)
			i += 2
		} else {
			subject.WriteByte(id[i])
		}
	}
	return subject.String()
}
