package broker

import (
	"log/slog"
	"net"
	"testing"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/session"
)

// Connections that race for a session may arrive at takeOver in another order than they got
// the session. The one that has it is listened to; all others are not. The wrong choice is
// a client whose publishes are ignored for as long as it stays.
func TestTakeOverFollowsTheSession(t *testing.T) {
	t.Parallel()
	for _, clean := range []bool{false, true} {
		for name, order := range map[string][]int{
			"in order": {0, 1, 2}, "reversed": {2, 1, 0}, "mixed": {1, 2, 0}, "the last first": {2, 0, 1},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				cs, conns := attached(t, clean)
				for _, i := range order {
					cs.takeOver(conns[i])
				}
				held := cs.holder(conns[0].session.Key)
				for i, c := range conns {
					if newest := i == 2; (held == c) != newest || c.retired == newest {
						t.Errorf("connection %d: holds the session: %t, its publishes are ignored: %t", i, held == c, c.retired)
					}
				}
			})
		}
	}
}

// A connection that comes to takeOver when the one after it has already gone is not listened
// to either: its client has sent all of that again.
func TestTakeOverAfterSuccessorIsGone(t *testing.T) {
	t.Parallel()
	cs, conns := attached(t, false)
	cs.takeOver(conns[2])
	cs.remove(conns[2])
	cs.takeOver(conns[1])
	if !conns[1].retired {
		t.Error("a connection that has lost its session is listened to")
	}
}

// attached returns a table of connections and three connections that have had
// the same session one after the other.
func attached(t *testing.T, clean bool) (*connections, []*conn) {
	t.Helper()
	l, err := msglog.Open(t.TempDir(), msglog.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	e, err := delivery.New(delivery.Config{Log: l, State: l.State(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	e.Start()
	t.Cleanup(func() { e.Stop(); _ = l.Close() })
	cs := &connections{retire: newQueue().retire}
	conns := make([]*conn, 3)
	for i := range conns {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
		c := &conn{Conn: outbox.NewConn(ours, e.Limits())}
		if c.session, _, err = e.Attach(delivery.Attachment{
			Key: session.Key{Subject: "alice", ClientID: "phone"}, Conn: c.Conn, Clean: clean, Expiry: 60,
		}); err != nil {
			t.Fatal(err)
		}
		conns[i] = c
	}
	return cs, conns
}
