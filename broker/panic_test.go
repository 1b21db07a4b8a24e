package broker_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"mynah/broker"
	"mynah/internal/mqttest"
	"mynah/internal/waitfor"
)

// A panic while somebody connects ends that connection and leaves nothing of it: it is
// not counted as open, and the client is let in the next time, to the session that it had.
func TestPanicAtConnect(t *testing.T) {
	t.Parallel()
	reg, d := prometheus.NewRegistry(), &directory{}
	b := mustStart(t, t.TempDir(), func(c *broker.Config) { withDirectory(d)(c); c.Registry = reg })
	addr := b.MQTTAddr().String()
	o := keep(user(t, "alice", "phone"))
	alice := mqttest.Dial(t, addr, o)
	alice.Subscribe(1, "user/alice")
	alice.Disconnect()
	waitfor.MustHold(t, "she is gone", func() bool { return metric(t, reg, "mynah_connections") == 0 })

	d.mu.Lock()
	d.asked = func(string) { panic("for the test") }
	d.mu.Unlock()
	if _, err := mqttest.TryDial(t, addr, o); err == nil {
		t.Error("a connection was let in that panicked")
	}
	waitfor.MustHold(t, "the connection is not counted", func() bool { return metric(t, reg, "mynah_connections") == 0 })
	alice = mqttest.Dial(t, addr, o)
	if !alice.Connack.SessionPresent {
		t.Error("the session is gone")
	}
}
