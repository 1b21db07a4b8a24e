package e2e_test

import (
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"mynah/internal/waitfor"
)

// The subjects of the server's own parts are nobody else's. A sign-in service that
// lets people choose their ids would otherwise hand out the archiver's session: it
// belongs to (subject, client id), and whoever has both takes it over, clean start
// and all, and the archive's place in the log with it. One called system could
// write what people take for the server's word.
func TestSubjectsOfTheServer(t *testing.T) {
	t.Parallel()
	n := shared(t)
	lost := func() int { return strings.Count(n.log.String(), "the archiver is not connected") }
	before := lost()
	for _, test := range []struct{ subject, role string }{
		{"archiver", "user"},
		{"archiver", "device"},
		{"archiver", "service"},
		{"archiver", "admin"},
		{"system", "user"},
		{"system", "device"},
		{"system", "archiver"},
	} {
		tok := token(t, test.subject, jwt.MapClaims{"role": test.role})
		if code := tryConnect(t, pahoOptions(n, "archiver", tok)); code != codeBadCredentials && code != codeNotAuthorised {
			t.Errorf("%s with role %s, 3.1.1: return code %d, want 4 or 5", test.subject, test.role, code)
		}
		status, _, stderr := execute(t, "token", "--sub", test.subject, "--role", test.role, "--jwt-secret", secret)
		if status != 1 || !strings.Contains(stderr, "is the server's own") {
			t.Errorf("mynah token --sub %s --role %s: status %d, %s", test.subject, test.role, status, stderr)
		}
	}
	js := newJS(t)
	e := js.connect(t, "ws://"+n.http+"/mqtt", token(t, "archiver"), map[string]any{"clientId": "archiver"})
	if code := e.Packet.ReasonCode; e.Event != "error" || code != 0x86 && code != 0x87 {
		t.Errorf("archiver with role user, MQTT 5: %+v, want reason 0x86 or 0x87", e)
	}
	if now := lost(); now != before {
		t.Errorf("the archiver lost its session %d times", now-before)
	}
	if code := tryConnect(t, pahoOptions(n, unique("c"), token(t, "system", jwt.MapClaims{"role": "service"}))); code != 0 {
		t.Errorf("a service that speaks for the system: return code %d", code)
	}

	// The archive goes on.
	c := dial(t, n, "c", token(t, unique("alice")))
	topic, text := "user/"+unique("bob"), unique("hello")
	c.pub(t, topic, 1, text)
	waitfor.MustHold(t, "message in the archive", func() bool {
		return len(query(t, n.database, "message->>'body' = $1", text)) == 1
	})
}
