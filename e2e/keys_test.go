package e2e_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"mynah/internal/waitfor"
)

// A broker that is started while PostgreSQL is away lets in who has a token of the API,
// with the keys that it has kept; it refused them all until the database was back. A key
// that was distrusted does not come back by a restart during the next outage.
func TestSigningKeysAreKept(t *testing.T) {
	t.Parallel()
	pg := mustOwnPostgres(t)
	database := pg.url
	data := t.TempDir()
	broker := func() *node {
		return start(t, "broker", "--data-dir", data, "--jwt-secret", secret, "--database-url", database,
			"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	}
	says := func(n *node, text string) {
		t.Helper()
		if _, ok := n.log.await(func(line string) bool { return strings.Contains(line, text) }, n.exited); !ok {
			t.Fatalf("the log does not say %q", text)
		}
	}
	b := broker()
	// An API of its own each time: one that runs notices after 30 seconds that another
	// process has rotated the keys.
	anna := unique("anna")
	tokenFrom := func(path string) string {
		t.Helper()
		v := visitor{tb: t, node: start(t, "api", "--database-url", database, "--broker-url", "mqtt://"+b.mqtt, "--jwt-secret", secret,
			"--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")}
		defer v.node.interrupt()
		token, _ := v.call(http.MethodPost, path, object{"id": anna, "password": "a long password"})["access_token"].(string)
		return token
	}
	connects := func(n *node, token string) bool { return tryConnect(t, pahoOptions(n, unique("c"), token)) == 0 }

	tok := tokenFrom("/v1/accounts")
	c := dial(t, b, "c", tok)
	// The broker's directory knows anna, and what has changed about her until then, once it
	// knows that she is in a group. A broker that is stopped while it is at that does not
	// remember her, so that nothing is allowed by what may be out of date.
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Exec(t.Context(), `WITH g AS (INSERT INTO groups (id) VALUES ('g') RETURNING id) INSERT INTO members (grp, account) SELECT id, $1 FROM g`, anna)
	if err := errors.Join(err, conn.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	waitfor.MustHold(t, "anna to be in her group", func() bool { return subackCode(t, c, "group/g") == 1 })
	c.Disconnect(0)
	if status := b.interrupt(); status != 0 {
		t.Fatalf("the broker ended with status %d", status)
	}
	pg.stop()

	b = broker()
	says(b, "tokens of the API are verified with the keys kept from the last time")
	if !connects(b, tok) {
		t.Error("a token of the API is refused while the database is away")
	}
	file := filepath.Join(data, "signing-keys.json")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || strings.Contains(string(content), `"d"`) {
		t.Errorf("the file has mode %v and holds %s, want 0600 and public keys", info.Mode(), content)
	}

	// Back again: the broker follows without a restart. What the API distrusts then is
	// refused at once and from then on, outage or not.
	pg.start()
	says(b, "its keys have been read from the database")
	if status, _, stderr := execute(t, "api", "--rotate-keys", "--distrust-keys", "--database-url", database, "--jwt-secret", secret); status != 0 {
		t.Fatalf("rotate: %s", stderr)
	}
	fresh := tokenFrom("/v1/sessions/password")
	// It asks the database about an unknown key, not more than once in two seconds.
	waitfor.MustHold(t, "the broker to believe the new key", func() bool { return connects(b, fresh) })
	if connects(b, tok) {
		t.Error("a token signed with a distrusted key is believed")
	}
	if status := b.interrupt(); status != 0 {
		t.Fatalf("the broker ended with status %d", status)
	}
	pg.stop()
	b = broker()
	says(b, "tokens of the API are verified with the keys kept from the last time")
	if connects(b, tok) {
		t.Error("a token signed with a distrusted key is believed after a restart")
	}
	if !connects(b, fresh) {
		t.Error("a token signed with the new key is refused after a restart")
	}
}
