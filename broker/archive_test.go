package broker_test

import (
	"fmt"
	"testing"
	"time"

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
		ClientID: "archiver", KeepSession: true,
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
	archiver.ExpectNothing()
}

// Nobody but an archiver gets an archiver's session, whatever its subject is called, and
// nobody can end it by a clean start: its position says what may be trimmed.
func TestArchiverSessionIsTheArchivers(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	o := mqttest.Options{
		ClientID: "archiver", KeepSession: true,
		Token: mustToken(t, authhook.TokenClaims{Subject: "store", Role: authhook.RoleArchiver}),
	}
	archiver := mqttest.Dial(t, b.MQTTAddr().String(), o)
	archiver.Subscribe(1, "user/#", "group/#")
	for _, keep := range []bool{true, false} {
		other := v5(user(t, "store", "archiver"))
		other.KeepSession = keep
		if c := mqttest.Dial(t, b.MQTTAddr().String(), other); c.Connack.ReasonCode != 0x87 {
			t.Errorf("keep %t: CONNACK %#x, want 0x87", keep, c.Connack.ReasonCode)
		}
	}
	mqttest.Dial(t, b.MQTTAddr().String(), user(t, "bob", "phone")).PublishAcked("user/alice", 1, "hello")
	if m := archiver.ReceiveAcked(); m.Body != "hello" {
		t.Errorf("the archiver got %v", m.Body)
	}
}

// What was acknowledged is archived, also when its time was over before the archiver came to
// it or had acknowledged it. Others do not get it.
func TestArchiverGetsWhatHasExpired(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	o := mqttest.Options{
		ClientID: "archiver", KeepSession: true,
		Token: mustToken(t, authhook.TokenClaims{Subject: "archiver", Role: authhook.RoleArchiver}),
	}
	archiver := mqttest.Dial(t, addr, o)
	archiver.Subscribe(1, "user/#", "group/#")
	alice := mqttest.Dial(t, addr, user(t, "alice", "phone"))
	alice.Subscribe(1, "user/alice")
	bob := mqttest.Dial(t, addr, user(t, "bob", "phone"))
	soon := time.Now().Add(500 * time.Millisecond)
	bob.PublishAcked("user/alice", 1, `{"body":"over","expires":1}`)
	bob.PublishAcked("user/alice", 1, fmt.Sprintf(`{"body":"soon","expires":%d}`, soon.UnixMilli()))
	for _, want := range []string{"over", "soon"} {
		if m := archiver.Receive(); m.Body != want {
			t.Fatalf("got %v, want %s", m.Body, want)
		}
	}
	archiver.CloseAbruptly()
	time.Sleep(time.Until(soon) + time.Millisecond)
	bob.PublishAcked("user/alice", 1, `{"body":"over, too","expires":2}`)
	archiver = mqttest.Dial(t, addr, o)
	archiver.Subscribe(1, "user/#", "group/#")
	for _, want := range []string{"over", "soon", "over, too"} {
		if m := archiver.ReceiveAcked(); m.Body != want {
			t.Fatalf("got %v, want %s", m.Body, want)
		}
	}
	bob.PublishAcked("user/alice", 1, "last")
	for m := alice.ReceiveAcked(); m.Body != "last"; m = alice.ReceiveAcked() {
		if m.Body != "soon" {
			t.Errorf("alice got %v", m.Body)
		}
	}
}
