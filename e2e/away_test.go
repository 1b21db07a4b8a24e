package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/internal/stopwatch"
	"mynah/internal/waitfor"
)

// outage is how long PostgreSQL is away: longer than the time-outs, keep-alives and pauses
// between attempts of those that need it.
const outage = time.Minute

// PostgreSQL is stopped for a minute during chat, and nobody notices: known people write
// to each other directly and in their group, and come back after they have been away. When
// it is back, all that was said is in the archive, each message once, and changes that are
// made by SQL are followed again.
//
// Tests start in the order of their files' names: this file's is such that the minute passes
// beside the others.
func TestMinuteWithoutPostgres(t *testing.T) {
	t.Parallel()
	pg := mustOwnPostgres(t)
	database := pg.url
	sql := func(statements ...string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), database)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(context.Background()) }()
		for _, s := range statements {
			if _, err := conn.Exec(t.Context(), s); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
	}
	sql(`INSERT INTO accounts (id) VALUES ('alice'), ('bob')`, `INSERT INTO groups (id, join_policy) VALUES ('g', 'invitation')`,
		`INSERT INTO members (grp, account) VALUES ('g', 'alice'), ('g', 'bob')`)
	b := start(t, "broker", "--data-dir", t.TempDir(), "--jwt-secret", secret, "--database-url", database,
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	archiver := start(t, "archiver", "--database-url", database, "--broker-url", "mqtt://"+b.mqtt, "--jwt-secret", secret,
		"--metrics-addr", "127.0.0.1:0")

	connect := func(id string) *pahoClient {
		c := connectPaho(t, pahoOptions(b, "phone", token(t, id)).SetCleanSession(false))
		c.sub(t, "user/"+id, 1)
		c.sub(t, "group/+", 1)
		return c
	}
	alice, bob := connect("alice"), connect("bob")
	said := 0
	watch := stopwatch.New(t)
	talk := func(topic string) {
		t.Helper()
		text := fmt.Sprintf("message %d", said)
		said++
		began := watch.Elapsed()
		bob.pub(t, topic, 1, text)
		alice.waitText(t, text)
		if took := watch.Since(began); took > 5*time.Second {
			t.Errorf("%s took %v", text, took)
		}
	}
	talk("user/alice")
	talk("group/g")
	waitfor.MustHold(t, "both in the archive", func() bool { return len(query(t, database, "true")) == 2 })

	pg.stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for away := time.Now(); time.Since(away) < outage; <-tick.C {
		talk("user/alice")
		talk("group/g")
		if said%20 == 0 {
			bob.Disconnect(100)
			bob = connect("bob")
		}
	}
	for name, n := range map[string]*node{"broker": b, "archiver": archiver} {
		select {
		case <-n.exited:
			t.Fatalf("the %s has ended", name)
		default:
		}
	}

	pg.start()
	sql(`DELETE FROM members WHERE account = 'alice' AND grp = 'g'`)
	waitfor.MustHold(t, "everything in the archive", func() bool { return len(query(t, database, "sender = 'bob'")) >= said })
	seen := map[string]int{}
	for _, r := range query(t, database, "sender = 'bob'") {
		seen[string(r.Message)]++
	}
	if len(seen) != said {
		t.Errorf("%d different messages in the archive, %d were said", len(seen), said)
	}
	// Alice may hear until the broker knows that she is out, and not after.
	alice.sub(t, "user/alice/error", 0)
	waitfor.MustHold(t, "alice to be out of the group", func() bool {
		alice.pub(t, "group/g", 1, "am I in?")
		alice.pub(t, "user/alice", 1, unique("sync"))
		for _, d := range alice.all() {
			if d.Topic == "user/alice/error" && strings.Contains(string(d.Payload), "not_member") {
				return true
			}
		}
		return false
	})
	bob.pub(t, "group/g", 1, "without alice")
	bob.pub(t, "user/alice", 1, "to alice alone")
	alice.waitText(t, "to alice alone")
	if alice.count("without alice") != 0 {
		t.Error("alice hears the group that she is out of")
	}
}
