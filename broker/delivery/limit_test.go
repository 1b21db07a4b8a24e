package delivery_test

import (
	"fmt"
	"testing"
	"time"

	"mynah/broker/delivery"
)

// Nobody can make sessions without end: of those of one subject, the ones that have been
// offline for longest give way, and never one that is connected. The archiver's stays.
func TestSessionsOfASubjectAreLimited(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	r := mustRig(t, delivery.Config{MaxSessions: 5, Now: func() time.Time { return now }})
	attach := func(client string, archiver bool) *peer {
		t.Helper()
		p := r.attach(delivery.Attachment{
			Key: delivery.Key{Subject: "alice", ClientID: client}, Expiry: time.Hour, Archiver: archiver,
		})
		if p.session == nil {
			t.FailNow()
		}
		t.Cleanup(func() { _, _ = p.out.Close(), p.conn.Close() })
		return p
	}
	attach("archiver", true).offline(time.Hour)
	attach("connected", false)
	for i := range 20 {
		now = now.Add(time.Second)
		attach(fmt.Sprint("device", i), false).offline(time.Hour)
	}
	left := map[string]bool{}
	for _, s := range r.engine.Sessions("alice") {
		left[s.ClientID] = true
	}
	if len(left) != 5 || !left["archiver"] || !left["connected"] || !left["device17"] || !left["device18"] || !left["device19"] {
		t.Errorf("left are %v, want the archiver's, the connected one and the last three", left)
	}
}
