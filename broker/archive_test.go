package broker_test

import (
	"fmt"
	"testing"

	"mynah/authhook"
	"mynah/internal/mqttest"
)

// An archiver that comes for the first time gets what was acknowledged before, from the
// beginning of the log; one that comes back goes on where it stopped, also after a
// restart. A session that began at the log's end left the first messages unarchived for
// ever.
func TestArchiverBeginsAtTheBeginning(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := mustStart(t, dir, nil)
	bob := mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "phone", "room"))
	for i := range 10 {
		bob.PublishAcked([]string{"user/alice", "group/room"}[i%2], 1, fmt.Sprint(i))
	}
	bob.Disconnect()
	o := mqttest.Options{
		ClientID: "archiver", Keep: true,
		Token: mustToken(t, authhook.TokenClaims{Subject: "archiver", Role: authhook.RoleArchiver}),
	}
	archiver := mqttest.Dial(t, b.MQTTAddr().String(), o)
	archiver.Subscribe(1, "user/#", "group/#")
	for i := range 5 {
		if m := archiver.ReceiveAcked(); m.Body != fmt.Sprint(i) {
			t.Fatalf("got %v, want %d", m.Body, i)
		}
	}
	archiver.Disconnect()
	b = restart(t, b, dir)
	archiver = mqttest.Dial(t, b.MQTTAddr().String(), o)
	archiver.Subscribe(1, "user/#", "group/#")
	for i := 5; i < 10; i++ {
		if m := archiver.ReceiveAcked(); m.Body != fmt.Sprint(i) {
			t.Fatalf("got %v, want %d", m.Body, i)
		}
	}
	archiver.Quiet()
}
