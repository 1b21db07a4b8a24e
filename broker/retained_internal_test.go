package broker

import (
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
)

// Retained messages whose time is over are forgotten, on disk too; others stay.
func TestRetainedMessagesExpire(t *testing.T) {
	t.Parallel()
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: []byte("a secret for tests, 32 bytes or more")})
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	b, err := New(Config{DataDir: t.TempDir(), MQTTAddr: "127.0.0.1:0", Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Stop(t.Context()) //nolint:errcheck // it has not been started
	for topic, seconds := range map[string]uint32{"plant/short": 5, "plant/long": 500, "plant/ever": 0} {
		b.plain.retain(newPlain(topic, []byte("x"), 1, true, packets.Properties{MessageExpiryInterval: seconds}), true)
	}
	b.plain.forgetExpired(time.Now().Unix() + 60)
	stored := map[string]bool{}
	if err := b.log.Sessions().Scan(retainedPrefix, func(key string, _ []byte) bool { stored[key] = true; return true }); err != nil {
		t.Fatal(err)
	}
	for topic, want := range map[string]bool{"plant/short": false, "plant/long": true, "plant/ever": true} {
		if kept := b.plain.Retained(topic) != nil; kept != want || stored[retainedPrefix+topic] != want {
			t.Errorf("%s: retained %t, stored %t, want %t", topic, kept, stored[retainedPrefix+topic], want)
		}
	}
}
