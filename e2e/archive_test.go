package e2e_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/internal/waitfor"
)

// row is a line of table messages.
type row struct {
	Seq          uint64
	Topic        string
	Conversation string
	Sender       string
	SentAt       time.Time
	Type         string
	Mid          *string
	Message      json.RawMessage
}

// query asks the archive, as a user would with psql.
func query(tb testing.TB, database, where string, args ...any) []row {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		tb.Fatalf("connect to the archive: %v", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	rows, err := conn.Query(ctx, `SELECT seq, topic, conversation, sender, sent_at, type, mid, message FROM messages WHERE `+where+` ORDER BY seq`, args...)
	if err != nil {
		tb.Fatalf("query the archive: %v", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		tb.Fatalf("query the archive: %v", err)
	}
	return found
}

// archived waits until the archive has the message and returns its row.
func archived(tb testing.TB, database string, seq uint64) row {
	tb.Helper()
	var found []row
	waitfor.MustHold(tb, "message in the archive", func() bool {
		found = query(tb, database, "seq = $1", seq)
		return len(found) == 1
	})
	return found[0]
}

// The columns and the object are what PROTOCOL.md says, and a message is there
// within a second of its acknowledgement.
func TestArchive(t *testing.T) {
	t.Parallel()
	n := shared(t)
	alice, bob, group := unique("alice"), unique("bob"), unique("group")
	c := dial(t, n, "pub", token(t, alice, groups(group)))
	c.sub(t, "group/"+group, 1)
	c.sub(t, "user/"+alice, 1)

	c.pub(t, "group/"+group, 1, `{"type":"x-note","body":{"n":[1,2.5,"é"]},"mid":"m-1","ext":{"colour":"blue"},"reply_to":5}`)
	live := c.wait(t, "group message", func(d delivery) bool { return d.Topic == "group/"+group })
	sent := live.open(t)
	r := archived(t, n.database, sent.Seq)
	if r.Topic != "group/"+group || r.Conversation != "group/"+group || r.Sender != alice || r.Type != "x-note" || r.Mid == nil || *r.Mid != "m-1" || r.SentAt.UnixMilli() != sent.TS {
		t.Errorf("row of the group message: %+v", r)
	}
	// The whole object as delivered, less prev.
	var want, got map[string]any
	mustUnmarshal(t, live.Payload, &want)
	mustUnmarshal(t, r.Message, &got)
	delete(want, "prev")
	if w, g := mustMarshal(t, want), mustMarshal(t, got); w != g {
		t.Errorf("archived object\n got %s\nwant %s", g, w)
	}

	c.pub(t, "user/"+bob, 1, "to bob")
	direct := archived(t, n.database, c.waitText(t, "to bob").Seq)
	first, second := alice, bob
	if second < first {
		first, second = second, first
	}
	if want := "dm/" + first + "/" + second; direct.Conversation != want || direct.Topic != "user/"+bob || direct.Mid != nil {
		t.Errorf("row of the direct message: %+v, want conversation %s", direct, want)
	}
}

// "Stands in messages within a second": the quickest of some messages does, even
// on a machine that is busy with all the other tests.
func TestArchiveWithinASecond(t *testing.T) {
	t.Parallel()
	n := shared(t)
	c := dial(t, n, "pub", token(t, unique("alice")))
	best := time.Hour
	for range 10 {
		text := unique("hello")
		c.pub(t, "user/"+unique("bob"), 1, text)
		began := time.Now()
		waitfor.MustHold(t, "message in the archive", func() bool {
			return len(query(t, n.database, "message->>'body' = $1", text)) == 1
		})
		best = min(best, time.Since(began))
	}
	if best > time.Second {
		t.Errorf("the quickest of 10 messages took %v to the archive, want under 1s", best)
	}
}

func mustUnmarshal(tb testing.TB, raw []byte, into any) {
	tb.Helper()
	if err := json.Unmarshal(raw, into); err != nil {
		tb.Fatalf("%v: %s", err, raw)
	}
}

func mustMarshal(tb testing.TB, v any) string {
	tb.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}
